"""The seam of file formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from msgspec import Struct

from reshard.index import Contents, Frame, StatedCrc, TensorSpec

SHARDING = "DCP_SHARDING_INFO"
"""The note that says where slices begin, as PyTorch's distributed checkpoint writes it."""


class ByteRanges(Protocol):
    """A file as ranges of bytes; what it lies on is the storage's matter."""

    @property
    def nbytes(self) -> int: ...

    def read(self, offset: int, nbytes: int) -> bytes:
        """Exactly ``nbytes`` bytes from ``offset``. Raises StorageError when they are not there."""
        ...


class Framed(Protocol):
    """A format that files are written in. Holds no state that changes, so one object serves every process."""

    @property
    def name(self) -> str: ...

    @property
    def suffix(self) -> str:
        """With the dot, as in ``.ckpt``."""
        ...

    def frame(self, tensors: Mapping[str, TensorSpec], texts: Mapping[str, str], notes: Mapping[str, str]) -> Frame:
        """Lay out a file, tensors in the order that suits the format. Pure. Raises FormatError for what it cannot
        hold.
        """
        ...


class Format(Framed, Protocol):
    """A checkpoint file format: files of it are read without being told of by others."""

    def read_index(self, source: ByteRanges) -> Contents:
        """Say where each tensor lies, reading headers only. Raises FormatError."""
        ...

    def crcs(self, source: ByteRanges) -> Sequence[StatedCrc]:
        """The CRC-32 sums that a file states of its bytes; none where it states none. Raises FormatError."""
        ...


class Phases(Struct, frozen=True):
    """Where in a block of ``block_nbytes`` tensors, by name, should begin; those that do not care are absent."""

    block_nbytes: int
    begins: Mapping[str, int]


@runtime_checkable
class Phased(Protocol):
    """A format that may lay tensors out so that they lie in the blocks of a file system as they wish."""

    def frame_in_phase(
        self, tensors: Mapping[str, TensorSpec], texts: Mapping[str, str], notes: Mapping[str, str], phases: Phases
    ) -> Frame: ...
