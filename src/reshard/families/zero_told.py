"""The files of one save of DeepSpeed, opened, and what they say of it as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from reshard.families.torch_parts import TorchPart
from reshard.families.zero_files import ModelStates, OptimizerStates, beside_the_model


class SaveFiles(Struct, frozen=True):
    """The files of one save: by (data-parallel, model-parallel) rank, layers by (layer, tensor-parallel rank)."""

    models: Mapping[tuple[int, int], ModelStates]
    optimizers: Mapping[tuple[int, int], OptimizerStates]
    layers: Mapping[tuple[int, int], TorchPart]
    experts: Sequence[TorchPart]

    @property
    def parts(self) -> list[TorchPart]:
        """All files."""
        states = (one.part for of_kind in (self.models, self.optimizers) for one in of_kind.values())
        return [*states, *self.layers.values(), *self.experts]

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
        return next((states.stage for states in self.optimizers.values()), 0)

    @property
    def tensor_parallel(self) -> int:
        said = self.models[min(self.models)].value.get("checkpoint_parallel_dimensions")
        degree = said.get("tp_degree") if isinstance(said, dict) else None
        if isinstance(degree, int):
            return max(degree, 1)
        return max(len({tp for _, tp in self.layers}), 1) if self.layers else len(self.model_parallel)

    def model(self, mp: int) -> ModelStates:
        """The model states of a model-parallel rank, as its first data-parallel rank has them."""
        return self.models[min(at for at in self.models if at[1] == mp)]

    def models_of(self, mp: int) -> list[ModelStates]:
        """Those of a model-parallel rank, by data-parallel rank."""
        return [self.models[at] for at in sorted(self.models) if at[1] == mp]

    def optimizers_of(self, mp: int) -> list[OptimizerStates]:
        """Those of a model-parallel rank, by data-parallel rank."""
        return [self.optimizers[at] for at in sorted(self.optimizers) if at[1] == mp]

    @property
    def named(self) -> set[str]:
        """What the model itself calls its own, and is no state of the optimizer, whatever it is called."""
        held = [(*s.shapes, s.frozen_shapes, s.module or {}, s.shared) for s in self.models.values()]
        return {name for of_rank in held for names in of_rank for name in names}

    @property
    def numbers_of_optimizers(self) -> set[int]:
        """Of the files that hold an optimizer that is cut."""
        return {states.part.number for states in self.optimizers.values()}

    @property
    def is_adam(self) -> bool:
        """By the settings of its groups."""
        return any("betas" in group for states in self.optimizers.values() for group in states.settings)

    @property
    def buffers(self) -> set[str]:
        """Names of tensors that are no parameters."""
        return {name for states in self.models.values() for name in states.buffers}

    def left_out(self) -> list[str]:
        """Warnings of what is no part of the model, as schedulers and what the caller saved along; and of weights that
        were left out when it was saved, whose names are nowhere. Raises FormatError for a bomb.
        """
        first = self.model(self.model_parallel[0])
        warnings = []
        if self.stage > 1 and first.value.get("frozen_param_shapes", {}) is None:
            warnings = ["saved with exclude_frozen_parameters: weights that were not trained are not in these files"]
        beside = beside_the_model(first)
        if beside:
            warnings.append(f"{first.part.path}: beside the model, and no part of it: {', '.join(beside)}")
        return warnings
