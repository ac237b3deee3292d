"""What DeepSpeed keeps in files of their own: the layers of a pipeline, and experts."""

from __future__ import annotations

import re
from collections.abc import Mapping

from reshard.digits import number_in
from reshard.errors import CheckpointError, listed
from reshard.families.tensor_parallel import RankSlice, Slices, merged
from reshard.families.torch_parts import TorchPart
from reshard.families.zero_files import ModelStates, fp32_groups, groups_of_states, tensors_in
from reshard.families.zero_told import SaveFiles
from reshard.formats.torch_values import TensorRef
from reshard.index import TensorSpec
from reshard.layout.box import Box
from reshard.planning.catalog import Shard, Tensor, tensor_of_shards

_GATE = "gate.wg.weight"
EXPERT = re.compile(r"(?<=deepspeed_experts\.)\d+")


def of_layers(told: SaveFiles, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the layer files of a pipeline hold besides: all of it without ZeRO, else frozen weights and buffers.

    Raises CheckpointError where files are missing that may hold such.
    """
    info = told.model(told.model_parallel[0]).info
    by_layer = {}
    for layer in sorted({layer for layer, _ in told.layers}):
        parts = [told.layers[layer, tp] for tp in sorted({tp for of, tp in told.layers if of == layer})]
        slices = [{name: whole_slice(name, part, value) for name, value in tensors_in(part).items()} for part in parts]
        by_layer[layer] = merged(slices, info)
    if told.layers and not told.optimizers:
        _check_layers(told, by_layer)
    found = {
        name: tensor_of(name, slice_)
        for layer, of_layer in by_layer.items()
        for local, slice_ in of_layer.items()
        if (name := f"{layer}.{local}") not in known and not _is_tied(local, slice_, known)
    }
    absent = absent_layers(told)
    if absent and (not told.optimizers or {*found} - told.buffers or any(_layer(n) in absent for n in told.buffers)):
        raise CheckpointError(
            "files of layers are missing, which may hold more than the fp32 masters:\n" + listed([*absent.values()]),
            hint="bring them",
        )
    return found


def absent_layers(told: SaveFiles) -> dict[int, str]:
    """The layers of a pipeline whose parameters the optimizer has, and whose files are not there, with their names."""
    named = {_layer(n) for s in told.models.values() if s.module is None for group in s.shapes for n in group}
    there = {layer for layer, _ in told.layers}
    return {layer: f"layer_{layer:02d}-model_*" for layer in sorted(named - there) if layer >= 0}


def _layer(name: str) -> int:
    """The number of the layer that has a parameter; -1 for one that several have."""
    number = number_in(name.partition(".")[0])
    return -1 if number is None else number


def _is_tied(local: str, slice_: RankSlice, known: Mapping[str, Tensor]) -> bool:
    return any(
        name.startswith("tied_modules.") and name.endswith(f".{local}") and tensor.spec.shape == slice_.spec.shape
        for name, tensor in known.items()
    )


def _check_layers(told: SaveFiles, slices: Mapping[int, Slices]) -> None:
    """Raises CheckpointError where an optimizer that is not cut has more parameters than the layers that are there."""
    parameters = sum(_parameters(told.model(mp)) for mp in told.model_parallel)
    there = sum(len(of_layer) for of_layer in slices.values())
    if parameters > there * told.tensor_parallel:
        raise CheckpointError(
            f"the optimizer has {parameters} parameters, the layers {', '.join(map(str, slices))} hold {there}",
            hint="bring the files of all layers",
        )


def _parameters(model: ModelStates) -> int:
    """How many an optimizer that is not cut has at least: one that keeps no masters numbers them itself, and others
    may have one for a whole group of them.
    """
    inner = model.optimizer.get("optimizer_state_dict", model.optimizer)
    return max(len(fp32_groups(model)), len(groups_of_states({"base_optimizer_state": inner}, model.part)))


def check_experts(tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError where a gate chooses among more experts than there are."""
    for name, tensor in tensors.items():
        if name.endswith(_GATE) and tensor.spec.shape:
            layer = name.removesuffix(_GATE)
            found = {
                int(m[0]) for other in tensors if other.startswith(f"{layer}experts.") and (m := EXPERT.search(other))
            }
            absent = [n for n in range(tensor.spec.shape[0]) if n not in found]
            if absent:
                raise CheckpointError(
                    f"{layer.rstrip('.')} has {tensor.spec.shape[0]} experts, and these are missing: "
                    + ", ".join(map(str, absent[:8])),
                    hint="bring the files layer_*_expert_*_model_states.pt of all of them",
                )


def of_experts(told: SaveFiles, known: set[str]) -> dict[str, Tensor]:
    """Experts that no group of ZeRO holds."""
    return {
        name: tensor_of(name, whole_slice(name, part, value))
        for part in told.experts
        for name, value in tensors_in(part).items()
        if name not in known
    }


def whole_slice(name: str, part: TorchPart, value: TensorRef) -> RankSlice:
    """A tensor that one file holds whole."""
    shard = Shard(Box.whole(value.shape), (part.held(value),), (part.file.rank,))
    return RankSlice(name, TensorSpec(value.dtype, value.shape), (shard,))


def tensor_of(name: str, slice_: RankSlice) -> Tensor:
    return tensor_of_shards(name, slice_.spec, slice_.shards)
