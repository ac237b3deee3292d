"""The files of one save of DeepSpeed, opened, and what they say of it as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from reshard.families.torch_parts import TorchPart
from reshard.formats.pickled import Record


class Told(Struct, frozen=True):
    """The files of one save: by (data-parallel, model-parallel) rank, layers by (layer, tensor-parallel rank)."""

    models: Mapping[tuple[int, int], TorchPart]
    optimizers: Mapping[tuple[int, int], TorchPart]
    layers: Mapping[tuple[int, int], TorchPart]
    experts: Sequence[TorchPart]

    @property
    def model_parallel(self) -> list[int]:
        return sorted({mp for _, mp in self.models})

    @property
    def world(self) -> int:
        data = {dp for dp, _ in (*self.models, *self.optimizers)}
        return len(data) * len(self.model_parallel)

    @property
    def stage(self) -> int:
        """Of ZeRO; 0 where the optimizer is not cut."""
        for part in self.optimizers.values():
            states = states_of(part)
            if "fp32_flat_groups" in states:
                return 3
            stage = states.get("zero_stage", 1)
            return int(stage.args[0]) if isinstance(stage, Record) else int(stage)
        return 0

    @property
    def tensor_parallel(self) -> int:
        said = self.model(0).get("checkpoint_parallel_dimensions")
        if isinstance(said, dict) and isinstance(said.get("tp_degree"), int):
            return max(int(said["tp_degree"]), 1)
        return max(len({tp for _, tp in self.layers}), 1) if self.layers else len(self.model_parallel)

    def model(self, mp: int) -> dict[str, Any]:
        """The model states of a model-parallel rank, as its first data-parallel rank has them."""
        value: dict[str, Any] = self.models[min(at for at in self.models if at[1] == mp)].value
        return value

    @property
    def buffers(self) -> set[str]:
        """Names of tensors that are no parameters."""
        return {str(name) for part in self.models.values() for name in part.value.get("buffer_names") or ()}

    def not_saved(self) -> list[str]:
        """A warning where weights that were not trained were left out when it was saved: their names are nowhere."""
        first = self.model(self.model_parallel[0])
        if self.stage > 1 and first.get("frozen_param_shapes", {}) is None:
            return ["saved with exclude_frozen_parameters: weights that were not trained are not in these files"]
        return []


def states_of(part: TorchPart) -> dict[str, Any]:
    """The states of an optimizer that is cut, as one rank's file holds them."""
    states: dict[str, Any] = part.value["optimizer_state_dict"]
    return states
