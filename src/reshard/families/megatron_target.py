"""Rank folders as Megatron-Core's ``torch`` format has them: what each rank holds, and how its file is laid out.

The names are those of its local layer spec, or of Transformer Engine's where the arguments say that this is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError, PlanError, UsageError, counted, listed
from reshard.families.megatron_args import as_argument
from reshard.families.megatron_cut import MULTI_TOKEN, RankCounts, dim_cut, embeds_again, refuse_other_form
from reshard.families.megatron_folders import MODEL_FILES, TRACKER, iteration_name, rank_name
from reshard.families.targets import AskedTarget
from reshard.formats.pickled import Global, Record
from reshard.formats.torch_file import torch_frame
from reshard.formats.torch_values import TensorRef, whole
from reshard.index import Frame, TensorSpec
from reshard.layout.stages import layout_of_full
from reshard.layout.tensor import Layout, Sharding
from reshard.planning.catalog import Catalog
from reshard.planning.decide import Kept
from reshard.planning.names import folded, is_state
from reshard.planning.plan import PlannedFile, SmallFile
from reshard.planning.target import Draft, Files

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_EXPERTS = re.compile(r"(.*mlp\.experts\.)experts\.(.+)")
_EMBEDDING, _HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
_FIRST, _LAST = ("embedding.",), ("decoder.final_", "output_layer.", MULTI_TOKEN)
_VERSION = 3.0
_UNEVEN = {
    "num_layers_per_virtual_pipeline_stage": None, "num_virtual_stages_per_pipeline_rank": None,
    "decoder_first_pipeline_num_layers": None, "decoder_last_pipeline_num_layers": None,
    "account_for_embedding_in_pipeline_split": False, "account_for_loss_in_pipeline_split": False,
    "pipeline_model_parallel_layout": None,
}  # fmt: skip
"""Arguments that tell of other stages, and what they are where each has as many layers."""
_Args = tuple[tuple[str, Any], ...]


class MegatronRanks(Struct, frozen=True):
    """A save of so many tensor-parallel ranks, pipeline stages and expert-parallel ranks.

    Attributes:
        iteration: None for what Megatron calls a release.
        args: of the training, by name.
    """

    sizes: RankCounts
    iteration: int | None
    args: _Args

    name: ClassVar[str] = "megatron"
    strategy: ClassVar[None] = None

    def files(self, draft: Draft) -> Files:
        refuse_other_form((kept.name for kept in draft.kept), parted=False)
        stages = _by_stage(draft.kept, self.sizes.stages)
        layouts = self._layouts(draft.kept)
        folder = save_name(self.iteration)
        planned: list[PlannedFile] = []
        for stage, (first, held) in enumerate(stages):
            cuts = tuple(draft.cut(kept, layouts[kept.name], 0) for kept in held)
            form = draft.form(cuts, (), self._format(first, held), ())
            for expert in range(self.sizes.experts):
                for tensor in range(self.sizes.tensor):
                    name = rank_name(RankCounts(tensor, stage, expert), self.sizes)
                    local = expert * self.sizes.tensor + tensor
                    path = f"{folder}/{name}/{MODEL_FILES[0]}"
                    planned.append(PlannedFile(len(planned), path, 0, local, form, stage))
        return Files(draft.asked_for(planned), len(planned), (tracker(self.iteration),))

    def _format(self, first: int, held: Sequence[Kept]) -> MegatronFile:
        names = {kept.name for kept in held}
        last = self.sizes.stages > 1 and any(name.startswith(_LAST[0]) for name in names)
        own = _EMBEDDING in names and (not last or embeds_again(names))
        tied = _EMBEDDING in names and last and _HEAD not in names
        given = dict(self.args)
        told = {**given, **{n: v for n, v in _UNEVEN.items() if n in given}, **_parallel(self.sizes)}
        embedding = (_EMBEDDING,) * own + (_HEAD,) * tied
        return MegatronFile(first, self.iteration or 0, tuple(told.items()), embedding)

    def _layouts(self, kept: Sequence[Kept]) -> dict[str, Layout]:
        """How ranks of one stage cut each tensor. Raises UsageError for those that do not divide."""
        sizes, shapes = self.sizes, {one.name: one.tensor.spec.shape for one in kept}
        transformer_engine = dict(self.args).get("transformer_impl") == "transformer_engine"
        found: dict[str, Layout] = {}
        faults: list[str] = []
        for name, shape in shapes.items():
            axes: list[tuple[int, ...]] = [()] * len(shape)
            stacked = _EXPERTS.fullmatch(name) is not None
            dim = dim_cut(name, transformer_engine=transformer_engine, ranks=sizes.tensor)
            if stacked:
                axes[0] = (1,)
            if dim is not None:
                axes[dim + stacked] = (0,)
            faults += _undivided(name, shape, axes, sizes)
            if not faults:
                found[name] = layout_of_full(Sharding((sizes.experts, sizes.tensor), tuple(axes)), shape)
        if faults:
            raise UsageError(
                "tensors that do not divide among the ranks:\n" + listed(folded(faults)), hint=_hint(faults)
            )
        return found


def _undivided(name: str, shape: Sequence[int], axes: Sequence[tuple[int, ...]], sizes: RankCounts) -> Iterator[str]:
    for n, cut in zip(shape, axes, strict=True):
        ranks, option = (sizes.experts, "--ep") if cut == (1,) else (sizes.tensor, "--tp")
        if cut and n % ranks:
            yield f"{name}: {n} of {list(shape)} among {option} {ranks}"


def _hint(faults: Sequence[str]) -> str:
    vocabulary = [fault for fault in faults if fault.startswith((_EMBEDDING, _HEAD))]
    ways = ["--vocab-rows N pads the vocabulary"] if vocabulary else []
    return " and ".join(ways + (["take fewer ranks"] if len(vocabulary) < len(faults) else []))


def _by_stage(kept: Sequence[Kept], stages: int) -> list[tuple[int, list[Kept]]]:
    """For each stage its first layer, and what it holds. Raises UsageError for what does not divide."""
    states = [one.name for one in kept if is_state(one.name)]
    if states:
        raise PlanError(
            f"states of the optimizer ({counted(len(states), 'tensor')}, {states[0]}) have no place in rank folders",
            hint="--weights-only, or --to torch_dist",
        )
    layers = 1 + max((int(found[1]) for one in kept if (found := _LAYER.fullmatch(one.name))), default=-1)
    if layers % stages or not layers:
        raise UsageError(f"{layers} layers do not divide among --pp {stages}", hint=_fitting(layers) if layers else "")
    each = layers // stages
    held: list[list[Kept]] = [[] for _ in range(stages)]
    names = {one.name for one in kept}
    strange = []
    for one in kept:
        found = _LAYER.fullmatch(one.name)
        if found:
            held[int(found[1]) // each].append(one)
        elif one.name.startswith(_LAST):
            held[-1].append(one)
        elif one.name.startswith(_FIRST) or stages == 1:
            held[0].append(one)
        else:
            strange.append(one.name)
        if one.name == _EMBEDDING and stages > 1 and (_HEAD not in names or embeds_again(names)):
            held[-1].append(one)
    if strange:
        raise PlanError("of which stage these are is not known:\n" + listed(strange), hint="--pp 1")
    return [(stage * each, of_stage) for stage, of_stage in enumerate(held)]


class MegatronFile(Struct, frozen=True, eq=False):  # arguments may be lists
    """A rank's file: names as on the rank, from the stage's first layer on.

    ``embedding``: under which names the embedding stands in it, the output layer's where it is tied to that.
    """

    first: int
    iteration: int
    args: _Args
    embedding: tuple[str, ...]
    name: str = "torch"
    suffix: str = ".pt"

    def frame(self, tensors: Mapping[str, TensorSpec], texts: Mapping[str, str], notes: Mapping[str, str]) -> Frame:
        keys = {name: str(number) for number, name in enumerate(tensors)}
        model: dict[str, TensorRef] = {}
        for name, spec in tensors.items():
            model |= dict(self._on_rank(name, whole(keys[name], spec)))
        value = {**of_training(self.args, self.iteration), "model": model}
        laid = torch_frame(value, {keys[name]: spec.nbytes for name, spec in tensors.items()})
        return replace(laid, holes={name: laid.holes[key] for name, key in keys.items()})

    def _on_rank(self, name: str, tensor: TensorRef) -> Iterator[tuple[str, TensorRef]]:
        found = _LAYER.fullmatch(name)
        own = f"decoder.layers.{int(found[1]) - self.first}.{found[2]}" if found else name
        experts = _EXPERTS.fullmatch(own)
        if experts is None:
            yield from ((each, tensor) for each in (self.embedding if name == _EMBEDDING else (own,)))
            return
        shape, strides = tensor.shape[1:], tensor.strides[1:]
        for expert in range(tensor.shape[0]):
            one = replace(tensor, shape=shape, strides=strides, offset=expert * tensor.strides[0])
            yield f"{experts[1]}local_experts.{expert}.{experts[2]}", one


# ---- what all saves of Megatron's have


def save_name(iteration: int | None) -> str:
    return "release" if iteration is None else iteration_name(iteration)


def tracker(iteration: int | None) -> SmallFile:
    return SmallFile(TRACKER, ("release" if iteration is None else str(iteration)).encode())


def of_training(args: _Args, iteration: int | None) -> dict[str, Any]:
    """What a file says beside the model."""
    told = Record(Global("argparse", "Namespace"), (), {name: as_argument(name, value) for name, value in args})
    return {"args": told, "checkpoint_version": _VERSION, "iteration": iteration or 0}


def _parallel(sizes: RankCounts) -> dict[str, Any]:
    return {
        "tensor_model_parallel_size": sizes.tensor,
        "pipeline_model_parallel_size": sizes.stages,
        "expert_model_parallel_size": sizes.experts,
        "expert_tensor_parallel_size": sizes.tensor,
        "virtual_pipeline_model_parallel_size": None,
    }


def iteration_of(asked: AskedTarget, source: Catalog) -> int | None:
    return source.iteration if asked.iteration is None else asked.iteration


def arguments(source: Catalog) -> _Args:
    """Of the training, as a target tells them. Raises CheckpointError for a save of Megatron's that lost its own."""
    if source.kind == "megatron" and not source.args and not source.common:
        raise CheckpointError(
            "a save of Megatron's without its arguments (common.pt, or args of rank files): it could not load the copy",
            source.files[0].path,
            "bring common.pt; --dst-names hf needs none with --model",
        )
    dtypes = [tensor.wanted_dtype for tensor in source.tensors.values()]
    told = {"params_dtype": max(set(dtypes), key=dtypes.count)} if dtypes else {}
    return tuple({**told, **source.args}.items())


def _fitting(number: int) -> str:
    """A hint of what divides a number."""
    return f"one of: {', '.join(str(n) for n in range(1, number + 1) if number % n == 0)}"


def megatron_asked(asked: AskedTarget, source: Catalog) -> MegatronRanks:
    """Raises UsageError for numbers of ranks that are none."""
    sizes = RankCounts(asked.tp or 1, asked.pp or 1, asked.ep or 1)
    heads, groups = (source.args.get(name) for name in ("num_attention_heads", "num_query_groups"))
    if type(heads) is int and heads % sizes.tensor:
        raise UsageError(f"--tp {sizes.tensor}: {heads} attention heads do not divide", hint=_fitting(heads))
    if sizes.experts > 1 and not any(map(_EXPERTS.fullmatch, source.tensors)):
        raise UsageError(f"--ep {sizes.experts}: the model has no experts", hint="leave --ep out")
    if type(groups) is int and groups and groups % sizes.tensor and sizes.tensor % groups:
        raise UsageError(f"--tp {sizes.tensor}: {groups} query groups are no multiple or divisor of it")
    return MegatronRanks(sizes, iteration_of(asked, source), arguments(source))
