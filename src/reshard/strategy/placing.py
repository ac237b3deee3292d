"""A family's rules applied to a job: which tensors each pipeline stage holds and how its ranks cut them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import LayoutError, StrategyError, counted, listed
from reshard.index import TensorSpec
from reshard.layout.tensor import Layout, Sharding
from reshard.strategy.expression import evaluate, names_in
from reshard.strategy.job import Job
from reshard.strategy.named import RuledTensor, if_given, lookup, named_by_family, named_by_headers, values_of
from reshard.strategy.optimizer_shard import with_optimizer_shard
from reshard.strategy.optimizer_states import states_of
from reshard.strategy.rules import RuleFamily
from reshard.strategy.spelling import misspelt

Stages = tuple[dict[str, Layout], ...]


class Weight(Struct, frozen=True):
    """A tensor before optimizer parallel; ``shard``: whether that may share it."""

    name: str
    spec: TensorSpec
    sharding: Sharding
    trained: bool
    shard: bool


def place(family: RuleFamily, job: Job, headers: Mapping[str, TensorSpec] | None = None) -> Stages:
    """The layouts of all stages' tensors.

    Args:
        headers: full tensors of a checkpoint; None takes names and shapes from the family.

    Raises StrategyError: a config that MindSpore refuses, a tensor that no rule matches, a value that is not given.
    """
    names = values_of(family, job)
    _check_spelling(family, job)
    _refuse_unread(family, job, names)
    _check(family, names)
    found = named_by_family(family, names) if headers is None else named_by_headers(family, names, headers)
    stage_of = _stage_of(family, job, names, found)
    stages: Stages = tuple({} for _ in range(job.sizes.pp))
    for tensor in found:
        _place(tensor, family, job, stage_of, stages)
    empty = [str(i) for i, stage in enumerate(stages) if not stage]
    if empty:
        raise StrategyError(
            f"no tensor lies in pipeline stage {', '.join(empty)}", hint="check pipeline_stage, offset and the stages"
        )
    return stages


def _check_spelling(family: RuleFamily, job: Job) -> None:
    """Raises StrategyError for keys of the model that are nearly one that the rules read."""
    read = {key for entry in family.settings for key in entry.keys} | {unread.key for unread in family.unread}
    faults = misspelt(job.config, {key for key in read if "." not in key}, "model_config.")
    nested = {key.removeprefix("moe_config.") for key in read if key.startswith("moe_config.")}
    faults += misspelt(job.config.get("moe_config"), nested, "moe_config.")
    if faults:
        raise StrategyError(listed(faults))


def _refuse_unread(family: RuleFamily, job: Job, names: Mapping[str, Any]) -> None:
    """Raises StrategyError with every key that changes the tensors in a way that the rules know nothing of."""
    faults = []
    for unread in family.unread:
        value = lookup(job.config, unread.key)
        if value is not None and unread.changes(value) and if_given(unread.when, names):
            faults.append(f"{unread.key}: {value}")
    if faults:
        raise StrategyError(
            f"keys that change the parameters or their cuts, which the rules of {family.name} do not read:\n"
            + listed(faults),
            hint="take the strategy that the job itself writes, or describe the model in a rules file (--rules)",
        )


def _check(family: RuleFamily, names: Mapping[str, Any]) -> None:
    """Raises StrategyError with every check of the family that fails. One that reads a value not given is passed."""
    keys = {s.name: s.keys[0].removeprefix("moe_config.") for s in family.settings if s.keys}
    keys |= _PARALLEL
    faults = []
    for check in family.checks:
        holds = if_given(check.that, names)
        if holds is not None and not holds:
            read = sorted(n for n in names_in(check.that) if isinstance(names.get(n), int))
            given = ", ".join(f"{keys.get(n, n)} {names[n]}" for n in read)
            faults.append(f"{check.says}: {check.that} ({given})")
    if faults:
        raise StrategyError("MindSpore would refuse this configuration:\n" + listed(faults))


_PARALLEL = {
    "dp": "data_parallel",
    "mp": "model_parallel",
    "pp": "pipeline_stage",
    "cp": "context_parallel",
    "ep": "expert_parallel",
}


def _stage_of(family: RuleFamily, job: Job, names: Mapping[str, Any], found: list[RuledTensor]) -> Callable[[int], int]:
    """The function of rules that gives a layer's stage; the layers are counted where the family does not say."""
    layers = evaluate(family.layers, names)
    if layers is None:
        numbers = [t.names["n"] for t in found if "stage_of" in names_in(t.block.stage)]
        layers = max((n for n in numbers if n is not None), default=-1) + 1
    if type(layers) is not int:
        raise StrategyError(f"pipeline layers: {layers!r}, expected a number")
    pipeline = job.pipeline
    stages = stages_of_layers(
        layers, job.sizes.pp, pipeline.offset, pipeline.chunks, zero_bubble_v=pipeline.zero_bubble_v
    )

    def stage_of(layer: int) -> int:
        if not 0 <= layer < len(stages):
            raise StrategyError(f"layer {layer} of a model with {len(stages)}")
        return stages[layer]

    return stage_of


