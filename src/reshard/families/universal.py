"""DeepSpeed's universal checkpoints, from which it resumes on any number of ranks: ``--to universal``.

Source: DeepSpeed 0.19.8, ``checkpoint/ds_to_universal.py``, which writes, and ``runtime/base_optimizer.py``,
``checkpoint/universal_checkpoint.py`` and ``runtime/zero/stage3.py``, which read:

    zero/<parameter>/fp32.pt, exp_avg.pt, exp_avg_sq.pt …   {"param": tensor, "cat_dim": …}; at stage 3 a flat tensor
    zero/<parameter>/step.pt                                 below stage 3
    zero/optimizer_state.pt                                  what the optimizer holds besides, and its groups' settings
    mp_rank_*_model_states.pt, layer_*                       as they were saved
    ../latest_universal                                      the folder's name
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import ClassVar

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError, UsageError, counted, listed
from reshard.families.affine_maps import affine_maps
from reshard.families.deepspeed import Saved, opened
from reshard.families.registry import listing
from reshard.families.source import Source
from reshard.families.targets import AskedTarget
from reshard.families.tensor_parallel import cut_of, map_of
from reshard.families.torch_parts import TorchPart
from reshard.families.universal_state import optimizer_state, steps_of
from reshard.families.zero_layers import EXPERT
from reshard.families.zero_moments import MOMENTS_OF_ADAM, named_state, not_cut, state_of
from reshard.families.zero_told import SaveFiles
from reshard.formats.torch_file import TorchFile, torch_frame
from reshard.formats.torch_values import whole
from reshard.index import ZEROS, Extent, Frame, TensorSpec
from reshard.layout.box import Box
from reshard.layout.stages import layout_of_full
from reshard.layout.tensor import Sharding
from reshard.planning.catalog import Catalog, Held, Shard, tensor_of_shards
from reshard.planning.decide import Kept
from reshard.planning.plan import PlannedFile, SmallFile
from reshard.planning.target import Draft, Files
from reshard.storage.storage import normal

_NAMED_BY = "latest_universal"
_FLAT_STAGE = 3
_TOGETHER_NBYTES = 64 << 20
"""Of small files that are written at once: there are several for each parameter."""


class Universal(Struct, frozen=True):
    """``save`` is what the source's files say; their times tell in the identity whether they are still the same."""

    save: Saved

    name: ClassVar[str] = "universal"
    strategy: ClassVar[None] = None

    def files(self, draft: Draft) -> Files:
        trained = self.save.trained(draft.source)
        _refuse(draft, self.save, trained)
        told = self.save.told
        for part in self.save.parts:  # the number of steps is in step.pt or optimizer_state.pt
            draft.warnings.pop(not_cut(part.path, "step"), None)
        planned: list[PlannedFile] = []
        nbytes = 0

        def plan(path: str, kept: Kept, form: TorchFile) -> None:
            nonlocal nbytes
            made = draft.form((draft.cut(kept, kept.layouts[0], 0),), (), form, ())
            planned.append(PlannedFile(len(planned), path, 0, 0, made, nbytes // _TOGETHER_NBYTES))
            nbytes += kept.tensor.spec.nbytes

        for kept in [*draft.kept, *_untouched(draft, told, trained)]:
            kind, name = ("", kept.name) if kept.name in trained else state_of(kept.name)
            if name in trained:
                plan(f"zero/{name}/{kind or 'fp32'}.pt", kept, _ParameterFile(marks=_marks(name, told)))
        for part in self.save.parts:
            if part.number not in told.numbers_of_optimizers:
                plan(part.file.name, _kept(_whole_file(part)), _Copied())
        closing = [SmallFile("zero/optimizer_state.pt", optimizer_state(told, draft.warnings))]
        if told.stage != _FLAT_STAGE:
            closing += [SmallFile(f"zero/{name}/step.pt", made) for name, made in steps_of(told, trained)]
        return Files(draft.asked_for(planned), len(planned), tuple(closing), (_NAMED_BY,))


def universal_asked(asked: AskedTarget, source: Catalog) -> Universal:
    """Raises UsageError for a source that is none of DeepSpeed's."""
    if source.kind != "deepspeed":
        raise UsageError(
            "--to universal is of what DeepSpeed saved: it needs the states of its model and optimizer",
            hint="give a folder of DeepSpeed, or leave --to out",
        )
    folder = source.ranks.where
    save = opened(listing(folder), Source(folder, family="deepspeed"))
    if [normal(part.path) for part in save.parts] != [normal(file.path) for file in source.files]:
        raise CheckpointError("its files changed while they were read", folder, "start again when nothing writes them")
    return Universal(save)


class _ParameterFile(TorchFile, frozen=True, kw_only=True):
    """A tensor and what DeepSpeed has to know to cut it; without marks the flat tensor alone."""

    marks: tuple[tuple[str, int], ...] = ()

    def frame(self, tensors: Mapping[str, TensorSpec], texts: Mapping[str, str], notes: Mapping[str, str]) -> Frame:
        ((name, spec),) = tensors.items()
        marks = dict(self.marks)
        flat = marks.pop("flat", False)
        tensor = whole("0", TensorSpec(spec.dtype, (prod(spec.shape),)) if flat else spec)
        laid = torch_frame(tensor if flat else {**marks, "param": tensor}, {"0": spec.nbytes})
        return replace(laid, holes={name: laid.holes["0"]})


class _Copied(TorchFile, frozen=True):
    """A file as it is."""

    def frame(self, tensors: Mapping[str, TensorSpec], texts: Mapping[str, str], notes: Mapping[str, str]) -> Frame:
        ((name, spec),) = tensors.items()
        return Frame(spec.nbytes, (), {name: (Extent(0, spec.nbytes),)})


def _marks(name: str, told: SaveFiles) -> tuple[tuple[str, int], ...]:
    """How DeepSpeed cuts the tensor among tensor-parallel ranks; at stage 3 without these it takes it flat."""
    if told.stage == _FLAT_STAGE and told.tensor_parallel == 1:
        return (("flat", True),)
    info = told.model(told.model_parallel[0]).info
    if map_of(name, affine_maps(info)) is not None:
        return ()  # whoever resumes knows the layers that were mapped
    cut = cut_of(name, info)
    marks: list[tuple[str, int]] = []
    if not cut.whole:
        marks += [("cat_dim", cut.dim)]
    if cut.halves > 1:
        marks += [("param_n_sub_params", cut.halves)]
    if cut.vocabulary:
        marks += [("vocab_tensor", True)]
    return tuple(marks)


def _untouched(draft: Draft, told: SaveFiles, trained: set[str]) -> Iterator[Kept]:
    """Moments of an Adam that took no step: at stage 3 DeepSpeed looks for their files, too."""
    groups = [group for states in told.optimizers.values() for group in states.groups]
    if told.stage != _FLAT_STAGE or any(groups) or not told.is_adam:
        return
    for kept in draft.kept:
        if kept.name in trained:
            spec = TensorSpec("float32", kept.tensor.spec.shape)
            for kind in MOMENTS_OF_ADAM:
                shard = Shard(Box.whole(spec.shape), (Held(ZEROS, ()),))
                yield _kept((named_state(kind, kept.name), spec, shard))


def _whole_file(part: TorchPart) -> tuple[str, TensorSpec, Shard]:
    nbytes = part.file.nbytes
    shard = Shard(Box((0,), (nbytes,)), (Held(part.number, (Extent(0, nbytes),)),))
    return part.file.name, TensorSpec("uint8", (nbytes,)), shard


def _kept(of: tuple[str, TensorSpec, Shard]) -> Kept:
    name, spec, shard = of
    layout = layout_of_full(Sharding.whole(1, len(spec.shape)), spec.shape)
    return Kept(tensor_of_shards(name, spec, [shard]), name, {0: layout})


def _refuse(draft: Draft, save: Saved, trained: set[str]) -> None:
    """Raises UsageError for what DeepSpeed could not resume from, CheckpointError for a save that lacks files."""
    if draft.target.dtype:
        raise UsageError("--dtype, and DeepSpeed keeps masters in a dtype of its own", hint="leave it out")
    if save.told.experts or any(EXPERT.search(name) for name in trained):
        raise UsageError(
            "DeepSpeed does not resume experts from universal checkpoints: each of its ranks would take the first ones",
            save.path,
        )
    if draft.source.lacking:
        raise CheckpointError(f"DeepSpeed looks for all of its files: {'; '.join(draft.source.lacking)}", save.path)
    kept = {kept.tensor.name: kept.name for kept in draft.kept}
    lacking = sorted(name for name in trained if kept.get(name) != name)
    if lacking:
        raise UsageError(
            f"{counted(len(lacking), 'parameter')} left out or renamed ({lacking[0]} …), and DeepSpeed looks for all",
            hint="leave --include, --exclude and --rename out",
        )
    strange = [name for name in trained if "/" in name or "\0" in name or name in ("", ".", "..")]
    if strange:
        raise UsageError(
            "parameters whose names cannot be those of folders:\n" + listed([repr(name) for name in strange])
        )
    if save.told.stage == _FLAT_STAGE and any(states.frozen_shapes for states in save.told.models.values()):
        draft.warnings[
            "frozen weights of stage 3 lie in the states of the model, cut for as many ranks as saved them: DeepSpeed "
            "restores them on these only"
        ] = None
