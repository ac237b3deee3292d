"""Target pieces as arrays in memory: mapped from the file where its bytes lie together, read where they do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from reshard.dtypes import numpy_dtype
from reshard.moving.elements import shaped
from reshard.moving.mover import collect
from reshard.moving.scratch import Scratch
from reshard.moving.task_inputs import Sources
from reshard.planning.blocks import Blocks
from reshard.planning.plan import Move, SourceFile
from reshard.storage.storages import storage_of

_WHOLE = 1 << 62
Array = npt.NDArray[Any]


def load_array(move: Move, files: tuple[SourceFile, ...]) -> Array:
    """The one target piece of a move as an array that the caller owns; writing to it never changes a file.

    Where one source file holds all its bytes together the array is a private map of them: nothing is read until it
    is used.
    """
    mapped = _mapped(move, files)
    return mapped if mapped is not None else _read(move, files)


def _mapped(move: Move, files: tuple[SourceFile, ...]) -> Array | None:
    blocks = Blocks(move, _WHOLE)
    base = move.step.base
    if move.step is not base or base.order or base.dtype != move.dtype or len(blocks) != 1:
        return None
    (read, *others) = blocks[0].reads
    box = move.targets[0].box
    if others or read.box != box or len(read.ranges) != 1 or storage_of(files[read.file].path).remote:
        return None
    sources = Sources(files)
    try:
        sources.check(read.file)
    finally:
        sources.close()
    return np.memmap(
        files[read.file].path,
        numpy_dtype(move.dtype),
        mode="c",
        offset=read.ranges[0].offset,
        shape=box.shape,
    )


def _read(move: Move, files: tuple[SourceFile, ...]) -> Array:
    sources = Sources(files)
    try:
        return shaped(collect(move, sources, Scratch()), move.dtype, move.targets[0].box)
    finally:
        sources.close()


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
