"""Target pieces as arrays in memory: mapped from the file where its bytes lie together, read where they do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from reshard.dtypes import numpy_dtype
from reshard.index import Extent
from reshard.plan.blocks import Access, Blocks
from reshard.plan.plan import Move, Piece, SourceFile
from reshard.run.mover import Mover, Scratch, Sources
from reshard.run.storage import Disk

_BLOCK_NBYTES = 8 << 20
_WHOLE = 1 << 62
Array = npt.NDArray[Any]


def load_array(move: Move, files: tuple[SourceFile, ...]) -> Array:
    """The one target piece of a move as an array that the caller owns; writing to it never changes a file.

    Where one source file holds all its bytes together the array is a private map of them: nothing is read until it
    is used.
    """
    mapped = _mapped(move, files)
    return mapped if mapped is not None else _read(move, files)


def in_memory(move: Move) -> Move:
    """The same move with its one target laid out from byte 0 on."""
    target = move.targets[0]
    nbytes = target.box.size * numpy_dtype(move.target_dtype).itemsize
    piece = Piece(0, target.box, (Extent(0, nbytes),))
    return Move(move.name, move.shape, move.source_dtype, move.target_dtype, move.sources, (piece,))


def _mapped(move: Move, files: tuple[SourceFile, ...]) -> Array | None:
    blocks = Blocks(move, _WHOLE)
    if move.source_dtype != move.target_dtype or len(blocks) != 1:
        return None
    (read, *others) = blocks[0].reads
    box = move.targets[0].box
    if others or read.box != box or len(read.ranges) != 1:
        return None
    sources = Sources(Disk(), files)
    try:
        sources.check(read.file)
    finally:
        sources.close()
    return np.memmap(
        files[read.file].path,
        numpy_dtype(move.target_dtype),
        mode="c",
        offset=read.ranges[0].offset,
        shape=box.shape,
    )


def _read(move: Move, files: tuple[SourceFile, ...]) -> Array:
    made = in_memory(move)
    out = np.empty(made.targets[0].box.shape, numpy_dtype(move.target_dtype))
    content = out.reshape(-1).view(np.uint8).data

    def take(access: Access, data: memoryview) -> None:
        start = access.ranges[0].offset
        content[start : start + len(data)] = data

    sources = Sources(Disk(), files)
    try:
        mover = Mover(made, sources, Scratch(), _BLOCK_NBYTES)
        mover.run(range(len(mover.blocks)), take)
    finally:
        sources.close()
    return out


class LazyArrays(Mapping[str, Array]):
    """Arrays by name, each made anew whenever it is asked for; names alone cost nothing. The caller owns every
    array.
    """

    def __init__(self, moves: Mapping[str, Move], files: tuple[SourceFile, ...]) -> None:
        self._moves = moves
        self._files = files

    def __getitem__(self, name: str) -> Array:
        return load_array(self._moves[name], self._files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._moves)

    def __len__(self) -> int:
        return len(self._moves)

    def __repr__(self) -> str:
        return f"<{len(self)} arrays, loaded when asked for>"
