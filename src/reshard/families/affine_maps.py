"""Where the parts of each tensor-parallel slice lie in the whole tensor, where DeepSpeed saved that along (AutoTP).

Source: DeepSpeed 0.19.8, ``checkpoint/affine.py``: offsets and strides, of the whole and of the slice, for each rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from msgspec import Struct

from reshard.errors import CheckpointError
from reshard.layout.box import Box

_VERSION = 1
_Shape = tuple[int, ...]


class MappedSlice(Struct, frozen=True):
    """``shape``: of the whole; ``parts``: boxes of the rank's slice, and of the whole, that are the same elements."""

    shape: _Shape
    parts: tuple[tuple[Box, Box], ...]


def mapped(name: str, told: Any, shapes: Sequence[_Shape]) -> list[MappedSlice]:
    """What each rank's slice, of these shapes, is. Raises CheckpointError for a map that is not of these, or that does
    not move blocks as they are.
    """
    whole = _counts(_in(told, "logical_shape"))
    found = []
    for rank, shape in enumerate(shapes):
        mine = _in(_in(told, "ranks"), rank)
        pieces = _in(mine, "pieces")
        if whole is None or _counts(_in(mine, "shard_shape")) != shape or not isinstance(pieces, list):
            raise CheckpointError(f"{name}: its affine_map does not tell of a slice {list(shape)} on rank {rank}")
        found.append(MappedSlice(whole, tuple(_parts(name, pieces, shape, whole))))
    return found


def affine_maps(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """By pattern of names. Raises CheckpointError for those of a release that is not known."""
    told = info.get("affine_map")
    if not isinstance(told, dict):
        return {}
    maps = told.get("params")
    if told.get("version", _VERSION) != _VERSION or not isinstance(maps, dict):
        raise CheckpointError(f"universal_checkpoint_info: affine_map of version {str(told.get('version'))[:20]}")
    return {pattern: one for pattern, one in maps.items() if isinstance(pattern, str)}


def _parts(name: str, pieces: Sequence[Any], shape: _Shape, whole: _Shape) -> Iterator[tuple[Box, Box]]:
    for piece in pieces:
        sizes = _counts(_in(piece, "shape"))
        here, there = _box(_in(piece, "dest"), sizes, shape), _box(_in(piece, "source"), sizes, whole)
        if here is None or there is None or _in(piece, "scale") not in (None, 1.0):
            raise CheckpointError(f"{name}: its affine_map is of no blocks, or scales them, which is not undone")
        yield here, there


def _box(place: Any, sizes: _Shape | None, shape: _Shape) -> Box | None:
    """The block of a tensor that begins at an offset; None where it does not lie in it row by row."""
    if sizes is None or not isinstance(place, list | tuple) or len(place) != 2 or len(sizes) != len(shape):
        return None
    strides = tuple(prod(shape[dim + 1 :]) for dim in range(len(shape)))
    offset = place[0]
    if type(offset) is not int or offset < 0 or _counts(place[1]) != strides:
        return None
    start = []
    for stride in strides:
        start.append(offset // stride if stride else 0)
        offset -= start[-1] * stride
    stop = tuple(at + n for at, n in zip(start, sizes, strict=True))
    return Box(tuple(start), stop) if all(end <= n for end, n in zip(stop, shape, strict=True)) else None


def _in(value: Any, key: Any) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _counts(value: Any) -> _Shape | None:
    ok = isinstance(value, list | tuple) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)
    return tuple(value) if ok else None
