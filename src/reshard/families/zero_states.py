"""What DeepSpeed's files say of tensors: groups of parameters, what is frozen, tied, or cut among ranks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from reshard.errors import CheckpointError, ReshardError
from reshard.families.tensor_parallel import Slice, Slices, merged
from reshard.families.torch_parts import Flat, TorchPart
from reshard.families.zero_layers import EXPERT, check_experts, items_of, of_experts, of_layers, tensor_of, whole_slice
from reshard.families.zero_partitions import Shapes, consecutive, interleaved
from reshard.families.zero_told import Told, states_of
from reshard.formats.torch_values import TensorRef
from reshard.index import TensorSpec
from reshard.planning.catalog import Shard, Tensor


def tensors_of(told: Told, warnings: list[str]) -> dict[str, Tensor]:
    """All weights and moments; what cannot be named goes to ``warnings``. Raises CheckpointError with what is missing
    or contradictory.
    """
    _check_steps(told)
    tp = told.tensor_parallel
    info = told.model(told.model_parallel[0]).get("universal_checkpoint_info")
    found: dict[str, Tensor] = {}
    for first in told.model_parallel[::tp]:
        slices = [_of_rank(told, mp, warnings) for mp in range(first, first + tp)]
        for name, slice_ in merged(slices, info if isinstance(info, dict) else {}).items():
            found.setdefault(name, tensor_of(name, slice_))  # a tied one lies in several pipeline stages
    found |= of_layers(told, found)
    found |= of_experts(told, {*found})
    check_experts(found)
    return found


def _check_steps(told: Told) -> None:
    """Raises CheckpointError where ranks are of different steps."""
    steps: dict[float, str] = {}
    for part in told.optimizers.values():
        for step in _steps(states_of(part)):
            value = part.scalar(step)
            if value is not None:
                steps.setdefault(value, part.file.name)
    if len(steps) > 1:
        shown = ", ".join(f"step {step:g} in {name}" for step, name in list(steps.items())[:4])
        raise CheckpointError(f"the files are of different steps: {shown}", hint="bring the files of one save")


def _steps(states: dict[str, Any]) -> Iterator[Any]:
    for group in _groups_of_states(states):
        yield group.get("step")


def _groups_of_states(states: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of each group of parameters, in order; empty where training took no step."""
    base = states.get("base_optimizer_state", states.get("optimizer_state_dict", {}))
    if isinstance(base, list):  # saved elastic
        return [group if isinstance(group, dict) else {} for group in base]
    state, groups = base.get("state", {}), base.get("param_groups", [])
    numbers = [n for group in groups for n in group.get("params", ())]
    return [state.get(n, {}) for n in (numbers if len(numbers) >= len(state) else sorted(state))]


def _of_rank(told: Told, mp: int, warnings: list[str]) -> Slices:
    """What one model-parallel rank holds, its data-parallel ranks put together."""
    model = told.models[min(at for at in told.models if at[1] == mp)]
    shapes = _param_shapes(model.value.get("param_shapes"))
    ranks = [told.optimizers[at] for at in sorted(told.optimizers) if at[1] == mp]
    found: Slices = {}
    if ranks:
        _check_groups(ranks, shapes, model)
        found |= _stage3(ranks, shapes) if told.stage == 3 else _stages_1_and_2(ranks, shapes)
    if told.stage == 3:
        found |= _frozen_of_stage_3([told.models[at] for at in sorted(told.models) if at[1] == mp], model, len(ranks))
    shared = model.value.get("shared_params") or {}
    found |= _as_stored(model, {*found, *shared}, told.stage)
    if not ranks and isinstance(model.value.get("optimizer"), dict):
        states = _of_stage_0(model, found)
        if not states and model.value.get("module") is not None:
            warnings.append(
                f"{model.path}: states of its optimizer are left out: nothing says which parameter has which"
            )
        found |= states
    for second, first in shared.items():
        if first in found and second not in found:
            found[second] = found[first]
    return found


def _param_shapes(value: Any) -> list[Shapes]:
    """For each group its parameters in order; one group in old files."""
    groups = [value] if isinstance(value, dict) else list(value or ())
    return [{str(name): tuple(map(int, shape)) for name, shape in group.items()} for group in groups]


