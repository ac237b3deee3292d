"""What a file holds and where: values that formats give and plans use."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from zlib import crc32

from msgspec import Struct

from reshard.dtypes import ITEMSIZE
from reshard.errors import FormatError

ZEROS = -1
"""In place of a file's number: no file holds the elements, they are zeros."""
MADE = -2
"""In place of a file's number: no file holds the elements, they are made. ``MADE - n`` is the n-th of what is."""


MAX_DIMS = 64
"""As many as NumPy and torch take."""


class TensorSpec(Struct, frozen=True):
    """Element type and shape of a tensor or of one shard of it; ``()`` is a 0-d tensor of one element."""

    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in ITEMSIZE:
            raise FormatError(f"unknown dtype {self.dtype!r}")
        if len(self.shape) > MAX_DIMS:
            raise FormatError(f"a tensor of {len(self.shape):,} dims, {MAX_DIMS} at most are read, here and elsewhere")
        if any(n < 0 for n in self.shape):
            raise FormatError(f"negative size in shape {list(self.shape)}")

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEMSIZE[self.dtype]

    def of_shape(self, shape: tuple[int, ...]) -> TensorSpec:
        """That of a shard of it."""
        return self if shape == self.shape else TensorSpec(self.dtype, shape)

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Coding(Struct, frozen=True, order=True, omit_defaults=True):
    """How numbers lie in a file that are not little-endian as they are meant.

    Attributes:
        width: bytes that lie in the reverse order, group by group.
        flipped: bits of each element that are the opposite of what is meant, counted after that.
    """

    width: int = 1
    flipped: bytes = b""

    def decoded(self, data: bytes) -> bytes:
        """Whole elements as they are meant.

        >>> Coding(2).decoded(bytes([1, 2, 3, 4])).hex(), Coding(2, bytes([0, 128])).decoded(bytes([1, 2])).hex()
        ('02010403', '0281')
        """
        out = bytearray(len(data))
        for place in range(self.width):
            out[place :: self.width] = data[self.width - 1 - place :: self.width]
        if not self.flipped:
            return bytes(out)
        mask = int.from_bytes(self.flipped * (len(data) // len(self.flipped)), "little")
        return (int.from_bytes(out, "little") ^ mask).to_bytes(len(data), "little")


class Extent(Struct, frozen=True, order=True, omit_defaults=True, repr_omit_defaults=True, gc=False):  # very many
    """Consecutive bytes of a file: ``offset <= i < offset + nbytes``; whole elements, where they are ``coded``."""

    offset: int
    nbytes: int
    coded: Coding | None = None

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
            out.append(Extent(extent.offset + start, length, extent.coded))
            nbytes -= length
            start = 0
        else:
            start -= extent.nbytes
    return tuple(out)


class Stored(Struct, frozen=True):
    """A tensor in a file: its bytes are those of ``extents``, one after the other, row-major.

    ``order``: which dim of the tensor each dim of what lies there is; ``()`` where they are the tensor's own.
    """

    spec: TensorSpec
    extents: tuple[Extent, ...]
    order: tuple[int, ...] = ()


class Contents(Struct, frozen=True):
    """What the headers of one file say. ``texts`` are strings stored beside the tensors, ``notes`` the format's own
    flags; ``warnings`` tell what the file has besides and is not taken.
    """

    tensors: Mapping[str, Stored]
    texts: Mapping[str, str] = {}
    notes: Mapping[str, str] = {}
    warnings: tuple[str, ...] = ()


class Checksum(Struct, frozen=True, omit_defaults=True):
    """A CRC-32 that a file states of the bytes ``of`` it: ``nbytes`` bytes at each of ``places``, after what it is of.

    Little-endian, unless ``big_endian``.
    """

    of: Extent
    places: tuple[int, ...]
    nbytes: int = 4
    big_endian: bool = False

    def bytes_for(self, crc: int) -> bytes:
        return crc.to_bytes(self.nbytes, "big" if self.big_endian else "little")


class StatedCrc(Struct, frozen=True):
    """A CRC-32 that a file states of some of its bytes; ``what`` they are, "" for the whole file."""

    what: str
    of: Extent
    crc: int


class Frame(Struct, frozen=True):
    """A new file laid out: header pieces at their offsets, the holes where each tensor's bytes go, and checksums.

    Pieces and holes together cover ``nbytes`` exactly once; checksums are written over zeros in pieces.
    """

    nbytes: int
    pieces: tuple[tuple[int, bytes], ...]
    holes: Mapping[str, tuple[Extent, ...]]
    checksums: tuple[Checksum, ...] = ()

    def filled(self, values: Mapping[str, bytes]) -> bytes:
        """The whole of a small file, with the bytes of each tensor by name."""
        made = bytearray(self.nbytes)
        for offset, piece in self.pieces:
            made[offset : offset + len(piece)] = piece
        for name, extents in self.holes.items():
            at = 0
            for hole in extents:
                made[hole.offset : hole.end] = values[name][at : at + hole.nbytes]
                at += hole.nbytes
        for checksum in self.checksums:
            crc = checksum.bytes_for(crc32(made[checksum.of.offset : checksum.of.end]))
            for place in checksum.places:
                made[place : place + len(crc)] = crc
        return bytes(made)
