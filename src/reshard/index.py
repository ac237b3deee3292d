"""What a file holds and where: values that formats give and plans use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from reshard.dtypes import ITEMSIZE
from reshard.errors import FormatError


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Element type and shape of a tensor or of one shard of it; ``()`` is a 0-d tensor of one element."""

    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in ITEMSIZE:
            raise FormatError(f"unknown dtype {self.dtype!r}")
        if any(n < 0 for n in self.shape):
            raise FormatError(f"negative size in shape {list(self.shape)}")

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEMSIZE[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """Consecutive bytes of a file: ``offset <= i < offset + nbytes``."""

    offset: int
    nbytes: int

    def __post_init__(self) -> None:
        if self.offset < 0 or self.nbytes < 0:
            raise FormatError(f"extent at {self.offset} of {self.nbytes} bytes")

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its bytes are those of ``extents``, one after the other, row-major."""

    spec: TensorSpec
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """What the headers of one file say. ``texts`` are strings stored beside the tensors, ``notes`` the format's own
    flags.
    """

    tensors: Mapping[str, Stored]
    texts: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seal:
    """The end of a file that vouches for the rest: ``mark``, then the CRC-32 of all bytes before it, big-endian."""

    mark: bytes
    crc_nbytes: int

    @property
    def nbytes(self) -> int:
        return len(self.mark) + self.crc_nbytes

    def bytes_for(self, crc: int) -> bytes:
        return self.mark + crc.to_bytes(self.crc_nbytes, "big")


@dataclass(frozen=True, slots=True)
class Frame:
    """A new file laid out: header pieces at their offsets, the holes where each tensor's bytes go, and a seal.

    Pieces, holes and seal together cover ``nbytes`` exactly once.
    """

    nbytes: int
    pieces: tuple[tuple[int, bytes], ...]
    holes: Mapping[str, tuple[Extent, ...]]
    seal: Seal | None = None
