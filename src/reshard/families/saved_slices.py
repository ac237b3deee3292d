"""Slices in a safetensors file: PyTorch's distributed checkpoint notes in it where in their tensors they begin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from reshard.errors import FormatError
from reshard.formats.base import SHARDING
from reshard.index import Contents
from reshard.layout.box import Box


class SavedSlice(Struct, frozen=True):
    """The box that is there; ``full`` is the tensor's shape, where that is noted, too."""

    box: Box
    full: tuple[int, ...] | None = None


def is_of_slices(contents: Contents) -> bool:
    """Whether a file notes where its tensors begin."""
    return SHARDING in contents.notes


def slices_of(contents: Contents) -> dict[str, SavedSlice]:
    """Each tensor of a file as a slice; one of which nothing is noted begins where its tensor does.

    Raises FormatError for a note that cannot be understood.
    """
    try:
        noted = json.loads(contents.notes.get(SHARDING, "{}"))
        places = {str(name): _noted(entry) for name, entry in noted.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise FormatError(f"its note {SHARDING} is not understood: nobody can know which slices it holds") from None
    found: dict[str, SavedSlice] = {}
    for name, stored in contents.tensors.items():
        shape = stored.spec.shape
        start, full = places.get(name, ((0,) * len(shape), None))
        if len(start) != len(shape) or (full is not None and len(full) != len(shape)):
            raise FormatError(f"{name}: a slice of shape {list(shape)} that begins at {list(start)}")
        found[name] = SavedSlice(Box(start, tuple(a + n for a, n in zip(start, shape, strict=True))), full)
    return found


def _noted(entry: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    start, full = entry["saved_offsets"], entry.get("global_shape")
    return tuple(map(_count, start)), tuple(map(_count, full)) if full is not None else None


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value
