"""Blocks of a move → the bytes of each target piece, read once and handed on in order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from reshard.dtypes import ITEMSIZE
from reshard.errors import RunError
from reshard.index import ZEROS, Extent
from reshard.layout.box import Box
from reshard.layout.cover import boxes_of_range
from reshard.moving.scratch import Scratch
from reshard.moving.task_inputs import Sources
from reshard.planning.blocks import Access, Block, Blocks
from reshard.planning.misfits import ShardMisfits
from reshard.planning.plan import Move
from reshard.planning.steps import Assembly, Joint, Piece

if TYPE_CHECKING:
    from reshard.moving.elements import Array, BoxInMemory
    from reshard.moving.interleaved import Interleaved, PutAround
    from reshard.moving.joint import JointParts
    from reshard.moving.steps import Making

T = TypeVar("T")
OnAccess = Callable[[Access, memoryview], None]
"""Takes the bytes of one access to a target piece. They are valid during the call only."""

Note = Callable[[int, ShardMisfits], None]
"""Hears of values that did not fit, in a file of the move's targets."""

_COLLECT_BLOCK_NBYTES = 8 << 20


def parts_of(ranges: tuple[Extent, ...], data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The bytes for each extent, with where they begin. Raises RunError where they are not as many."""
    at = 0
    for extent in ranges:
        stop = at + extent.nbytes
        yield extent.offset, data[at:stop]
        at = stop
    if at != len(data):
        raise RunError(f"{len(data)} bytes for a place of {at}")


def collect(move: Move, sources: Sources, scratch: Scratch) -> bytearray:
    """The bytes of the one target piece of a move."""
    (piece,) = move.targets
    out = bytearray(piece.box.size * ITEMSIZE[move.dtype])

    def take(access: Access, data: memoryview) -> None:
        start = access.ranges[0].offset
        out[start : start + len(data)] = data

    target = replace(piece, file=0, extents=(Extent(0, len(out)),))
    mover = Mover(replace(move, targets=(target,)), sources, scratch, _COLLECT_BLOCK_NBYTES)
    mover.run(range(len(mover.blocks)), take)
    return out


class Mover:
    """Carries out one move, any of its blocks in any thread.

    Bytes that lie together in the block go straight from the file and straight to the sink. What has to touch elements
    (``elements``, ``steps``) is imported when there is such work: NumPy takes longer to come than many a job to run.
    """

    def __init__(
        self, move: Move, sources: Sources, scratch: Scratch, block_nbytes: int, note: Note | None = None
    ) -> None:
        self.blocks = Blocks(move, block_nbytes)
        self.block_nbytes = block_nbytes
        self._note = note
        self._sources = sources
        self._scratch = scratch

    def run_interleaved(self, found: Interleaved, put: PutAround) -> None:
        found.run(self._sources, self._scratch, put)

    def run(self, numbers: Iterable[int], sink: OnAccess) -> None:
        """Give ``sink`` the bytes of these blocks. In rising order they reach each target piece from front to back."""
        for number in numbers:
            block = self.blocks[number]
            if block.writes:
                slab, dtype, kinds = self._made(block)
                for write in block.writes:
                    if kinds is not None:
                        self._tell(write, kinds[write.box.within(block.box)])
                    sink(write, self._cut(slab, block.box, dtype, write))

    def _tell(self, write: Access, kinds: Array | None) -> None:
        """Pass on which values of a target access did not fit."""
        if kinds is None or self._note is None or not kinds.any():
            return
        from reshard.moving.elements import counted_kinds

        move = self.blocks.move
        for name, box, odd in _by_tensor(move, write, kinds):
            if odd.any():
                self._note(write.file, ShardMisfits(box, counted_kinds(name, move.dtype, odd)))

    def _made(self, block: Block) -> tuple[memoryview, str, Array | None]:
        """The block as its step makes it, row-major, the dtype that it has by now, and what of it did not fit."""
        move = self.blocks.move
        if isinstance(move.step, Assembly | Joint):
            slab, kinds = self._gather(block)
            return slab, move.step.base.dtype, kinds
        beside = self._making.beside(block.box)  # before the block, whose buffers it comes through
        made = self._scratch.take("made", block.box.size * ITEMSIZE[move.dtype])
        return made, move.dtype, self._making.made(block.box, made, self._gather(block)[0], beside)

    @cached_property
    def _making(self) -> Making:
        from reshard.moving.steps import Making

        return Making(self.blocks.move, self._reading(self._scratch))

    @cached_property
    def _parts(self) -> JointParts:
        from reshard.moving.joint import JointParts

        assert isinstance(self.blocks.move.step, Joint)
        return JointParts(self.blocks.move.step, self._reading(self._scratch.inner))

    def _reading(self, scratch: Scratch) -> Callable[[Assembly, Box], Array]:
        from reshard.moving.elements import shaped

        def read(of: Assembly, box: Box) -> Array:
            part = Move("", of, of.dtype, (Piece(0, box, ()),))
            return shaped(collect(part, self._sources, scratch), of.dtype, box)

        return read

    def _gather(self, block: Block) -> tuple[memoryview, Array | None]:
        """The block's elements, row-major, from all its source pieces; and what of those that are made did not fit."""
        base = self.blocks.base
        itemsize = ITEMSIZE[base.dtype]
        slab = self._scratch.take("slab", block.box.size * itemsize)
        in_place: list[tuple[Access, memoryview]] = []
        kinds: Array | None = None
        for read in block.reads:
            piece = base.pieces[read.piece]
            taken = read.box & piece.box & block.box if piece.outer or piece.order else read.box
            at = read.box.place_in(block.box) if taken == read.box and not piece.order else None
            if read.file < ZEROS:
                kinds = self._put_made(read, taken, (slab, block.box), kinds)
            elif at is not None:
                in_place.append((read, slab[at * itemsize : (at + read.box.size) * itemsize]))
            else:
                known = self._put_taken(read, taken, (slab, block.box))
                self._count_taken(read, taken, known=known)
        self._sources.read(in_place)
        for read, buffer in in_place:
            self._sources.count(read.file, len(buffer))
        return slab, kinds

    def _put_taken(self, read: Access, taken: Box, to: BoxInMemory) -> bool:
        """Put what a block takes of a read into it; gives whether the read was here already. What is made next may
        take the rest, which is kept where there is more than the piece.
        """
        from reshard.moving.elements import copy_between

        base = self.blocks.base
        piece = base.pieces[read.piece]
        nbytes = read.box.size * ITEMSIZE[base.dtype]
        content = (self._sources, read.file, read.ranges, read.rows, nbytes)
        wide, known = self._scratch.known(content, nbytes, self.block_nbytes if piece.outer else 0)
        if not known:
            self._sources.read_into(read, wide)
        copy_between(to, (wide, read.box), taken, base.dtype, piece.order)
        return known

    def _count_taken(self, read: Access, taken: Box, *, known: bool) -> None:
        """Of a read that brings more than the piece, what is taken counts: the rest does with what takes that, unless
        each of them reads for itself.
        """
        base = self.blocks.base
        elements = taken.size
        if base.pieces[read.piece].outer and self._sources.front_to_back:
            elements = 0 if known else read.box.size
        self._sources.count(read.file, elements * ITEMSIZE[base.dtype])

    def _put_made(self, read: Access, taken: Box, to: BoxInMemory, kinds: Array | None) -> Array | None:
        """Put what a part makes into the block; gives ``kinds`` with what of it did not fit."""
        import numpy as np

        from reshard.moving.elements import copy_between

        base, (_, box) = self.blocks.base, to
        piece = base.pieces[read.piece]
        part = memoryview(bytearray(read.box.size * ITEMSIZE[base.dtype]))
        odd = self._parts.read_into(read, part)
        copy_between(to, (part, read.box), taken, base.dtype, piece.order)
        if odd is None:
            return kinds
        kinds = np.zeros(box.shape, np.uint8) if kinds is None else kinds
        copy_between((kinds.data, box), (odd.data, read.box), taken, "uint8", piece.order)
        return kinds

    def _cut(self, slab: memoryview, box: Box, dtype: str, write: Access) -> memoryview:
        """The bytes of a target access, in its dtype."""
        target = self.blocks.move.dtype
        itemsize = ITEMSIZE[target]
        at = write.box.place_in(box) if dtype == target else None
        if at is not None:
            return slab[at * itemsize : (at + write.box.size) * itemsize]
        from reshard.moving.elements import cast_out, copy_between

        out = self._scratch.take("write", write.box.size * itemsize)
        if dtype == target:
            copy_between((out, write.box), (slab, box), box, dtype)
        else:
            self._tell(write, cast_out((out, write.box), target, (slab, box), dtype))
        return out


def _by_tensor(move: Move, write: Access, kinds: Array) -> Iterator[tuple[str, Box, Array]]:
    """The tensors of a target access, each with its box in the file and the kinds of its own elements."""
    box = move.targets[write.piece].box
    if not move.stacked:
        yield move.name, box, kinds
        return
    shape, start, stop = move.step.base.shape[1:], box.start[1:], box.stop[1:]
    for each, odd in zip(move.stacked[write.box.start[0] : write.box.stop[0]], kinds, strict=True):
        in_a_row = each.shape != shape
        held = boxes_of_range(each.shape, *start, *stop) if in_a_row else (Box(start, stop),)
        yield each.name, held[0], odd


class Span(Struct, frozen=True):
    """Consecutive blocks of moves that read the same for each, carried out by one thread in order."""

    movers: tuple[Mover, ...]
    start: int
    stop: int


def in_lots(
    works: Iterable[tuple[T, int, int]], lot_nbytes: int, most: int = sys.maxsize
) -> Iterator[list[tuple[T, int, int]]]:
    """Lots of about so many bytes, and of so many works at most: a large work in several lots, many small ones in one.

    Args:
        works: each with how many blocks and how many bytes it has.

    Yields:
        Of each lot the works, with the first of their blocks and the one behind the last.

    >>> list(in_lots([("large", 4, 40), ("a", 1, 5), ("b", 1, 5)], 20))
    [[('large', 0, 2)], [('large', 2, 4)], [('a', 0, 1), ('b', 0, 1)]]
    """
    lot: list[tuple[T, int, int]] = []
    room = lot_nbytes
    for work, blocks, nbytes in works:
        block_nbytes = max(nbytes // max(blocks, 1), 1)
        start = 0
        while start < blocks:
            stop = min(start + max(room // block_nbytes, 1), blocks)
            lot.append((work, start, stop))
            room -= (stop - start) * block_nbytes
            start = stop
            if room < block_nbytes or len(lot) >= most:
                yield lot
                lot, room = [], lot_nbytes
    if lot:
        yield lot