def stages_of_layers(
    layers: int, stages: int, offset: object = 0, chunks: int = 1, *, zero_bubble_v: bool = False
) -> tuple[int, ...]:
    """The stage of each layer, as MindFormers shares them out (its LayerSetting).

    Args:
        offset: layers that a stage has beyond the average ``layers // (stages * chunks)``: one number for all, a list
            with one a stage, or for each chunk such a list. Negative ones take away.
        chunks: runs of layers that each stage has (``pp_interleave_num``); 1 without interleaving.
        zero_bubble_v: the second of two chunks goes through the stages backwards.

    Raises:
        StrategyError: the offset has another shape, or the layers do not come out even.

    >>> stages_of_layers(5, 2, [0, 1])
    (0, 0, 1, 1, 1)
    >>> stages_of_layers(6, 2, [[1, 0], [0, 1]], chunks=2, zero_bubble_v=True)
    (0, 0, 1, 1, 1, 0)
    """
    if zero_bubble_v and chunks != 2:
        raise StrategyError(f"zero_bubble_v with pp_interleave_num {chunks}, it needs 2")
    rows = _rows(offset, stages, chunks)
    average = layers // (stages * chunks)
    counts = [[average + extra for extra in row] for row in rows]
    if zero_bubble_v:
        counts[1].reverse()
    if sum(map(sum, counts)) != layers or any(n < 0 for row in counts for n in row):
        raise StrategyError(
            f"{layers} layers do not come out even on {stages} stages × {chunks} with offset {offset!r}",
            hint="the offset's sum has to be num_layers modulo pipeline_stage × pp_interleave_num",
        )
    found: list[int] = []
    for chunk, row in enumerate(counts):
        for place, count in enumerate(row):
            backwards = zero_bubble_v and chunk == 1
            found += [stages - 1 - place if backwards else place] * count
    return tuple(found)


def _rows(offset: object, stages: int, chunks: int) -> list[list[int]]:
    """The offset of each chunk and stage."""
    if type(offset) is int:
        return [[offset] * stages] * chunks
    if isinstance(offset, list | tuple):
        rows = [list(offset)] * chunks if all(type(n) is int for n in offset) else [list(r) for r in _lists(offset)]
        if len(rows) == 1:
            rows *= chunks
        fits = len(rows) == chunks and all(len(row) == stages for row in rows)
        if fits and all(type(n) is int for row in rows for n in row):
            return rows
    raise StrategyError(
        f"offset {offset!r}, expected a number, {stages} numbers, or {chunks} lists of {stages} numbers",
        hint="model_config.offset, pp_interleave_num and parallel_config.pipeline_stage have to agree",
    )


def _lists(offset: Sequence[object]) -> list[Sequence[int]]:
    return [row if isinstance(row, list | tuple) else () for row in offset]


