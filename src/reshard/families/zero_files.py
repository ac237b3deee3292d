"""Files of DeepSpeed, what is known of them taken out of what a stranger's pickle holds: kinds checked, once, here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from reshard.errors import CheckpointError, counted
from reshard.families.torch_parts import TorchPart
from reshard.formats.pickle_paths import paths
from reshard.formats.pickled import Record
from reshard.formats.torch_values import TensorRef
from reshard.index import MAX_DIMS

Shapes = Mapping[str, tuple[int, ...]]
_OWN = frozenset(
    {
        "module", "buffer_names", "optimizer", "param_shapes", "frozen_param_shapes", "shared_params",
        "frozen_param_fragments", "skipped_steps", "global_steps", "global_samples", "dp_world_size", "mp_world_size",
        "ds_config", "ds_version", "universal_checkpoint_info", "checkpoint_parallel_dimensions", "num_experts",
        "sparse_tensor_module_names", "data_sampler", "random_ltd",
    }
)  # fmt: skip
"""What DeepSpeed itself notes in model states; callers add what they like."""

_STAGES = range(4)
_SHOWN = 60


class ModelStates(Struct, frozen=True):
    """What one rank's model states say.

    Attributes:
        module: tensors by name; None for a pipeline, whose layers have files of their own.
        shapes: for each group of parameters their names and shapes, in the order in which they lie in the partitions.
        fragments: frozen weights, or this rank's part of each.
        shared: second names of tied weights, and the first.
        optimizer: of one that is not cut; empty otherwise.
        info: how tensor-parallel ranks cut; empty where nobody said.
    """

    part: TorchPart
    module: Mapping[str, TensorRef] | None
    shapes: Sequence[Shapes]
    frozen_shapes: Shapes
    fragments: Mapping[str, TensorRef]
    buffers: frozenset[str]
    shared: Mapping[str, str]
    optimizer: Mapping[Any, Any]
    info: Mapping[Any, Any]

    @property
    def value(self) -> dict[Any, Any]:
        """All that the file holds."""
        value: dict[Any, Any] = self.part.value
        return value


class OptimizerStates(Struct, frozen=True):
    """What one rank holds of an optimizer that is cut.

    Attributes:
        masters: for each group its partition of the weights, flat.
        groups: for each group its states; empty where training took no step.
        settings: for each group, learning rates and the like; none where it was saved elastic.
        counts: for each group the ranks that hold it together; one number for all at stage 3.
        paddings: for each group the elements that follow each parameter.
    """

    part: TorchPart
    stage: int
    masters: Sequence[TensorRef]
    groups: Sequence[Mapping[str, Any]]
    settings: Sequence[Mapping[Any, Any]]
    counts: Sequence[int]
    paddings: Sequence[Sequence[int]]


def model_states(part: TorchPart) -> ModelStates:
    """Raises CheckpointError for what is none."""
    value = part.value
    if not isinstance(value, dict):
        raise CheckpointError("it does not hold a model's states", part.path, "bring the file again")
    module = value.get("module")
    given = value.get("param_shapes") or ()
    groups = [given] if isinstance(given, dict) else _list(given, "param_shapes", part)
    return ModelStates(
        part,
        None if module is None else tensors_in(part, _dict(module, "module", part)),
        [_shapes(group, "param_shapes", part) for group in groups],
        _shapes(value.get("frozen_param_shapes") or {}, "frozen_param_shapes", part),
        tensors_in(part, _dict(value.get("frozen_param_fragments") or {}, "frozen_param_fragments", part)),
        frozenset(_texts(_list(value.get("buffer_names") or (), "buffer_names", part), "buffer_names", part)),
        _names(value.get("shared_params") or {}, part),
        value["optimizer"] if isinstance(value.get("optimizer"), dict) else {},
        value["universal_checkpoint_info"] if isinstance(value.get("universal_checkpoint_info"), dict) else {},
    )


def optimizer_states(part: TorchPart) -> OptimizerStates:
    """Raises CheckpointError for what is none."""
    states = part.value.get("optimizer_state_dict") if isinstance(part.value, dict) else None
    counts = states.get("partition_count") if isinstance(states, dict) else None
    counts = counts if isinstance(counts, (list, tuple)) else (counts,)
    if not isinstance(states, dict) or not counts or not all(_is_count(n) and n for n in counts):
        raise CheckpointError("it does not hold an optimizer's states of ZeRO", part.path)
    masters = _list(
        states.get("fp32_flat_groups", states.get("single_partition_of_fp32_groups")) or (), "fp32 partitions", part
    )
    if not all(isinstance(master, TensorRef) for master in masters):
        raise _unexpected("fp32 partitions", masters, part)
    paddings = _list(states.get("param_alignment_paddings") or (), "param_alignment_paddings", part)
    return OptimizerStates(
        part,
        _stage(states, part),
        masters,
        groups_of_states(states, part),
        _settings(states, part),
        tuple(counts),
        [_counts(group or (), "param_alignment_paddings", part) for group in paddings],
    )


def beside_the_model(states: ModelStates) -> list[str]:
    """What a save holds besides, each with its number of values: a scheduler, what the caller saved along.

    Raises FormatError for a bomb.
    """
    told = []
    for key, value in states.value.items():
        held = [one for _, one in paths([value], states.part.records.nbytes)] if key not in _OWN else []
        tensors = sum(isinstance(one, TensorRef) for one in held)
        others = sum(one is not None for one in held) - tensors
        counts = [counted(n, kind) for n, kind in ((tensors, "tensor"), (others, "value")) if n]
        if counts:
            told.append(f"{str(key)[:_SHOWN]} ({' and '.join(counts)})")
    return told


def groups_of_states(states: Mapping[Any, Any], part: TorchPart) -> list[Mapping[str, Any]]:
    """The states of each group of parameters, in order; empty where training took no step."""
    base = states.get("base_optimizer_state", states.get("optimizer_state_dict", {}))
    if isinstance(base, list):  # saved elastic
        return [group if isinstance(group, dict) else {} for group in base]
    base = _dict(base, "the optimizer's states", part)
    state = _dict(base.get("state") or {}, "the optimizer's states", part)
    groups = _settings(states, part)
    numbers = [n for group in groups for n in _list(group.get("params") or (), "params", part)]
    if len(numbers) < len(state):
        numbers = sorted(n for n in state if isinstance(n, int))
    return [_dict(state.get(n, {}) if isinstance(n, int) else {}, "a group's states", part) for n in numbers]


def _settings(states: Mapping[Any, Any], part: TorchPart) -> list[Mapping[Any, Any]]:
    base = states.get("base_optimizer_state", states.get("optimizer_state_dict", {}))
    groups = base.get("param_groups") or () if isinstance(base, dict) else ()
    return [_dict(group, "param_groups", part) for group in _list(groups, "param_groups", part)]


def fp32_groups(states: ModelStates) -> list[TensorRef]:
    """Masters of an optimizer that is not cut, one for each parameter."""
    groups = _list(states.optimizer.get("fp32_groups") or (), "fp32_groups", states.part)
    masters = [one for group in groups for one in _list(group, "fp32_groups", states.part)]
    if not all(isinstance(master, TensorRef) for master in masters):
        raise _unexpected("fp32_groups", masters, states.part)
    return masters


def tensors_in(part: TorchPart, value: dict[Any, Any] | None = None) -> dict[str, TensorRef]:
    """The tensors of a dict by name, of the file's own where none is given. Raises FormatError for a file that holds
    none, and for a tensor that is not plain numbers.
    """
    found = _dict(part.value, "what it holds", part) if value is None else value
    return part.plain((str(name), each) for name, each in found.items())


def _stage(states: Mapping[Any, Any], part: TorchPart) -> int:
    """Of ZeRO. Optimizers that keep masters for bfloat16 alone do not say it, and are cut as stage 1 is."""
    if "fp32_flat_groups" in states:
        return 3
    stage = states.get("zero_stage", 1)
    if isinstance(stage, Record):
        stage = stage.args[0] if stage.args else None
    if not isinstance(stage, int) or stage not in _STAGES:
        raise _unexpected("zero_stage", stage, part)
    return stage


def _shapes(value: Any, what: str, part: TorchPart) -> dict[str, tuple[int, ...]]:
    shapes = _dict(value, what, part).items()
    return {str(name): _counts(shape, what, part) for name, shape in shapes}


def _counts(value: Any, what: str, part: TorchPart) -> tuple[int, ...]:
    values = _list(value, what, part)
    if not all(map(_is_count, values)) or (len(values) > MAX_DIMS and what != "param_alignment_paddings"):
        raise _unexpected(what, value, part)
    return tuple(values)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _names(value: Any, part: TorchPart) -> dict[str, str]:
    pairs = _dict(value, "shared_params", part)
    seconds, firsts = (_texts(list(names), "shared_params", part) for names in (pairs, pairs.values()))
    return dict(zip(seconds, firsts, strict=True))


def _texts(values: Sequence[Any], what: str, part: TorchPart) -> list[str]:
    if not all(isinstance(one, str) for one in values):
        raise _unexpected(what, values, part)
    return list(values)


def _dict(value: Any, what: str, part: TorchPart) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise _unexpected(what, value, part)
    return value


def _list(value: Any, what: str, part: TorchPart) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _unexpected(what, value, part)
    return list(value)


def _unexpected(what: str, value: Any, part: TorchPart) -> CheckpointError:
    """``value`` is not shown where it is more than a number or text: what a file holds may unfold to very much."""
    shown = repr(value) if isinstance(value, float | str | None) else type(value).__name__
    hint = "the file is damaged, or of a release that is not known: bring it again"
    return CheckpointError(f"{what} is not what DeepSpeed writes: {shown[:_SHOWN]}", part.path, hint)
