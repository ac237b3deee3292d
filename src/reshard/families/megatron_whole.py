"""What Megatron's ranks hold → whole tensors, under the names and in the stacks of its distributed form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError
from reshard.families.megatron_args import count
from reshard.families.megatron_cut import HeldBox, RankCounts, Shape, leading, parts
from reshard.families.torch_parts import TorchPart
from reshard.formats.torch_values import TensorRef
from reshard.index import TensorSpec
from reshard.planning.catalog import Held, Shard, Tensor, tensor_of_shards

_LAYER = re.compile(r"((?:.*\.)?(?:decoder|encoder)\.layers)\.(\d+)\.(.+)")
_NORM = re.compile(r"(.*?)(input_layernorm|pre_mlp_layernorm)\.(weight|bias)")
_AS_STORED = {"input_layernorm": "self_attention.linear_qkv", "pre_mlp_layernorm": "mlp.linear_fc1"}
"""Of which layer norms are said to be in the distributed form, where the local layer spec has them by themselves."""


class RankFile(Struct, frozen=True):
    """``at``: the numbers of its rank; ``chunks``: what each virtual stage holds, by name."""

    part: TorchPart
    at: RankCounts
    chunks: tuple[Mapping[str, TensorRef], ...]


class _LayerPlace(Struct, frozen=True):
    """Where a tensor is on its rank: the layers that it is of, "" for none, its number among them, its name there."""

    layers: str
    number: int
    rest: str


def whole_tensors(files: Sequence[RankFile], sizes: RankCounts, args: Mapping[str, Any]) -> dict[str, Tensor]:
    """Raises CheckpointError where ranks contradict one another, or nothing says how a tensor is cut."""
    _refuse_unlike(files)
    return _WholeTensors(files, sizes, args).tensors()


def _refuse_unlike(files: Sequence[RankFile]) -> None:
    """Raises CheckpointError where ranks of one stage do not hold slices of the same."""
    first: dict[int, RankFile] = {}
    for file in files:
        other = first.setdefault(file.at.stages, file)
        for mine, theirs in zip(file.chunks, other.chunks, strict=True):
            lacking = sorted(mine.keys() ^ theirs.keys())
            if lacking:
                raise CheckpointError(f"{other.part.file.name} and {file.part.file.name} do not both hold {lacking[0]}")
            unlike = [name for name in mine if _kind(mine[name]) != _kind(theirs[name])]
            if unlike:
                raise CheckpointError(
                    f"{unlike[0]}: {_kind(theirs[unlike[0]])} in {other.part.file.name}, {_kind(mine[unlike[0]])} here",
                    file.part.path,
                )


def _kind(tensor: TensorRef) -> TensorSpec:
    return TensorSpec(tensor.dtype, tensor.shape)


class _WholeTensors:
    def __init__(self, files: Sequence[RankFile], sizes: RankCounts, args: Mapping[str, Any]) -> None:
        self._files = files
        self._sizes = sizes
        self._layers = _numbers(files)
        self._check_count(args)
        self._stacked = {layers for layers in self._layers if _are_alike(files, layers) and not _are_told_apart(args)}
        self._shards: dict[str, list[Shard]] = {}
        self._specs: dict[str, TensorSpec] = {}

    def _check_count(self, args: Mapping[str, Any]) -> None:
        said, there = count(args, "num_layers"), self._total("decoder.layers")
        if said is not None and there and said != there:
            raise CheckpointError(f"the stages hold {there} layers, and the arguments tell of {said}")

    def _total(self, layers: str) -> int:
        return sum(len(numbers) for numbers in self._layers.get(layers, {}).values())

    def tensors(self) -> dict[str, Tensor]:
        for file in self._files:
            for chunk, held in enumerate(file.chunks):
                self._take(file, chunk, held)
        return {name: tensor_of_shards(name, spec, self._shards[name]) for name, spec in self._specs.items()}

    def _take(self, file: RankFile, chunk: int, held: Mapping[str, TensorRef]) -> None:
        by_layer: dict[tuple[str, int], dict[str, str]] = {}
        for name in held:
            place = _placed(name)
            by_layer.setdefault((place.layers, place.number), {})[place.rest] = name
        for (layers, local), names in by_layer.items():
            shapes = {rest: held[name].shape for rest, name in names.items()}
            number = self._layers[layers][chunk, file.at.stages][local] if layers else 0
            for rest, name in names.items():
                for part in parts(rest, shapes, self._sizes, file.at):
                    self._put(file, held[name], self._in_model(part, layers, number, _as_stored(part.name, shapes)))

    def _in_model(self, part: HeldBox, layers: str, number: int, rest: str) -> HeldBox:
        """The part under its name in the model; of layers that are alike, in their stack."""
        if not layers:
            return replace(part, name=rest)
        if layers in self._stacked:
            return leading(part, number, self._total(layers), f"{layers}.{rest}")
        return replace(part, name=f"{layers}.{number}.{rest}")

    def _put(self, file: RankFile, tensor: TensorRef, part: HeldBox) -> None:
        spec = TensorSpec(tensor.dtype, part.shape)
        other = self._specs.setdefault(part.name, spec)
        if other != spec:
            raise CheckpointError(f"{part.name}: {spec} by this rank, {other} by others", file.part.path)
        flat = file.part.flat(tensor)
        outer = part.outer if part.order or part.outer != part.box else None
        held = Held(flat.file, flat.cut(part.start, part.stop), outer, part.order)
        self._shards.setdefault(part.name, []).append(Shard(part.box, (held,), (file.part.file.rank,)))


def _placed(name: str) -> _LayerPlace:
    found = _LAYER.fullmatch(name)
    return _LayerPlace(found[1], int(found[2]), found[3]) if found else _LayerPlace("", 0, name)


_LayerNumbers = dict[tuple[int, int], list[int]]


def _numbers(files: Sequence[RankFile]) -> dict[str, _LayerNumbers]:
    """For each kind of layers, virtual chunk and stage, which layers of the model its own are: every stage's first
    chunk comes before any second one.

    Raises CheckpointError where a stage does not count from 0.
    """
    there: dict[str, dict[tuple[int, int], set[int]]] = {}
    for file in files:
        for chunk, held in enumerate(file.chunks):
            for place in map(_placed, held):
                if place.layers:
                    there.setdefault(place.layers, {}).setdefault((chunk, file.at.stages), set()).add(place.number)
    numbers: dict[str, _LayerNumbers] = {}
    for layers, by_stage in there.items():
        first, found = 0, numbers.setdefault(layers, {})
        for (chunk, stage), local in sorted(by_stage.items()):
            if local != set(range(len(local))):
                raise CheckpointError(f"stage {stage}: its layers are numbered {sorted(local)}, and not from 0")
            found[chunk, stage] = list(range(first, first + len(local)))
            first += len(local)
    return numbers


def _are_alike(files: Iterable[RankFile], layers: str) -> bool:
    """Whether all layers hold tensors of the same names and shapes."""
    kinds: dict[tuple[int, int, int], set[tuple[str, TensorSpec]]] = {}
    for file in files:
        if file.at.tensor or file.at.experts:
            continue
        for chunk, held in enumerate(file.chunks):
            for name, tensor in held.items():
                place = _placed(name)
                if place.layers == layers:
                    kinds.setdefault((file.at.stages, chunk, place.number), set()).add((place.rest, _kind(tensor)))
    return len(set(map(frozenset, kinds.values()))) == 1


def _are_told_apart(args: Mapping[str, Any]) -> bool:
    """Whether Megatron numbers layers for their experts, though they may be alike."""
    often = args.get("moe_layer_freq")
    return bool(args.get("num_experts")) and (isinstance(often, list) or (isinstance(often, int) and often > 1))


def _as_stored(name: str, shapes: Mapping[str, Shape]) -> str:
    """A layer norm's name in the distributed form: where it stands by itself before fused queries, it is theirs."""
    found = _NORM.fullmatch(name)
    if found is None:
        return name
    before = found[1]
    if not {f"{before}input_layernorm.weight", f"{before}self_attention.linear_qkv.weight"} <= shapes.keys():
        return name
    return f"{before}{_AS_STORED[found[2]]}.layer_norm_{found[3]}"