def _place(tensor: RuledTensor, family: RuleFamily, job: Job, stage_of: Callable[[int], int], stages: Stages) -> None:
    """Put a tensor, its LoRA pair and the states of both where they belong."""
    dims = {f"dim{i}": n for i, n in enumerate(tensor.spec.shape)}
    names = {**tensor.names, **dims, "stage_of": stage_of}
    rule = tensor.rule
    try:
        stage = _stage(evaluate(tensor.block.stage, names), len(stages))
        also = evaluate(rule.states_also, names)
        sharding = _sharding(tensor, family, job, names)
        shard = bool(evaluate(rule.shard, names))
        weight = Weight(tensor.name, tensor.spec, sharding, rule.trained and job.lora is None, shard)
        _put(weight, stage, stage if also is None else _stage(also, len(stages)), job, stages)
        if job.lora and evaluate(rule.lora, names) and re.match(job.lora.targets, _layer(tensor.name)):
            for added in _lora_pair(weight, job.lora.rank, mcore=family.mcore):
                _put(added, stage, stage, job, stages)
    except (StrategyError, LayoutError) as error:
        raise StrategyError(f"{tensor.name} {tensor.spec}: {error.message}", hint=error.hint) from None


def _stage(value: Any, stages: int) -> int:
    if type(value) is not int or not 0 <= value < stages:
        raise StrategyError(f"stage {value!r} of {stages}")
    return value


def _sharding(tensor: RuledTensor, family: RuleFamily, job: Job, names: Mapping[str, Any]) -> Sharding:
    """The cut of the first case that holds; whole without one."""
    case = next((c for c in tensor.rule.cases if evaluate(c.when, names)), None)
    devices = job.sizes.devices
    ndim = len(tensor.spec.shape)
    if case is None or not case.over:
        return Sharding.whole(devices, ndim)
    axes = _arranged({axis: evaluate(size, names) for axis, size in family.devices[case.over].items()}, devices)
    cut = case.cut or ((),) * ndim
    if len(cut) != ndim:
        raise StrategyError(f"the rule cuts {len(cut)} dims, the tensor has {ndim}")
    place = {axis: len(axes) - 1 - i for i, (axis, _) in enumerate(axes) if axis}
    tensor_map = tuple(tuple(place[a] for a in dim if a in place) for dim in cut)
    return Sharding(tuple(size for _, size in axes), tensor_map)


def _arranged(matrix: Mapping[str, Any], devices: int) -> list[tuple[str, int]]:
    """Axes of a device matrix without those of size 1, and the repeats innermost. Raises StrategyError."""
    sizes = ", ".join(f"{axis} {size}" for axis, size in matrix.items())
    if not all(type(size) is int and size > 0 for size in matrix.values()):
        raise StrategyError(f"devices cannot be arranged as {sizes}")
    used = prod(matrix.values())
    if devices % used:
        raise StrategyError(f"{counted(devices, 'rank')} of a stage cannot be arranged as {sizes}")
    axes = [(axis, size) for axis, size in matrix.items() if size > 1]
    if used < devices:
        axes.append(("", devices // used))
    return axes or [("", 1)]


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _lora_pair(weight: Weight, rank: int, *, mcore: bool) -> Iterator[Weight]:
    """A [rank, in] is cut as its weight's columns, B [out, rank] as its rows."""
    base = _layer(weight.name)
    names = (f"{base}.lora_A.weight", f"{base}.lora_B.weight")
    if not mcore:
        names = (f"{base}.mindpet_delta_lora_a", f"{base}.mindpet_delta_lora_b")
    if len(weight.spec.shape) != 2:
        raise StrategyError(f"LoRA on a tensor of {len(weight.spec.shape)} dims")
    rows, columns = weight.sharding.tensor_map
    out, width = weight.spec.shape
    for name, shape, tensor_map in ((names[0], (rank, width), ((), columns)), (names[1], (out, rank), (rows, ()))):
        spec = replace(weight.spec, shape=shape)
        yield Weight(name, spec, replace(weight.sharding, tensor_map=tensor_map), trained=True, shard=True)


def _put(weight: Weight, stage: int, also: int, job: Job, stages: Stages) -> None:
    """Put a weight in its stage with its states, and its states alone in the other stage that has them."""
    cut = weight.sharding
    if weight.shard:
        cut = with_optimizer_shard(cut, weight.spec, job.sharing, stage * job.sizes.devices)
    layout = Layout(weight.spec.shape, cut)
    if weight.trained or not job.only_trained:
        stages[stage][weight.name] = layout
    if weight.trained:
        states = dict(states_of(weight.name, layout, job.optimizer))
        if states and job.sizes.pp > 1:
            states[f"accu_grads.{weight.name}"] = layout
        for place in {stage, also}:
            stages[place].update(states)
