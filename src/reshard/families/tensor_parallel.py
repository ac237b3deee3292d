"""Slices of tensor-parallel ranks → whole tensors, by the patterns that Megatron-DeepSpeed saves beside them.

Source: DeepSpeed 0.19.8, ``checkpoint/ds_to_universal.py``: the first pattern that fits the beginning of a name counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError
from reshard.families.affine_maps import affine_maps, mapped
from reshard.index import TensorSpec
from reshard.layout.box import Box
from reshard.planning.catalog import Shard

_AVERAGED = "parameter_to_average_patterns"
_SUB_PARAMS = "parameter_with_sub_params"
_UNSUPPORTED = "autotp_unsupported_parameter_patterns"


class RankSlice(Struct, frozen=True):
    """What one rank holds of a tensor; ``name`` is the parameter's, also of its states."""

    name: str
    spec: TensorSpec
    shards: tuple[Shard, ...]


Slices = dict[str, RankSlice]


class TensorCut(Struct, frozen=True):
    """How a parameter is cut among tensor-parallel ranks.

    Attributes:
        whole: each rank has all of it.
        dim: along which it is cut otherwise.
        halves: parts that lie one after the other, each cut on its own.
        vocabulary: its rows end where the vocabulary does; what follows is padding.
    """

    whole: bool
    dim: int
    halves: int
    vocabulary: bool


def cut_of(name: str, info: Mapping[str, Any]) -> TensorCut:
    """As the patterns say that were saved along. Raises CheckpointError for cuts that are not undone."""

    def fits(kind: str) -> bool:
        patterns = info.get(kind)
        listed = patterns if isinstance(patterns, list | tuple | dict) else ()
        return any(isinstance(p, str) and _pattern(p).match(name) for p in listed)

    if fits(_UNSUPPORTED):
        raise CheckpointError(
            f"{name}: DeepSpeed itself does not know how its slices are put together ({_UNSUPPORTED})"
        )
    whole = fits("tp_replicated_parameter_patterns")
    if not whole and (fits(_AVERAGED) or info.get(_SUB_PARAMS)):
        raise CheckpointError(f"{name}: slices that are to be averaged, or of several parts each, are not merged")
    halves = 2 if fits("parameter_with_2_sub_params_cat_dim_0") else 1
    dim = 1 if halves == 1 and fits("parameter_with_row_parallelism_patterns") else 0
    return TensorCut(whole, dim, halves, fits("vocabulary_parameter_patterns"))


@cache
def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError):
        raise CheckpointError(f"universal_checkpoint_info: {text[:60]!r} is not a regular expression") from None


def merged(slices: Sequence[Mapping[str, RankSlice]], info: Mapping[str, Any]) -> dict[str, RankSlice]:
    """The tensors of which each rank holds a slice. Raises CheckpointError where nothing says how they were cut."""
    if len(slices) == 1:
        return dict(slices[0])
    if not info:
        raise CheckpointError(
            f"{len(slices)} tensor-parallel ranks, and no universal_checkpoint_info says how parameters are cut",
            hint="save with it (Megatron-DeepSpeed sets it), for nobody can know which dim was cut",
        )
    names = {name for held in slices for name in held}
    lacking = sorted(name for name in names if any(name not in held for held in slices))
    if lacking:
        raise CheckpointError(f"not all tensor-parallel ranks hold {lacking[0]}")
    maps = affine_maps(info)
    return {name: _merged(name, [held[name] for held in slices], info, maps) for name in slices[0]}


def map_of(name: str, maps: Mapping[str, Any]) -> Any:
    """Where its slices lie, if that was saved for each rank; it counts before all patterns. None if not."""
    own = maps.get(f"^{re.escape(name)}$")  # as AutoTP writes them
    return own or next((one for pattern, one in maps.items() if _pattern(pattern).match(name)), None)


def _by_map(name: str, slices: Sequence[RankSlice], told: Any) -> RankSlice:
    """The tensor whose slices lie as they are mapped; of what several ranks hold, parts that lie in files alike."""
    found = mapped(name, told, [slice_.spec.shape for slice_ in slices])
    if len({slice_.spec.dtype for slice_ in slices}) > 1:
        raise CheckpointError(f"{name}: its slices are {', '.join(str(slice_.spec) for slice_ in slices)}")
    placed: dict[Box, list[Shard]] = {}
    for slice_, mine in zip(slices, found, strict=True):
        for here, there in mine.parts:
            shards = list(_shifted(slice_.shards, here, there))
            first = placed.setdefault(there, [])
            if not first or [shard.box for shard in first[: len(shards)]] == [shard.box for shard in shards]:
                first += shards
    spec = TensorSpec(slices[0].spec.dtype, found[0].shape)
    return RankSlice(slices[0].name, spec, tuple(shard for shards in placed.values() for shard in shards))


def _shifted(shards: Sequence[Shard], here: Box, there: Box) -> Iterator[Shard]:
    """What of a slice's shards lies in the box ``here``, as it lies in the whole, where that box is ``there``."""
    by = tuple(b - a for a, b in zip(here.start, there.start, strict=True))
    for shard in shards:
        box = Box(*(tuple(n + m for n, m in zip(end, by, strict=True)) for end in (shard.box.start, shard.box.stop)))
        kept = box & there
        if kept.size:
            yield Shard(kept, tuple(replace(h, outer=None if kept == box else box) for h in shard.held), shard.expected)


def _merged(name: str, slices: Sequence[RankSlice], info: Mapping[str, Any], maps: Mapping[str, Any]) -> RankSlice:
    told = map_of(slices[0].name, maps)
    if told is not None:
        return _by_map(name, slices, told)
    cut = cut_of(slices[0].name, info)
    if cut.whole:
        return _replicas(slices)
    dim, halves = cut.dim, cut.halves
    local, specs = slices[0].spec.shape, {slice_.spec for slice_ in slices}
    if len(specs) > 1 or dim >= len(local) or local[dim] % halves:
        raise CheckpointError(f"{name}: its slices {', '.join(map(str, specs))} cannot be put together in dim {dim}")
    each = local[dim] // halves
    size = each * halves * len(slices)
    if cut.vocabulary and isinstance(info.get("original_vocab_size"), int):
        size = min(size, info["original_vocab_size"])
    whole = _along(local, dim, 0, size)
    shards: list[Shard] = []
    for rank, slice_ in enumerate(slices):
        for half in range(halves):
            start = (half * len(slices) + rank) * each
            here = _along(local, dim, half * each, (half + 1) * each)
            shards += _shifted(slice_.shards, here, _along(local, dim, start, start + each) & whole)
    return RankSlice(slices[0].name, TensorSpec(slices[0].spec.dtype, whole.shape), tuple(shards))


def _along(shape: tuple[int, ...], dim: int, start: int, stop: int) -> Box:
    """The box of a shape that has this range in one dim."""
    return Box(
        tuple(start if d == dim else 0 for d in range(len(shape))),
        tuple(stop if d == dim else n for d, n in enumerate(shape)),
    )


def _replicas(slices: Sequence[RankSlice]) -> RankSlice:
    """What each rank has all of, by all ranks of which the same parts lie in files."""
    boxes = [[shard.box for shard in slice_.shards] for slice_ in slices]
    shards = (
        shard for slice_, of_rank in zip(slices, boxes, strict=True) if of_rank == boxes[0] for shard in slice_.shards
    )
    return replace(slices[0], shards=tuple(shards))
