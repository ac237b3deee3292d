"""Blocks of a move → the bytes of each target piece, read once and handed on in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from reshard.dtypes import ITEMSIZE
from reshard.index import Extent
from reshard.layout.box import Box
from reshard.planning.blocks import Access, Block, Blocks
from reshard.planning.plan import LoraAdd, Move
from reshard.run.scratch import Scratch
from reshard.run.sources import Sources

Sink = Callable[[Access, memoryview], None]
"""Takes the bytes of one access to a target piece. They are valid during the call only."""

_COLLECT_BLOCK_NBYTES = 8 << 20


def collect(move: Move, sources: Sources, scratch: Scratch) -> bytearray:
    """The bytes of the one target piece of a move."""
    (piece,) = move.targets
    out = bytearray(piece.box.size * ITEMSIZE[move.target_dtype])

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
    (``elements``, ``lora``) is imported when there is such work: NumPy takes longer to come than many a job to run.
    """

    def __init__(self, move: Move, sources: Sources, scratch: Scratch, block_nbytes: int) -> None:
        self.blocks = Blocks(move, block_nbytes)
        self._sources = sources
        self._scratch = scratch

    def run(self, numbers: Iterable[int], sink: Sink) -> None:
        """Give ``sink`` the bytes of these blocks. In rising order they reach each target piece from front to back."""
        for number in numbers:
            block = self.blocks[number]
            if block.writes:
                lora = self.blocks.move.lora
                slab = self._gather_lora(lora, block) if lora else self._gather(block)
                dtype = self.blocks.move.target_dtype if lora else self.blocks.move.source_dtype
                for write in block.writes:
                    sink(write, self._cut(slab, block.box, dtype, write))

    def _gather(self, block: Block) -> memoryview:
        """The block's elements, row-major, from all its source pieces."""
        dtype = self.blocks.move.source_dtype
        itemsize = ITEMSIZE[dtype]
        slab = self._scratch.take("slab", block.box.size * itemsize)
        for read in block.reads:
            at = read.box.place_in(block.box)
            if at is not None:
                self._sources.read_into(read, slab[at * itemsize : (at + read.box.size) * itemsize])
                continue
            from reshard.run.elements import copy_between

            wide = self._scratch.take("read", read.box.size * itemsize)
            self._sources.read_into(read, wide)
            copy_between(slab, block.box, wide, read.box, dtype)
        return slab

    def _gather_lora(self, lora: LoraAdd, block: Block) -> memoryview:
        """As _gather, with the low-rank product added, in the target's dtype."""
        from reshard.run.lora import block_with_lora, factor_moves

        factors = [(move, collect(move, self._sources, self._scratch)) for move in factor_moves(lora, block.box)]
        weight = self._gather(block)  # through the buffers that the factors came through
        made = self._scratch.take("sum", block.box.size * ITEMSIZE[self.blocks.move.target_dtype])
        block_with_lora(self.blocks.move, lora, block.box, made, weight, factors)
        return made

    def _cut(self, slab: memoryview, box: Box, dtype: str, write: Access) -> memoryview:
        """The bytes of a target access, in its dtype."""
        target = self.blocks.move.target_dtype
        itemsize = ITEMSIZE[target]
        at = write.box.place_in(box) if dtype == target else None
        if at is not None:
            return slab[at * itemsize : (at + write.box.size) * itemsize]
        from reshard.run.elements import cast_out, copy_between

        out = self._scratch.take("write", write.box.size * itemsize)
        if dtype == target:
            copy_between(out, write.box, slab, box, dtype)
        else:
            cast_out(out, write.box, target, slab, box, dtype)
        return out
