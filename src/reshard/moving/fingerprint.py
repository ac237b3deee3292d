"""A hash of a tensor's bytes that adds up: in whatever runs and order the bytes come, on however many machines.

The row-major bytes of a tensor are lanes of two bytes (little-endian) in rows of 1,024. Lane ``x`` at place ``j`` of
row ``i`` adds ``x * r[k][j] * c[k][i]`` to each of four sums modulo the prime 2^61 - 1. ``r`` has 27 bits, ``c`` 61;
both come from SplitMix64 and never change. What that promises: docs/explanation/fingerprint.md.

A row's products stay below 2^53, so floating point adds them up exactly, whatever the order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash
from msgspec import Struct

from reshard.index import TensorSpec
from reshard.moving.mover import Mover
from reshard.moving.scratch import Scratch
from reshard.moving.task_inputs import Sources
from reshard.planning.blocks import Access, Blocks
from reshard.planning.plan import Move

VERSION = 1
"""Of the numbers: it changes when they do."""

PRIME = (1 << 61) - 1
_SUMS = 4
_ROW_LANES = 1024
_ROW_NBYTES = 2 * _ROW_LANES
_STRIP_ROWS = 128  # near enough to a core, and so many that threads seldom wait for Python's lock
_READ_NBYTES = 4 << 20
_LOT_NBYTES = 64 << 20
_Words = npt.NDArray[np.uint64]
_Bytes = npt.NDArray[np.uint8]
_P = np.uint64(PRIME)


class Sums(Struct, frozen=True):
    """What some bytes of a tensor add up to; the sums of disjoint bytes add up to those of all of them."""

    values: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __add__(self, other: Sums) -> Sums:
        a, b, c, d = ((x + y) % PRIME for x, y in zip(self.values, other.values, strict=True))
        return Sums((a, b, c, d))


def splitmix64(seed: int, first: int, count: int) -> _Words:
    """Numbers ``first`` to ``first + count`` of the random ones that follow from a seed.

    >>> [hex(n) for n in splitmix64(0, 1, 2)]
    ['0xe220a8397b1dcdaf', '0x6e789e6aa1b965f4']
    """
    z = np.arange(first, first + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    made: _Words = z ^ (z >> np.uint64(31))
    return made


def _seed(k: int) -> int:
    """Far from one another, so that no two streams share a stretch."""
    return int(splitmix64(0x7265736861726431, k, 1)[0])


@cache
def _of_places() -> npt.NDArray[np.float64]:
    """``r``, one column a sum."""
    columns = [splitmix64(_seed(k), 0, _ROW_LANES) >> np.uint64(37) for k in range(_SUMS)]
    return np.stack(columns, axis=1).astype(np.float64)


def _of_rows(k: int, first: int, count: int) -> _Words:
    """``c`` of some rows."""
    made: _Words = splitmix64(_seed(_SUMS + k), first, count) >> np.uint64(3)
    return made


def sums_of(offset: int, data: memoryview, scratch: Scratch) -> Sums:
    """The sums of bytes ``offset`` to ``offset + len(data)`` of a tensor."""
    source = np.frombuffer(data, np.uint8)
    if not source.size:
        return Sums()
    first, stop = offset // _ROW_NBYTES, -(-(offset + source.size) // _ROW_NBYTES)
    rows = np.empty((stop - first, _SUMS), np.uint64)
    for row in range(first, stop, _STRIP_ROWS):
        count = min(_STRIP_ROWS, stop - row)
        lanes = np.frombuffer(scratch.take("lanes", count * _ROW_LANES * 8), np.float64)
        lanes[...] = _strip(source, row * _ROW_NBYTES - offset, count * _ROW_NBYTES).view("<u2")
        rows[row - first : row - first + count] = lanes.reshape(count, _ROW_LANES) @ _of_places()
    a, b, c, d = (_total(_product(_of_rows(k, first, len(rows)), rows[:, k])) for k in range(_SUMS))
    return Sums((a, b, c, d))


def _strip(source: _Bytes, start: int, nbytes: int) -> _Bytes:
    """Bytes from ``start``; zeros before the source begins and after it ends."""
    if start >= 0 and start + nbytes <= source.size:
        return source[start : start + nbytes]
    padded = np.zeros(nbytes, np.uint8)
    part = source[max(start, 0) : start + nbytes]
    padded[max(-start, 0) : max(-start, 0) + part.size] = part
    return padded


def _product(c: _Words, v: _Words) -> _Words:
    """``c * v`` modulo PRIME, of numbers below 2^61 and 2^53; may be PRIME and a little more."""
    c1, c0 = c >> np.uint64(31), c & np.uint64((1 << 31) - 1)
    v1, v0 = v >> np.uint64(27), v & np.uint64((1 << 27) - 1)
    total: _Words = _turned(c1 * v1, 58) + _turned(c1 * v0, 31) + _turned(c0 * v1, 27) + c0 * v0
    made: _Words = (total & _P) + (total >> np.uint64(61))
    return made


def _turned(x: _Words, bits: int) -> _Words:
    """``x * 2^bits`` modulo 2^61 - 1: its 61 bits, turned round."""
    made: _Words = ((x << np.uint64(bits)) & _P) | (x >> np.uint64(61 - bits))
    return made


def _total(words: _Words) -> int:
    low, high = words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)
    return (int(low.sum()) + (int(high.sum()) << 32)) % PRIME


class Portion(Struct, frozen=True):
    """Some blocks of a move that makes a whole tensor one piece, whose bytes begin at 0."""

    move: Move
    start: int
    stop: int


def lots(moves: Iterable[Move]) -> Iterator[list[Portion]]:
    """All the work, in lots of about 64 MiB: a large tensor in several, many small ones in one."""
    lot: list[Portion] = []
    room = _LOT_NBYTES
    for move in moves:
        blocks = Blocks(move, _READ_NBYTES)
        nbytes = max(blocks.hull.size * blocks.source_itemsize // max(len(blocks), 1), 1)
        start = 0
        while start < len(blocks):
            stop = min(start + max(room // nbytes, 1), len(blocks))
            lot.append(Portion(move, start, stop))
            room -= (stop - start) * nbytes
            start = stop
            if room < nbytes:
                yield lot
                lot, room = [], _LOT_NBYTES
    if lot:
        yield lot


def portion_sums(portion: Portion, sources: Sources, scratch: Scratch, on_bytes: Callable[[int], None]) -> Sums:
    """Read a portion and add it up."""
    total = Sums()

    def add(access: Access, data: memoryview) -> None:
        nonlocal total
        total += sums_of(access.ranges[0].offset, data, scratch)
        on_bytes(len(data))

    Mover(portion.move, sources, scratch, _READ_NBYTES).run(range(portion.start, portion.stop), add)
    return total


def number_of(name: str, spec: TensorSpec, sums: Sums) -> str:
    """The 128-bit number of a tensor, hexadecimal."""
    return _digest((VERSION, name, spec.dtype, spec.shape, sums.values))


def number_of_all(numbers: Iterable[str]) -> str:
    """The 128-bit number of a set of tensors from those of each, in whatever order."""
    return _digest((VERSION, sorted(numbers)))


def _digest(content: tuple[object, ...]) -> str:
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(content))
