"""Target pieces as arrays in memory: mapped from the file where its bytes lie together, read where they do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from reshard.dtypes import ITEMSIZE, numpy_dtype
from reshard.index import ZEROS, cut_extents
from reshard.moving.mover import collect
from reshard.moving.scratch import Scratch
from reshard.moving.task_inputs import Sources
from reshard.planning.plan import Move, Plan, SourceFile
from reshard.planning.steps import Assembly
from reshard.planning.tasks import tasks
from reshard.storage.storages import storage_of

Array = npt.NDArray[Any]


def load_array(move: Move, files: tuple[SourceFile, ...], shape: tuple[int, ...]) -> Array:
    """What a move makes for one file, as an array of this shape that the caller owns; writing to it never changes a
    file.

    Where one source file holds all its bytes together the array is a private map of them: nothing is read until it
    is used.
    """
    mapped = _mapped(move, files, shape)
    return mapped if mapped is not None else _read(move, files, shape)


def _mapped(move: Move, files: tuple[SourceFile, ...], shape: tuple[int, ...]) -> Array | None:
    step, box = move.step, move.targets[0].box
    if not isinstance(step, Assembly) or step.dtype != move.dtype or len(move.targets) > 1 or not box.size:
        return None
    pieces = [piece for piece in step.pieces if piece.box.meets(box)]
    at = box.place_in(pieces[0].stored)
    if len(pieces) > 1 or pieces[0].file == ZEROS or pieces[0].order or at is None:
        return None
    itemsize = ITEMSIZE[step.dtype]
    ranges = cut_extents(pieces[0].extents, at * itemsize, box.size * itemsize)
    if len(ranges) > 1 or ranges[0].coded or storage_of(files[pieces[0].file].path).remote:
        return None
    with closing(Sources(files)) as sources:
        sources.opened(pieces[0].file)  # refused where it is not the one that was planned
    path, offset = files[pieces[0].file].path, ranges[0].offset
    return np.memmap(path, numpy_dtype(move.dtype), mode="c", offset=offset, shape=shape)


def _read(move: Move, files: tuple[SourceFile, ...], shape: tuple[int, ...]) -> Array:
    with closing(Sources(files)) as sources:
        return np.frombuffer(_collected(move, sources), numpy_dtype(move.dtype)).reshape(shape)


def _collected(move: Move, sources: Sources) -> bytearray:
    """All target pieces of a move, as they lie in their file: a cut parts what the view of its tensor joins."""
    if len(move.targets) == 1:
        return collect(move, sources, Scratch())
    start = min(extent.offset for piece in move.targets for extent in piece.extents)
    out = bytearray(sum(extent.nbytes for piece in move.targets for extent in piece.extents))
    for piece in move.targets:
        left = memoryview(collect(replace(move, targets=(piece,)), sources, Scratch()))
        for extent in piece.extents:
            at = extent.offset - start
            out[at : at + extent.nbytes], left = left[: extent.nbytes], left[extent.nbytes :]
    return out


class LazyArrays(Mapping[str, Array]):
    """Arrays by name, each made anew whenever it is asked for; names alone cost nothing. The caller owns every
    array.
    """

    def __init__(self, plan: Plan) -> None:
        """Those of a plan's one file."""
        (file,) = plan.files
        (task,) = tasks(plan)
        self._moves = {move.name: move for move in task.moves}
        self._files = task.sources
        self._shapes = {plan.tensors[slot.tensor].name: box.shape for slot, box in plan.slots(file)}

    def __getitem__(self, name: str) -> Array:
        return load_array(self._moves[name], self._files, self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._moves)

    def __len__(self) -> int:
        return len(self._moves)

    def __repr__(self) -> str:
        return f"<{len(self)} arrays, loaded when asked for>"
