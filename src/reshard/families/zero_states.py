"""What DeepSpeed's files say of tensors: groups of parameters, what is frozen, tied, or cut among ranks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import repeat

from msgspec.structs import replace

from reshard.errors import CheckpointError, ReshardError
from reshard.families.tensor_parallel import RankSlice, Slices, merged
from reshard.families.torch_parts import Flat, refuse_mixed_steps
from reshard.families.zero_files import ModelStates, OptimizerStates, Shapes, fp32_groups, groups_of_states
from reshard.families.zero_layers import EXPERT, check_experts, of_experts, of_layers, tensor_of, whole_slice
from reshard.families.zero_moments import named_state, of_group
from reshard.families.zero_partitions import consecutive, interleaved
from reshard.families.zero_proof import check_copies, differing
from reshard.families.zero_told import SaveFiles
from reshard.formats.torch_values import TensorRef
from reshard.index import TensorSpec
from reshard.planning.catalog import Shard, Tensor


def tensors_of(told: SaveFiles, warnings: list[str]) -> dict[str, Tensor]:
    """All weights and moments; what cannot be named goes to ``warnings``. Raises CheckpointError with what is missing
    or contradictory.
    """
    optimizers = told.optimizers.values()
    refuse_mixed_steps((s.part.scalar(group.get("step")), s.part.file.name) for s in optimizers for group in s.groups)
    models = (s for at, s in told.models.items() if at[0] == 0 or at in told.optimizers)
    refuse_mixed_steps((s.part.scalar(s.value.get("global_steps")), s.part.file.name) for s in models)
    tp = told.tensor_parallel
    info = told.model(told.model_parallel[0]).info
    found: dict[str, Tensor] = {}
    for first in told.model_parallel[::tp]:
        slices = [_of_rank(told, mp, warnings) for mp in range(first, first + tp)]
        for name, slice_ in merged(slices, info).items():
            found.setdefault(name, tensor_of(name, slice_))  # a tied one lies in several pipeline stages
    found |= of_layers(told, found)
    found |= of_experts(told, {*found})
    check_experts(found)
    return found


def _of_rank(told: SaveFiles, mp: int, warnings: list[str]) -> Slices:
    """What one model-parallel rank holds, its data-parallel ranks put together."""
    model, ranks = told.model(mp), told.optimizers_of(mp)
    found: Slices = {}
    if ranks:
        _check_groups(ranks, model)
        found |= (_stage3 if told.stage == 3 else _stages_1_and_2)(ranks, model.shapes, warnings)
        if told.stage < 3:
            check_copies(model, ranks, found, warnings)
    if told.stage == 3:
        found |= _frozen_of_stage_3(told.models_of(mp), model, len(ranks))
    found |= _as_stored(model, {*found, *model.shared}, told.stage)
    if not ranks and model.optimizer:
        states = _of_stage_0(model, found)
        if not states and (count := _held_states(model)):
            warnings.append(
                f"{model.part.path}: {count} states of its optimizer are left out: nothing says which parameter has "
                "which"
            )
        found |= states
    for second, first in model.shared.items():
        if first in found and second not in found:
            found[second] = found[first]
    return found


def _check_groups(ranks: Sequence[OptimizerStates], model: ModelStates) -> None:
    for states in ranks:
        if len(states.masters) != len(model.shapes):
            raise CheckpointError(
                f"{len(states.masters)} groups of parameters, and {model.part.file.name} tells of {len(model.shapes)}",
                states.part.path,
            )


def _stages_1_and_2(ranks: Sequence[OptimizerStates], shapes: Sequence[Shapes], warnings: list[str]) -> Slices:
    found: Slices = {}
    for number, group in enumerate(shapes):
        holders = _holders(ranks, number)
        _refuse_stacked(group, holders)
        for turn, of_turn in enumerate(holders):
            named = _among_all(group, turn) if turn else group
            pads = of_turn[0].paddings[number] if number < len(of_turn[0].paddings) else ()
            masters = _masters(of_turn, number)
            length = max(flat.count for flat in masters)  # where the first rank's is cut, all others are empty
            for kind, of_kind in {"": masters, **of_group(of_turn, number, masters, warnings)}.items():
                try:
                    cut = consecutive(named, _clipped(of_kind, masters), pads, length)
                except ReshardError as error:
                    raise CheckpointError(
                        f"group {number}: {error.message}", of_turn[0].part.path, error.hint
                    ) from None
                found |= _named(kind, named, cut, of_kind[0].dtype)
    return found


def _refuse_stacked(group: Shapes, holders: Sequence[Sequence[OptimizerStates]]) -> None:
    """Raises CheckpointError for experts that are not apart: each expert-parallel rank calls its own the same."""
    stacked = [name for name in group if not EXPERT.search(name)]
    if len(holders) > 1 and stacked:
        raise CheckpointError(
            f"{stacked[0]}: {len(holders)} expert-parallel ranks hold other experts each under this name, as AutoEP "
            "keeps them, and these are not joined",
            holders[0][0].part.path,
            "gather them in the job, or save with an expert-parallel size of 1",
        )


def _masters(ranks: Sequence[OptimizerStates], group: int) -> list[Flat]:
    return [states.part.flat(states.masters[group]) for states in ranks]


def _clipped(flats: Sequence[Flat], masters: Sequence[Flat]) -> list[Flat]:
    """Moments keep the padding that masters are saved without."""
    return [
        replace(flat, count=master.count, extents=flat.cut(0, master.count)) if flat.count > master.count else flat
        for flat, master in zip(flats, masters, strict=True)
    ]


def _holders(ranks: Sequence[OptimizerStates], group: int) -> list[list[OptimizerStates]]:
    """Who holds a group of parameters together: all; of experts those that stand at the same place in turn."""
    counts = ranks[0].counts
    count = counts[group] if group < len(counts) else len(ranks)
    turns = max(len(ranks) // count, 1)
    return [list(ranks[turn::turns]) for turn in range(turns)]


def _among_all(group: Shapes, turn: int) -> Shapes:
    """Local experts with their numbers among all; layers may have more or fewer of them."""
    places = {name: (name[: at.start()], int(at[0]), name[at.end() :]) for name in group if (at := EXPERT.search(name))}
    local = Counter(layer for layer, _ in {(layer, number) for layer, number, _ in places.values()})
    named = {name: f"{layer}{turn * local[layer] + number}{rest}" for name, (layer, number, rest) in places.items()}
    return {named.get(name, name): shape for name, shape in group.items()}


def _stage3(ranks: Sequence[OptimizerStates], shapes: Sequence[Shapes], warnings: list[str]) -> Slices:
    found: Slices = {}
    for number, group in enumerate(shapes):
        masters = _masters(ranks, number)
        for kind, of_kind in {"": masters, **of_group(ranks, number, masters, warnings)}.items():
            try:
                cut = interleaved(group, of_kind)
            except ReshardError as error:
                raise CheckpointError(f"sub-group {number}: {error.message}", ranks[0].part.path, error.hint) from None
            found |= _named(kind, group, cut, of_kind[0].dtype)
    return found


def _named(kind: str, shapes: Shapes, cut: Mapping[str, Sequence[Shard]], dtype: str) -> Slices:
    return {
        named_state(kind, name): RankSlice(name, TensorSpec(dtype, shapes[name]), tuple(cut[name])) for name in shapes
    }


def _frozen_of_stage_3(models: Sequence[ModelStates], first: ModelStates, world: int) -> Slices:
    """Weights that were not trained: each rank's part of them lies beside its model's states."""
    found: Slices = {}
    for name, shape in first.frozen_shapes.items():
        fragments = [states.fragments[name] for states in models if name in states.fragments]
        if len(models) < world or len(fragments) < len(models):
            raise CheckpointError(
                f"{name} is frozen and cut among {world} ranks, whose parts lie beside their model's states; missing: "
                + ", ".join(missing_models(models, world)),
                hint="bring the files of all ranks",
            )
        named = {name: shape}
        flats = [states.part.flat(fragment) for states, fragment in zip(models, fragments, strict=True)]
        found |= _named("", named, interleaved(named, flats), flats[0].dtype)
    return found


def absent_models(told: SaveFiles) -> list[str]:
    """The names of model states that lie beside optimizer states of stage 3, and are not there."""
    if told.stage < 3:
        return []
    return [
        name for mp in told.model_parallel for name in missing_models(told.models_of(mp), len(told.optimizers_of(mp)))
    ]


def missing_models(models: Sequence[ModelStates], world: int) -> list[str]:
    """The names of model states that ranks of stage 3 lack."""
    there = {states.part.file.name for states in models}
    one = models[0].part.file.name
    names = (re.sub(r"zero_pp_rank_\d+", f"zero_pp_rank_{rank}", one) for rank in range(world))
    return [name for name in names if name not in there]


def _as_stored(model: ModelStates, known: set[str], stage: int) -> Slices:
    """What the model's states hold whole besides: buffers, and weights that were not trained."""
    found: Slices = {}
    for name, value in {**(model.module or {}), **(model.fragments if stage < 3 else {})}.items():
        placeholder = stage == 3 and name not in model.buffers  # of shape [0]: its elements are cut among ranks
        if name not in known and not placeholder:
            found[name] = whole_slice(name, model.part, value)
    return found