def _check_groups(ranks: Sequence[TorchPart], shapes: Sequence[Shapes], model: TorchPart) -> None:
    for part in ranks:
        groups = len(_masters(part))
        if groups != len(shapes):
            raise CheckpointError(
                f"{groups} groups of parameters, and {model.file.name} tells of {len(shapes)}", part.path
            )


def _masters(part: TorchPart) -> list[TensorRef]:
    states = states_of(part)
    found: list[TensorRef] = states.get("fp32_flat_groups", states.get("single_partition_of_fp32_groups")) or []
    return found


def _stages_1_and_2(ranks: Sequence[TorchPart], shapes: Sequence[Shapes]) -> Slices:
    found: Slices = {}
    for number, group in enumerate(shapes):
        holders = _holders(ranks, number)
        for turn, of_turn in enumerate(holders):
            named = {_of_expert(name, turn, group): shape for name, shape in group.items()} if turn else group
            pads = _paddings(of_turn[0], number)
            flats = {"": [part.flat(_masters(part)[number]) for part in of_turn]}
            flats |= _moments(of_turn, number)
            length = max(flat.count for of_kind in flats.values() for flat in of_kind)
            for kind, of_kind in flats.items():
                try:
                    cut = consecutive(named, _clipped(of_kind, flats[""]), pads, length)
                except ReshardError as error:
                    raise CheckpointError(f"group {number}: {error.message}", of_turn[0].path, error.hint) from None
                found |= _named(kind, named, cut, of_kind[0].dtype)
    return found


def _clipped(flats: Sequence[Flat], masters: Sequence[Flat]) -> list[Flat]:
    """Moments keep the padding that masters are saved without."""
    return [
        replace(flat, count=master.count, extents=flat.cut(0, master.count)) if flat.count > master.count else flat
        for flat, master in zip(flats, masters, strict=True)
    ]


