"""The number of a tensor's bytes: a hash of the hashes of its blocks, however the bytes lie in files.

The row-major bytes of a tensor are cut into blocks of 1 MiB, the last may be shorter. What the number promises:
docs/explanation/fingerprint.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
import xxhash
from msgspec import Struct

from reshard.index import TensorSpec
from reshard.moving.mover import Mover, in_lots
from reshard.moving.scratch import Scratch
from reshard.moving.task_inputs import Sources
from reshard.planning.blocks import Access, Blocks
from reshard.planning.plan import Move

VERSION = 2
"""Of the numbers: it changes when they do."""

BLOCK_NBYTES = 1 << 20
_READ_NBYTES = 4 << 20
_LOT_NBYTES = 64 << 20


class Stretch(Struct, frozen=True):
    """Consecutive bytes of a tensor: those before the first block that begins in them, the hashes of whole blocks one
    after the other, and what is left.
    """

    head: bytes
    hashes: bytes
    tail: bytes


class Hashing:
    """The blocks of a tensor, whose bytes come in order from ``offset`` on."""

    def __init__(self, offset: int = 0) -> None:
        self._head_nbytes = -offset % BLOCK_NBYTES
        self._head = bytearray()
        self._hashes = bytearray()
        self._open = bytearray()

    def add(self, data: memoryview | bytes) -> None:
        data = memoryview(data)
        if len(self._head) < self._head_nbytes:
            data = self._filled(self._head, self._head_nbytes, data)
        if self._open:
            data = self._filled(self._open, BLOCK_NBYTES, data)
            if len(self._open) == BLOCK_NBYTES:
                self._hash(memoryview(bytes(self._open)))
                self._open.clear()
        while len(data) >= BLOCK_NBYTES:
            self._hash(data[:BLOCK_NBYTES])
            data = data[BLOCK_NBYTES:]
        self._open += data

    @staticmethod
    def _filled(part: bytearray, nbytes: int, data: memoryview) -> memoryview:
        """What is left of the data when the part has so many bytes."""
        room = nbytes - len(part)
        part += data[:room]
        return data[room:]

    def _hash(self, block: memoryview) -> None:
        self._hashes += xxhash.xxh3_128_digest(block)

    def join(self, stretch: Stretch) -> None:
        """Go on with bytes that were hashed elsewhere."""
        self.add(stretch.head)
        self._hashes += stretch.hashes
        self.add(stretch.tail)

    def so_far(self) -> Stretch:
        return Stretch(bytes(self._head), bytes(self._hashes), bytes(self._open))

    def end(self) -> str:
        """The hash of all blocks' hashes, hexadecimal."""
        if self._open:
            self._hash(memoryview(self._open))
        return xxhash.xxh3_128_hexdigest(bytes(self._hashes))


class Portion(Struct, frozen=True):
    """Some blocks of a move that makes a whole tensor one piece, whose bytes begin at 0."""

    move: Move
    start: int
    stop: int


def lots(moves: Iterable[Move]) -> Iterator[list[Portion]]:
    """All the work, in lots of about 64 MiB: a large tensor in several, many small ones in one."""
    for lot in in_lots(map(_work, moves), _LOT_NBYTES):
        yield [Portion(*part) for part in lot]


def _work(move: Move) -> tuple[Move, int, int]:
    blocks = Blocks(move, _READ_NBYTES)
    return move, len(blocks), blocks.hull.size * blocks.source_itemsize


def hashed(portion: Portion, sources: Sources, scratch: Scratch, on_bytes: Callable[[int], None]) -> Stretch:
    """Read a portion and hash it."""
    hashing: list[Hashing] = []

    def add(access: Access, data: memoryview) -> None:
        if not hashing:
            hashing.append(Hashing(access.ranges[0].offset))
        hashing[0].add(data)
        on_bytes(len(data))

    Mover(portion.move, sources, scratch, _READ_NBYTES).run(range(portion.start, portion.stop), add)
    return hashing[0].so_far() if hashing else Stretch(b"", b"", b"")


def number_of(name: str, spec: TensorSpec, content: str) -> str:
    """The 128-bit number of a tensor, hexadecimal; ``content``: the hash of its blocks' hashes."""
    return _digest((VERSION, name, spec.dtype, spec.shape, content))


def number_of_all(numbers: Iterable[str]) -> str:
    """The 128-bit number of a set of tensors from those of each, in whatever order."""
    return _digest((VERSION, sorted(numbers)))


def _digest(content: tuple[object, ...]) -> str:
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(content))