def _of_stage_0(model: ModelStates, weights: Slices) -> Slices:
    """Masters and moments of an optimizer that was not cut: the n-th is that of the n-th parameter. None where shapes,
    or masters that are other numbers than the weights, say that it is not.
    """
    inner = model.optimizer.get("optimizer_state_dict", model.optimizer)
    masters = fp32_groups(model)
    states = groups_of_states({"base_optimizer_state": inner}, model.part)
    names = _parameters(model, weights)
    found: Slices = {}
    shapes = [value.shape for value in masters]
    if not shapes:
        shapes = [next((v.shape for v in s.values() if isinstance(v, TensorRef) and v.shape), ()) for s in states]
    twice = len(set(shapes)) < len(shapes) and len(inner.get("param_groups") or ()) > 1
    if twice or shapes != [weights[name].spec.shape for name in names]:
        return {}
    if differing(model, [model.part], [whole_slice(*one) for one in zip(names, repeat(model.part), masters)]):
        return {}
    for number, name in enumerate(names):
        state = states[number] if number < len(states) else {}
        for kind, value in state.items():
            if isinstance(value, TensorRef) and value.shape == weights[name].spec.shape and value.shape:
                found[named_state(kind, name)] = replace(whole_slice(name, model.part, value), name=name)
        if number < len(masters):
            found[named_state("fp32", name)] = whole_slice(name, model.part, masters[number])
    return found


def _parameters(model: ModelStates, weights: Slices) -> list[str]:
    """Names of what the optimizer may have been given, in order: of tied weights the first. Without ZeRO no list of
    these is saved; they are one storage.
    """
    found: dict[object, str] = {}
    for name in weights:
        if name not in model.buffers and name not in model.shared:
            value = (model.module or {}).get(name)
            place = (value.storage.key, value.offset, value.shape) if value is not None and value.size else name
            found.setdefault(place, name)
    return list(found.values())


def _held_states(model: ModelStates) -> int:
    """Tensors that an optimizer which is not cut holds."""
    inner = model.optimizer.get("optimizer_state_dict", model.optimizer)
    states = groups_of_states({"base_optimizer_state": inner}, model.part)
    return len(fp32_groups(model)) + sum(isinstance(v, TensorRef) for group in states for v in group.values())
