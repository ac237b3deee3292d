"""The optimizer's states in FSDP's files: they go by numbers, and whose they are, the weights' order and shapes tell.

Parameters are numbered in the order in which the model names them, those alone that are trained. FSDP2 keeps states
cut as their weights are. FSDP1 keeps of each the run of its numbers that falls on the rank's part of a flat parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from msgspec import Struct

from reshard.errors import CheckpointError
from reshard.families.fsdp_files import FsdpFile, Mine, OptimizerFile
from reshard.families.torch_parts import refuse_mixed_steps
from reshard.index import TensorSpec, cut_extents
from reshard.layout.cover import boxes_of_range
from reshard.planning.catalog import Held, Shard, Tensor, tensor_of_shards

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d+)\.")
_Number = int | str


class States(Struct, frozen=True):
    """What there is of states.

    Attributes:
        withheld: by name, why states that are there cannot be told apart.
        warnings: what was assumed.
        lacking: files that should be there.
    """

    tensors: Mapping[str, Tensor]
    withheld: Mapping[str, str] = {}
    warnings: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()


def states_of(
    models: Sequence[FsdpFile], optimizers: Sequence[OptimizerFile], frozen: re.Pattern[str] | None = None
) -> States:
    """All states by their weights' names. Raises CheckpointError where ranks contradict each other.

    Args:
        frozen: matches the names of weights that are known to have none.
    """
    refuse_mixed_steps((one.step, one.file.name) for one in optimizers)
    groups = optimizers[0].groups
    for other in optimizers:
        if other.groups != groups:
            raise CheckpointError(f"its parameters are others than those of {optimizers[0].file.name}", other.file.path)
    numbers = [number for group in groups for number in group]
    kinds = sorted({kind for one in optimizers for held in one.held.values() for kind in held})
    held = {name: mine for name, mine in models[0].held.items() if frozen is None or not frozen.search(name)}
    plain = all(mine.plain for mine in models[0].held.values())
    weights = _trained(held, plain=plain)
    states = [mine for one in optimizers for kinds in one.held.values() for mine in kinds.values()]
    cut = any(not mine.plain for mine in states)
    unnamed = f"<{len(numbers)} parameters of the optimizer>"
    if cut and (whole := [number for number in numbers if _is_whole(number, optimizers)]):
        why = f"each rank holds {len(whole)} of them whole, as FSDP leaves what it ignores: which these are is not told"
        return States({}, {f"{kind}.{unnamed}": why for kind in kinds})
    if plain and not cut and any(len(mine.spec.shape) > 1 for mine in states):
        optimizers, cut = optimizers[:1], True  # NO_SHARD: each rank has all of them in their own shapes
    for world in (len(optimizers),) if cut else _group_sizes(len(optimizers)):
        ranks = optimizers if cut else optimizers[:world]
        sizes = {number: _size(number, ranks, cut=cut) for number in numbers}
        found, told = _named(groups, weights, sizes), ""
        if found is None and frozen is None:
            found, told = _without_first_layers(groups, weights, sizes)
        if found is not None:
            warnings = (told,) if told else ()
            made = (_states(number, name, weights[name], ranks, cut=cut) for number, name in found.items())
            return States({tensor.name: tensor for of_number in made for tensor in of_number}, warnings=warnings)
    why = f"which of {len(weights)} weights the optimizer's {len(numbers)} parameters are, nothing in the files says"
    why += "; --frozen says which were not trained" if cut else " (flat parameters, use_orig_params=False)"
    return States({}, {f"{kind}.{unnamed}": why for kind in kinds})


def _trained(held: Mapping[str, Mine], *, plain: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of what may be a parameter, in order: buffers are plain, unless all is, and of tied names the first one
    counts.
    """
    found: dict[str, tuple[int, ...]] = {}
    seen: set[tuple[str, int]] = set()
    for name, mine in held.items():
        if (mine.plain and not plain) or (mine.storage[0] and mine.storage in seen):
            continue
        seen.add(mine.storage)
        found[name] = mine.spec.shape
    return found


def _group_sizes(world: int) -> Iterator[int]:
    """How many ranks may hold a flat parameter together: all, or as many as divide them, and others hold the same."""
    return (n for n in range(world, 0, -1) if world % n == 0)


def _size(number: _Number, ranks: Sequence[OptimizerFile], *, cut: bool) -> tuple[int, ...] | int | None:
    """The shape of a parameter's states, or of pieces how many numbers they have together; None without states."""
    kinds = {kind for one in ranks for kind, mine in one.held.get(number, {}).items() if mine.spec.shape}
    if not kinds:
        return None
    kind = min(kinds)
    mine = [held[kind] for one in ranks if kind in (held := one.held.get(number, {}))]
    return mine[0].spec.shape if cut else sum(prod(one.spec.shape) for one in mine)


