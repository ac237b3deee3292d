"""What a file holds and where: values that formats give and plans use."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from msgspec import Struct

from reshard.dtypes import ITEMSIZE
from reshard.errors import FormatError

ZEROS = -1
"""In place of a file's number: no file holds the elements, they are zeros."""


class TensorSpec(Struct, frozen=True):
    """Element type and shape of a tensor or of one shard of it; ``()`` is a 0-d tensor of one element."""

    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in ITEMSIZE:
            raise FormatError(f"unknown dtype {self.dtype!r}")
        if any(n < 0 for n in self.shape):
            raise FormatError(f"negative size in shape {list(self.shape)}")

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.itemsize

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Extent(Struct, frozen=True, order=True):
    """Consecutive bytes of a file: ``offset <= i < offset + nbytes``."""

    offset: int
    nbytes: int

    def __post_init__(self) -> None:
        if self.offset < 0 or self.nbytes < 0:
            raise FormatError(f"extent at {self.offset} of {self.nbytes} bytes")

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


def cut_extents(extents: tuple[Extent, ...], start: int, nbytes: int) -> tuple[Extent, ...]:
    """Bytes ``start`` to ``start + nbytes`` of what the extents hold one after the other.

    >>> cut_extents((Extent(100, 10), Extent(200, 10)), 8, 4)
    (Extent(offset=108, nbytes=2), Extent(offset=200, nbytes=2))
    """
    out = []
    for extent in extents:
        if nbytes <= 0:
            break
        if start < extent.nbytes:
            length = min(extent.nbytes - start, nbytes)
            out.append(Extent(extent.offset + start, length))
            nbytes -= length
            start = 0
        else:
            start -= extent.nbytes
    return tuple(out)


class Stored(Struct, frozen=True):
    """A tensor in a file: its bytes are those of ``extents``, one after the other, row-major."""

    spec: TensorSpec
    extents: tuple[Extent, ...]


class Contents(Struct, frozen=True):
    """What the headers of one file say. ``texts`` are strings stored beside the tensors, ``notes`` the format's own
    flags; ``warnings`` tell what the file has besides and is not taken.
    """

    tensors: Mapping[str, Stored]
    texts: Mapping[str, str] = {}
    notes: Mapping[str, str] = {}
    warnings: tuple[str, ...] = ()


class Seal(Struct, frozen=True):
    """The end of a file that vouches for the rest: ``mark``, then the CRC-32 of all bytes before it, big-endian."""

    mark: bytes
    crc_nbytes: int

    @property
    def nbytes(self) -> int:
        return len(self.mark) + self.crc_nbytes

    def bytes_for(self, crc: int) -> bytes:
        return self.mark + crc.to_bytes(self.crc_nbytes, "big")


class Frame(Struct, frozen=True):
    """A new file laid out: header pieces at their offsets, the holes where each tensor's bytes go, and a seal.

    Pieces, holes and seal together cover ``nbytes`` exactly once.
    """

    nbytes: int
    pieces: tuple[tuple[int, bytes], ...]
    holes: Mapping[str, tuple[Extent, ...]]
    seal: Seal | None = None
