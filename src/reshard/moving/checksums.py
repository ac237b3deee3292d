"""CRC-32 sums that a new file states of its own bytes, made of the sums of what is written, in whatever order."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

from reshard.errors import RunError
from reshard.index import Checksum, Extent

_POLYNOMIAL = 0xEDB88320  # CRC-32 of zip files; the highest power is the lowest bit
_ONE = 1 << 31


def crc32_joined(first: int, second: int, second_nbytes: int) -> int:
    """The CRC-32 of bytes of the sum ``first`` with ``second_nbytes`` of the sum ``second`` after them.

    >>> import zlib
    >>> crc32_joined(zlib.crc32(b"ab"), zlib.crc32(b"cde"), 3) == zlib.crc32(b"abcde")
    True
    """
    return _times(_power(second_nbytes), first) ^ second


def _times(a: int, b: int) -> int:
    """The product of two polynomials, modulo that of CRC-32."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@lru_cache(maxsize=1024)
def _power(nbytes: int) -> int:
    """What so many bytes multiply a sum before them by: x to the number of their bits."""
    power, square = _ONE, 1 << 23  # x to the eighth
    while nbytes:
        if nbytes & 1:
            power = _times(square, power)
        square = _times(square, square)
        nbytes >>= 1
    return power


class CrcSums:
    """The sums of parts of a file, and of extents that they tile. Not for several threads at once."""

    def __init__(self, checksums: Sequence[Checksum]) -> None:
        self._places = sorted(((place, one) for one in checksums for place in one.places), key=lambda e: e[0])
        self._parts: dict[int, tuple[int, int]] = {}

    def add(self, offset: int, nbytes: int, crc: int) -> None:
        self._parts[offset] = (nbytes, crc)

    def of(self, extent: Extent) -> int:
        """Raises RunError where the parts do not tile it."""
        at, crc = extent.offset, 0
        while at < extent.end:
            nbytes, part = self._parts.get(at, (0, 0))
            if not nbytes or at + nbytes > extent.end:
                raise RunError(f"no CRC-32 of bytes {at} to {extent.end}")
            crc = crc32_joined(crc, part, nbytes)
            at += nbytes
        return crc

    def awaited(self, offset: int, nbytes: int) -> bool:
        """Whether a header piece states sums, and so is whole only when all before it is written."""
        return bool(self._within(offset, nbytes))

    def stated(self, offset: int, piece: bytes) -> bytes:
        """A header piece with the sums that it states."""
        out = bytearray(piece)
        for place, checksum in self._within(offset, len(piece)):
            at = place - offset
            out[at : at + checksum.nbytes] = checksum.bytes_for(self.of(checksum.of))
        return bytes(out)

    def _within(self, offset: int, nbytes: int) -> Sequence[tuple[int, Checksum]]:
        start, stop = (bisect_left(self._places, at, key=lambda entry: entry[0]) for at in (offset, offset + nbytes))
        return self._places[start:stop]