def _is_whole(number: _Number, ranks: Sequence[OptimizerFile]) -> bool:
    """Whether ranks hold all of a parameter's states, though others are cut."""
    states = [mine for one in ranks for mine in one.held.get(number, {}).values() if mine.spec.shape]
    return bool(states) and isinstance(number, int) and all(mine.plain for mine in states)


def _named(
    groups: Sequence[Sequence[_Number]],
    weights: Mapping[str, tuple[int, ...]],
    sizes: Mapping[_Number, tuple[int, ...] | int | None],
) -> dict[_Number, str] | None:
    """The weight of each parameter, where order and sizes leave one choice only; else None."""
    found: dict[_Number, str] = {}
    names = list(weights)
    for group in groups:
        if all(isinstance(number, str) and number in weights for number in group):
            found |= {number: str(number) for number in group}
            continue
        first = _matched(group, names, weights, sizes)
        last = _matched(list(reversed(group)), list(reversed(names)), weights, sizes)
        if first is None or first != last:
            return None
        found |= first
    return found if len(set(found.values())) == len(found) else None


def _without_first_layers(
    groups: Sequence[Sequence[_Number]],
    weights: Mapping[str, tuple[int, ...]],
    sizes: Mapping[_Number, tuple[int, ...] | int | None],
) -> tuple[dict[_Number, str] | None, str]:
    """The weights of parameters where these are all but those of the first whole layers, and what is said of that:
    training freezes the first layers, if whole ones and no others, but the files do not say that it did.
    """
    layers = sorted({int(match[1]) for name in weights if (match := _LAYER.search(name))})
    for count in range(1, len(layers)):
        frozen = set(layers[:count])
        left = {n: s for n, s in weights.items() if not ((match := _LAYER.search(n)) and int(match[1]) in frozen)}
        found = _named(groups, left, sizes) if len(left) == len(sizes) else None
        if found is not None:
            which = f"layer {layers[0]}" if count == 1 else f"layers {layers[0]} to {layers[count - 1]}"
            told = (
                f"the optimizer numbers {len(sizes)} of {len(weights)} weights and does not say which: those of "
                f"{which} are taken for frozen, as the first layers are where whole ones are; --frozen says otherwise"
            )
            return found, told
    return None, ""


def _matched(
    group: Sequence[_Number],
    names: Sequence[str],
    weights: Mapping[str, tuple[int, ...]],
    sizes: Mapping[_Number, tuple[int, ...] | int | None],
) -> dict[_Number, str] | None:
    """Each parameter at the first name that its size fits, after those before it: from both ends the same, there is no
    other way.
    """
    found: dict[_Number, str] = {}
    left = iter(names)
    for number in group:
        size = sizes[number]
        name = next((n for n in left if size is None or size in (weights[n], prod(weights[n]))), None)
        if name is None:
            return None
        found[number] = name
    return found


def _states(
    number: _Number, name: str, shape: tuple[int, ...], ranks: Sequence[OptimizerFile], *, cut: bool
) -> Iterator[Tensor]:
    for kind in sorted({kind for one in ranks for kind in one.held.get(number, {})}):
        mine = [held[kind] for one in ranks if kind in (held := one.held.get(number, {}))]
        spec = mine[0].spec
        if not spec.shape:  # a step, which all ranks have
            yield tensor_of_shards(f"{kind}.{name}", spec, mine[0].shards)
        elif cut:
            _refuse_others(f"{kind}.{name}", mine)
            shards = [shard for one in mine for shard in one.shards][: None if not mine[0].plain else 1]
            yield tensor_of_shards(f"{kind}.{name}", spec, shards)
        else:
            yield tensor_of_shards(f"{kind}.{name}", TensorSpec(spec.dtype, shape), _pieces(shape, mine))


def _refuse_others(name: str, mine: Sequence[Mine]) -> None:
    specs = {one.spec for one in mine}
    if len(specs) > 1:
        raise CheckpointError(f"{name}: {' and '.join(map(str, specs))} on different ranks")


def _pieces(shape: tuple[int, ...], mine: Sequence[Mine]) -> Iterator[Shard]:
    """One after the other they are the tensor, row-major."""
    start = 0
    for one in mine:
        (shard,) = one.shards
        (held,) = shard.held
        at, itemsize = 0, one.spec.itemsize
        for box in boxes_of_range(shape, start, start + shard.box.size):
            extents = cut_extents(held.extents, at * itemsize, box.size * itemsize)
            yield Shard(box, (Held(held.file, extents),), shard.expected)
            at += box.size
        start += at
