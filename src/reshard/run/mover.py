"""Blocks of a move → the bytes of each target piece, read once and handed on in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from reshard.dtypes import ITEMSIZE, numpy_dtype
from reshard.errors import CheckpointError
from reshard.index import Extent
from reshard.layout.box import Box
from reshard.planning.blocks import Access, Block, Blocks
from reshard.planning.plan import Factor, LoraAdd, Move, Piece, SourceFile
from reshard.run.cast import cast_into
from reshard.run.lora import add_lora, check_finite, factor_boxes
from reshard.run.storage import ReadFile
from reshard.run.stores import storage_of

Sink = Callable[[Access, memoryview], None]
"""Takes the bytes of one access to a target piece. They are valid during the call only."""

Array = npt.NDArray[Any]
_STILL = "start again when nothing writes it"
_COLLECT_BLOCK_NBYTES = 8 << 20
_PLAIN: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("u2"), 4: np.dtype("u4"), 8: np.dtype("u8")}


class Sources:
    """The source files of a task, each opened when first read, and checked to be the file that was planned."""

    def __init__(self, files: tuple[SourceFile, ...]) -> None:
        self._files = files
        self._open: dict[int, ReadFile] = {}
        self._lock = threading.Lock()
        self.read_nbytes = 0

    def read_into(self, access: Access, buffer: memoryview) -> None:
        file = self._file(access.file)
        at = 0
        for extent in access.ranges:
            file.read_into(extent.offset, buffer[at : at + extent.nbytes])
            at += extent.nbytes
        with self._lock:
            self.read_nbytes += at

    def _file(self, number: int) -> ReadFile:
        with self._lock:
            file = self._open.get(number)
        if file is not None:
            return file
        planned = self._files[number]
        file = storage_of(planned.path).open(planned.path)  # not under the lock: a store is far away
        with self._lock:
            kept = self._open.setdefault(number, file)
        if kept is not file:
            file.close()
        if (kept.nbytes, kept.mtime_ns) != (planned.nbytes, planned.mtime_ns):
            raise CheckpointError("the file changed after it was planned", planned.path, _STILL)
        return kept

    def check(self, number: int) -> None:
        """Raises CheckpointError where a file is not the one that was planned."""
        self._file(number)

    def check_unchanged(self) -> None:
        """Raises CheckpointError where a file was written to while it was read."""
        with self._lock:
            for number, file in self._open.items():
                if file.changed():
                    raise CheckpointError("the file changed while it was read", self._files[number].path, _STILL)

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()


class Scratch(threading.local):
    """Buffers that a thread keeps, so that memory is neither zeroed nor faulted in again for every block."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def take(self, use: str, nbytes: int) -> Array:
        """Bytes to write to; what they held before is lost."""
        buffer = self._buffers.get(use)
        if buffer is None or buffer.nbytes < nbytes:
            buffer = self._buffers[use] = np.empty(max(nbytes, 1 << 20), np.uint8)
        return buffer[:nbytes]


def collect(move: Move, sources: Sources, scratch: Scratch) -> Array:
    """The one target piece of a move as a new array in the target's dtype."""
    target = replace(move.targets[0], file=0, extents=(Extent(0, _piece_nbytes(move)),))
    out = np.empty(target.box.shape, numpy_dtype(move.target_dtype))
    content = out.reshape(-1).view(np.uint8).data

    def take(access: Access, data: memoryview) -> None:
        start = access.ranges[0].offset
        content[start : start + len(data)] = data

    mover = Mover(replace(move, targets=(target,)), sources, scratch, _COLLECT_BLOCK_NBYTES)
    mover.run(range(len(mover.blocks)), take)
    return out


def _piece_nbytes(move: Move) -> int:
    return move.targets[0].box.size * numpy_dtype(move.target_dtype).itemsize


class Mover:
    """Carries out one move, any of its blocks in any thread."""

    def __init__(self, move: Move, sources: Sources, scratch: Scratch, block_nbytes: int) -> None:
        self.blocks = Blocks(move, block_nbytes)
        self._sources = sources
        self._scratch = scratch
        self._plain: np.dtype[Any] = _PLAIN[ITEMSIZE[move.source_dtype]]
        self._source = self._target = self._plain
        if move.lora or move.source_dtype != move.target_dtype:
            self._source, self._target = numpy_dtype(move.source_dtype), numpy_dtype(move.target_dtype)

    def run(self, numbers: Iterable[int], sink: Sink) -> None:
        """Give ``sink`` the bytes of these blocks. In rising order they reach each target piece from front to back."""
        for number in numbers:
            block = self.blocks[number]
            if block.writes:
                lora = self.blocks.move.lora
                slab = self._gather(block) if lora is None else self._gather_lora(lora, block)
                for write in block.writes:
                    sink(write, self._cut(slab, block.box, write))

    def _gather(self, block: Block) -> Array:
        """The block's elements, from all its source pieces; plain unsigned integers of the source's size."""
        slab = self._scratch.take("slab", block.box.size * self._plain.itemsize).view(self._plain)
        slab = slab.reshape(block.box.shape)
        for read in block.reads:
            part = read.box & block.box
            region = slab[part.within(block.box)]
            if part == read.box and region.flags.c_contiguous:
                self._sources.read_into(read, region.reshape(-1).view(np.uint8).data)
                continue
            wide = self._scratch.take("read", read.box.size * self._plain.itemsize)
            self._sources.read_into(read, wide.data)
            region[...] = wide.view(self._plain).reshape(read.box.shape)[part.within(read.box)]
        return slab

    def _gather_lora(self, lora: LoraAdd, block: Block) -> Array:
        """As _gather, with the low-rank product added, in the target's dtype."""
        a, b = (
            collect(_part(factor, box), self._sources, self._scratch)
            for factor, box in zip((lora.a, lora.b), factor_boxes(lora, block.box), strict=True)
        )
        weight = self._gather(block).view(self._source)
        made = self._scratch.take("sum", weight.size * self._target.itemsize).view(self._target).reshape(weight.shape)
        add_lora(lora, made, weight, a, b)
        check_finite(self.blocks.move.name, lora, block.box, (weight, a, b), made)
        return made.view(_PLAIN[self._target.itemsize])

    def _cut(self, slab: Array, box: Box, write: Access) -> memoryview:
        """The bytes of a target access, in its dtype."""
        region = slab[write.box.within(box)]
        if self._source != self._target and self.blocks.move.lora is None:
            out = self._scratch.take("write", write.box.size * self._target.itemsize).view(self._target)
            cast_into(out.reshape(region.shape), region.view(self._source))
            return out.view(np.uint8).data
        if not region.flags.c_contiguous:
            out = self._scratch.take("write", region.nbytes).view(region.dtype)
            out.reshape(region.shape)[...] = region
            region = out
        return region.reshape(-1).view(np.uint8).data


def _part(factor: Factor, box: Box) -> Move:
    """The reading of a box of a factor."""
    dtype = factor.spec.dtype
    return Move("", factor.spec.shape, dtype, dtype, factor.pieces, (Piece(0, box, ()),))
