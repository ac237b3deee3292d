"""The files of single ranks that FSDP trainers write, each turned into what a catalog needs of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from reshard.errors import FormatError
from reshard.families.fsdp_values import local_of
from reshard.families.torch_parts import TorchPart, refuse_renamed
from reshard.formats.pickle_objects import Record
from reshard.formats.torch_values import TensorRef
from reshard.index import TensorSpec
from reshard.planning.catalog import IndexedFile, Shard

_FLAT = ("_flat_param", "flat_param")
_STEP = "step"


class Mine(Struct, frozen=True):
    """What a rank holds of a tensor.

    Attributes:
        plain: it was saved as a tensor that knows of no other ranks.
        storage: what tells that it shares its numbers with another of the same file.
    """

    spec: TensorSpec
    shards: tuple[Shard, ...]
    plain: bool
    storage: tuple[str, int] = ("", 0)


class FsdpFile(Struct, frozen=True):
    """Weights and buffers of a rank, by name in order; ``others`` counts what is no tensor."""

    file: IndexedFile
    held: Mapping[str, Mine]
    others: Counter[str]
    warnings: list[str]


class OptimizerFile(Struct, frozen=True):
    """States of a rank.

    Attributes:
        groups: the parameters of each group, by number or by name.
        held: what there is of each parameter, by kind.
        step: how many the optimizer took; None where nothing says it.
    """

    file: IndexedFile
    groups: tuple[tuple[int | str, ...], ...]
    held: Mapping[int | str, Mapping[str, Mine]]
    step: float | None
    warnings: list[str]


def model_file(part: TorchPart, world: int) -> FsdpFile:
    """Raises CheckpointError for the file of another rank, FormatError for a tensor that is not understood, and for
    flat parameters.
    """
    refuse_renamed([part])
    if not isinstance(part.value, dict):
        raise FormatError("it does not hold a model's weights by name", part.path, "bring the file again")
    held: dict[str, Mine] = {}
    others: dict[str, Any] = {}
    for name, value in part.value.items():
        if str(name).rpartition(".")[2] in _FLAT:
            raise FormatError(
                f"{name}: flat parameters (LOCAL_STATE_DICT): the shapes of the weights in them are not in the files",
                part.path,
                "save with StateDictType.SHARDED_STATE_DICT or FULL_STATE_DICT",
            )
        mine = _mine(part, str(name), value, world)
        if mine is None:
            others[str(name)] = value
        else:
            held[str(name)] = mine
    part.plain(others.items())
    return FsdpFile(part.file, held, Counter(type(one).__name__ for one in others.values()), part.warnings())


def optimizer_file(part: TorchPart, world: int) -> OptimizerFile:
    """Raises CheckpointError for the file of another rank, FormatError for what is no state of an optimizer."""
    refuse_renamed([part])
    state = part.value.get("state") if isinstance(part.value, dict) else None
    groups = part.value.get("param_groups") if isinstance(part.value, dict) else None
    if not isinstance(state, dict) or not isinstance(groups, list):
        raise FormatError("it does not hold an optimizer's states", part.path, "bring the file again")
    numbered = tuple(_numbers(part, group) for group in groups)
    held: dict[int | str, dict[str, Mine]] = {}
    steps: list[float | None] = []
    left: Counter[str] = Counter()
    for number, kinds in state.items():
        for kind, value in kinds.items() if isinstance(kinds, dict) else ():
            mine = _mine(part, f"{kind} of parameter {number}", value, world)
            if mine is not None:
                held.setdefault(number, {})[str(kind)] = mine
            elif isinstance(value, Record):
                left[str(kind)] += 1
            if kind == _STEP and not steps:
                steps.append(part.scalar(value))
    told = [f"{part.path}: states that are no plain tensors are left out: {', '.join(left)}"] if left else []
    return OptimizerFile(part.file, numbered, held, steps[0] if steps else None, [*told, *part.warnings()])


def _numbers(part: TorchPart, group: Any) -> tuple[int | str, ...]:
    """What a group of parameters calls them."""
    params = group.get("params") if isinstance(group, dict) else None
    if not isinstance(params, list) or not all(isinstance(number, int | str) for number in params):
        raise FormatError("a group of its parameters does not say which they are", part.path, "bring the file again")
    return tuple(params)


def _mine(part: TorchPart, name: str, value: Any, world: int) -> Mine | None:
    try:
        local = local_of(value, part.file.rank, world)
        if local is None:
            return None
        shards = tuple(Shard(box, (part.held(tensor),), (part.file.rank,)) for box, tensor in local.parts)
    except FormatError as error:
        raise FormatError(f"{name}: {error.message}", part.path, error.hint) from None
    first: TensorRef | None = local.parts[0][1] if local.parts else None
    storage = (first.storage.key, first.offset) if first is not None else ("", 0)
    return Mine(local.spec, shards, local.plain, storage)