def _holders(ranks: Sequence[TorchPart], group: int) -> list[list[TorchPart]]:
    """Who holds a group of parameters together: all; of experts those that stand at the same place in turn."""
    counts = states_of(ranks[0]).get("partition_count")
    count = counts[group] if isinstance(counts, (list, tuple)) and group < len(counts) else len(ranks)
    turns = max(len(ranks) // max(count, 1), 1)
    return [list(ranks[turn::turns]) for turn in range(turns)]


def _of_expert(name: str, turn: int, group: Shapes) -> str:
    """A local expert's name with its number among all."""
    local = len({found[0] for other in group if (found := EXPERT.search(other))})
    return EXPERT.sub(lambda found: str(turn * local + int(found[0])), name)


def _paddings(part: TorchPart, group: int) -> list[int]:
    paddings = states_of(part).get("param_alignment_paddings")
    mine = paddings[group] if isinstance(paddings, (list, tuple)) and group < len(paddings) else ()
    return [int(n) for n in mine or ()]


def _moments(ranks: Sequence[TorchPart], group: int) -> dict[str, list[Flat]]:
    """The flat states of a group by kind, of each rank. Raises CheckpointError where a rank lacks one."""
    by_rank = []
    for part in ranks:
        groups = _groups_of_states(states_of(part))
        state = groups[group] if group < len(groups) else {}
        found = {k: v for k, v in state.items() if isinstance(v, TensorRef) and len(v.shape) == 1}
        by_rank.append({str(kind): part.flat(value) for kind, value in found.items()})
    kinds = {kind for flats in by_rank for kind in flats}
    for part, flats in zip(ranks, by_rank, strict=True):
        if kinds - flats.keys():
            raise CheckpointError(
                f"group {group}: it lacks {min(kinds - flats.keys())}, which other ranks have", part.path
            )
    return {kind: [flats[kind] for flats in by_rank] for kind in sorted(kinds)}


def _stage3(ranks: Sequence[TorchPart], shapes: Sequence[Shapes]) -> Slices:
    found: Slices = {}
    for number, group in enumerate(shapes):
        flats = {"": [part.flat(_masters(part)[number]) for part in ranks]} | _moments(ranks, number)
        for kind, of_kind in flats.items():
            try:
                cut = interleaved(group, of_kind)
            except ReshardError as error:
                raise CheckpointError(f"sub-group {number}: {error.message}", ranks[0].path, error.hint) from None
            found |= _named(kind, group, cut, of_kind[0].dtype)
    return found


def _named(kind: str, shapes: Shapes, cut: Mapping[str, Sequence[Shard]], dtype: str) -> Slices:
    before = f"{kind}." if kind else ""
    return {f"{before}{name}": Slice(name, TensorSpec(dtype, shapes[name]), tuple(cut[name])) for name in shapes}


def _frozen_of_stage_3(models: Sequence[TorchPart], first: TorchPart, world: int) -> Slices:
    """Weights that were not trained: each rank's part of them lies beside its model's states."""
    shapes = first.value.get("frozen_param_shapes") or {}
    found: Slices = {}
    for name, shape in shapes.items():
        fragments = [(part.value.get("frozen_param_fragments") or {}).get(name) for part in models]
        if len(models) < world or not all(isinstance(fragment, TensorRef) for fragment in fragments):
            raise CheckpointError(
                f"{name} is frozen and cut among {world} ranks, whose parts lie beside their model's states; missing: "
                + ", ".join(missing_models(models, world)),
                hint="bring the files of all ranks",
            )
        named = {name: tuple(map(int, shape))}
        flats = [p.flat(f) for p, f in zip(models, fragments, strict=True) if isinstance(f, TensorRef)]
        found |= _named("", named, interleaved(named, flats), flats[0].dtype)
    return found


def absent_models(told: Told) -> list[str]:
    """The names of model states that lie beside optimizer states of stage 3, and are not there."""
    if told.stage < 3:
        return []
    return [
        name
        for mp in told.model_parallel
        for name in missing_models(
            [told.models[at] for at in sorted(told.models) if at[1] == mp],
            len([at for at in told.optimizers if at[1] == mp]),
        )
    ]


def missing_models(models: Sequence[TorchPart], world: int) -> list[str]:
    """The names of model states that ranks of stage 3 lack."""
    there = {part.file.name for part in models}
    names = (re.sub(r"zero_pp_rank_\d+", f"zero_pp_rank_{rank}", models[0].file.name) for rank in range(world))
    return [name for name in names if name not in there]


def _as_stored(model: TorchPart, known: set[str], stage: int) -> Slices:
    """What the model's states hold whole besides: buffers, and weights that were not trained."""
    module = model.value.get("module")
    buffers = set(model.value.get("buffer_names") or ())
    fragments = (model.value.get("frozen_param_fragments") or {}) if stage < 3 else {}
    found: Slices = {}
    for name, value in (*items_of(module), *items_of(fragments)):
        placeholder = stage == 3 and name not in buffers  # of shape [0]: its elements are cut among ranks
        if name not in known and isinstance(value, TensorRef) and not placeholder:
            found[name] = whole_slice(name, model, value)
    return found


def _of_stage_0(model: TorchPart, weights: Slices) -> Slices:
    """Masters and moments of an optimizer that was not cut: the n-th is that of the n-th parameter."""
    optimizer = model.value["optimizer"]
    inner = optimizer.get("optimizer_state_dict", optimizer)
    masters = [value for group in optimizer.get("fp32_groups", ()) for value in group]
    states = _groups_of_states({"base_optimizer_state": inner})
    buffers = {*(model.value.get("buffer_names") or ()), *(model.value.get("shared_params") or {})}
    names = [name for name in weights if name not in buffers]
    found: Slices = {}
    shapes = [value.shape for value in masters if isinstance(value, TensorRef)]
    if not shapes:
        shapes = [next((v.shape for v in s.values() if isinstance(v, TensorRef) and v.shape), ()) for s in states]
    twice = len(set(shapes)) < len(shapes) and len(inner.get("param_groups", ())) > 1
    if twice or shapes != [weights[name].spec.shape for name in names]:
        return {}
    for number, name in enumerate(names):
        state = states[number] if number < len(states) else {}
        for kind, value in state.items():
            if isinstance(value, TensorRef) and value.shape == weights[name].spec.shape and value.shape:
                found[f"{kind}.{name}"] = replace(whole_slice(name, model, value), name=name)
        if number < len(masters):
            found[f"fp32.{name}"] = whole_slice(name, model, masters[number])
    return found
