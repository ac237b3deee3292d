"""What an optimizer of DeepSpeed holds besides tensors that are cut, as files for whoever resumes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from reshard.errors import CheckpointError, FormatError
from reshard.families.torch_parts import TorchPart
from reshard.families.zero_told import SaveFiles
from reshard.formats.pickle_names import is_known
from reshard.formats.pickle_objects import NEW_OBJECT, Global, Record
from reshard.formats.torch_file import torch_bytes
from reshard.formats.torch_values import TensorRef, whole
from reshard.index import TensorSpec

_CUT = {"base_optimizer_state", "param_slice_mappings", "single_partition_of_fp32_groups", "fp32_flat_groups",
        "optimizer_state_dict"}  # fmt: skip
_MOST_VALUES = 100_000
_MOST_DEPTH = 50
_MOST_NBYTES = 1 << 20
_MOST_BITS = 2000


def optimizer_state(told: SaveFiles, warnings: dict[str, None]) -> bytes:
    """``optimizer_state.pt``: the states of the first rank without what is cut, and settings of its groups."""
    first = told.optimizers[min(told.optimizers)]
    states: Mapping[str, Any] = first.part.value["optimizer_state_dict"]
    copier = _Copier(first.part)
    value: dict[str, Any] = {}
    for key, held in states.items():
        if key not in _CUT:
            try:
                value[str(key)] = copier.copied(held)
            except FormatError as strange:
                warnings[f"{first.part.path}: {key} is left out of optimizer_state.pt: {strange.message}"] = None
    groups = first.settings or [{"params": [number]} for number in range(len(first.masters))]
    value["param_groups"] = copier.copied(groups)
    value.setdefault("ds_version", str(first.part.value.get("ds_version") or "0.0"))
    if first.stage == 3:
        step = next((copier.copied(group["step"]) for group in first.groups if "step" in group), 0)
        value["optimizer_state_dict"] = {"state": {0: {"step": step}}, "param_groups": value["param_groups"]}
    return torch_bytes(value, copier.storages)


def steps_of(told: SaveFiles, trained: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """``step.pt`` of each parameter whose group has a step."""
    wanted = set(trained)
    for mp in told.model_parallel:
        first = told.optimizers_of(mp)[0]
        for group, shapes in zip(first.groups, told.model(mp).shapes, strict=False):
            if "step" in group:
                copier = _Copier(first.part)
                step = torch_bytes(copier.copied(group["step"]), copier.storages)
                for name in shapes:
                    if name in wanted:
                        wanted.discard(name)
                        yield name, step


class _Copier:
    """Values of a stranger's pickle, of known kinds only, with the numbers of their tensors."""

    def __init__(self, part: TorchPart) -> None:
        self._part = part
        self._left = _MOST_VALUES
        self.storages: dict[str, bytes] = {}

    def copied(self, value: Any, depth: int = 0) -> Any:
        """Raises FormatError for other kinds, CheckpointError for what unfolds without end."""
        self._left -= 1
        if self._left < 0 or depth > _MOST_DEPTH:
            raise CheckpointError("the optimizer's settings unfold to very many values", self._part.path)
        match value:
            case None | bool() | float() | str() | bytes():
                return value
            case int() if value.bit_length() < _MOST_BITS:
                return value
            case list():
                return [self.copied(one, depth + 1) for one in value]
            case tuple():
                return tuple(self.copied(one, depth + 1) for one in value)
            case dict():
                return {self.copied(key, depth + 1): self.copied(one, depth + 1) for key, one in value.items()}
            case TensorRef():
                return self._tensor(value)
            case Global() if is_known(value.module, value.name):
                return value
            case Record() if is_known(value.factory.module, value.factory.name):
                return self._object(value, depth + 1)
            case _:
                kind = value.factory if isinstance(value, Record) else type(value).__name__
                raise FormatError(f"it holds a {kind}")

    def _object(self, value: Record, depth: int) -> Record:
        args, state, items = (self.copied(part, depth) for part in (value.args, value.state, value.items))
        if args or state is None:
            return Record(value.factory, args, state, items)
        return Record(NEW_OBJECT, (value.factory,), state, items)  # its class may want arguments when called

    def _tensor(self, tensor: TensorRef) -> TensorRef:
        content = self._part.content(tensor) if tensor.size <= _MOST_NBYTES else b""
        if sum(map(len, self.storages.values())) + len(content) > _MOST_NBYTES or not content:
            raise FormatError(f"it holds a tensor of {tensor.size:,} elements")
        key = str(len(self.storages))
        self.storages[key] = content
        return whole(key, TensorSpec(tensor.dtype, tensor.shape))
