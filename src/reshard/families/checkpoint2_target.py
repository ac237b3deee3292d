"""Checkpoint 2.0 as MindFormers saves it: files of model and optimizer for each rank, and what tells of them."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any, ClassVar, Literal

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import LayoutError, UsageError
from reshard.families.checkpoint2_folders import COMMON, METADATA, TRACKER, iteration_name
from reshard.families.checkpoint2_metadata import (
    numbers_of,
    release_named,
    storage_key,
    written_common,
    written_metadata,
    written_parameter,
)
from reshard.families.targets import PREFIX, AskedTarget
from reshard.formats.registry import format_named
from reshard.index import cut_extents
from reshard.layout.stages import Strategy
from reshard.planning.assembly import ANY_RANK
from reshard.planning.catalog import Catalog, Tensor
from reshard.planning.decide import Kept
from reshard.planning.names import is_of_optimizer, is_state
from reshard.planning.plan import PlannedFile, SmallFile
from reshard.planning.target import Draft, Files
from reshard.storage.storages import opened

PROGRESS = frozenset({"epoch_num", "step_num", "loss_scale"})
"""Numbers that MindSpore's older checkpoints hold as tensors and Checkpoint 2.0 in ``common.json`` alone."""
_CODES = {
    "int32": "<i",
    "int64": "<q",
    "uint32": "<I",
    "uint64": "<Q",
    "float16": "<e",
    "float32": "<f",
    "float64": "<d",
}

_ModelOrOpt = Literal["model", "opt"]
_NOTES = (("format", "ms"),)
_TRAINERS_PREFIX = "CKP"
_MODES = (0o400, 0o640, 0o750)


class Checkpoint2Target(Struct, frozen=True):
    """A root of one iteration.

    Attributes:
        strategy: None for a job of one device, which is not described.
        prefix: what names of weight files begin with; "" for nothing.
        release: of MindFormers, that shall read it; "" for what all read.
        progress: where the training was, by the keys of ``common.json``.
        drop_redundancy: of equal slices one rank alone keeps its own.
    """

    strategy: Strategy | None
    iteration: int
    prefix: str = _TRAINERS_PREFIX
    release: str = ""
    progress: tuple[tuple[str, int | float | None], ...] = ()
    drop_redundancy: bool = False

    name: ClassVar[str] = "checkpoint2"

    def __post_init__(self) -> None:
        if "/" in self.prefix or "\0" in self.prefix or self.prefix != self.prefix.encode("utf-8", "ignore").decode():
            raise UsageError(f"prefix {self.prefix!r} is no beginning of a file's name")
        if self.drop_redundancy and (self.strategy is None or self.strategy.world == 1):
            raise UsageError(
                "one device has no replicas to drop",
                hint="leave --drop-redundancy out, or give the --dst-strategy of several",
            )
        release_named(self.release)

    def files(self, draft: Draft) -> Files:
        made = _Distribution(self, draft)
        planned = made.files()
        return Files(draft.asked_for(planned), len(planned), tuple(self._closing(made)), modes=_MODES)

    def _closing(self, made: _Distribution) -> Iterator[SmallFile]:
        """The tracker is the last: where it is, the iteration is whole."""
        folder = iteration_name(self.iteration)
        release = release_named(self.release, [key for key, value in self.progress if value is not None])
        if made.world > 1:
            content = written_metadata(made.parameters(), made.storage(groups=release.groups))
            yield SmallFile(f"{folder}/{METADATA}", content)
        yield SmallFile(f"{folder}/{COMMON}", written_common(dict(self.progress), release))
        yield SmallFile(TRACKER, str(self.iteration).encode())


def checkpoint2_asked(asked: AskedTarget, source: Catalog) -> Checkpoint2Target:
    """Cut as it is asked, else as the source itself is cut. Raises UsageError where nobody can say how that is."""
    strategy = asked.strategy or source.own
    if strategy is None and source.ranks.world > 1:
        raise UsageError(
            f"nobody says how the {source.ranks.world} ranks of the source cut all of its tensors",
            hint="give --dst-strategy",
        )
    progress = progress_of(source)
    known = (asked.iteration, source.iteration, progress.get("global_step"))
    iteration = next((int(number) for number in known if number is not None), 0)
    return Checkpoint2Target(
        strategy,
        iteration,
        _TRAINERS_PREFIX if asked.prefix == PREFIX else asked.prefix,
        asked.release,
        tuple(({"global_step": iteration} | progress).items()),
        asked.drop_redundancy,
    )


class _Slice(Struct, frozen=True):
    """A slice of a tensor, the ranks that own it, and those of them that keep it."""

    key: str
    owners: tuple[int, ...]
    nbytes: int
    keepers: tuple[int, ...] = ()


class _Distribution:
    """Which rank's file holds which slice."""

    def __init__(self, target: Checkpoint2Target, draft: Draft) -> None:
        self._target = target
        self._draft = draft
        self._format = format_named("safetensors")
        self._devices = draft.target.devices
        self.world = draft.target.world
        saved = [kept for kept in draft.kept if kept.name not in PROGRESS]
        self._varied = any(kept.varied for kept in saved)
        trained = any(is_state(kept.name) for kept in saved)
        self._saved: dict[_ModelOrOpt, list[Kept]] = {
            "model": [kept for kept in saved if not is_of_optimizer(kept.name)],
            "opt": [kept for kept in saved if trained and is_of_optimizer(kept.name)],
        }
        self._slices = {part: self._placed(kept) for part, kept in self._saved.items()}
        self._held = {part: self._held_by(part) for part in self._saved}
        filed = {k.name for part in self._saved.values() for k in part if _described(k) or not target.drop_redundancy}
        told = filed | PROGRESS | {"global_step"}
        if lost := [kept.name for kept in draft.kept if kept.name not in told]:
            draft.warnings[f"in no file of such a target, as its trainer leaves them out: {', '.join(lost)}"] = None
        self._names: dict[tuple[_ModelOrOpt, int], str] = {}
        self._forms: dict[tuple[object, ...], int] = {}

    # --- who holds what

    def _placed(self, saved: Iterable[Kept]) -> dict[str, list[_Slice]]:
        """The slices of each tensor that metadata tells of, in the order of their numbers."""
        slices = {kept.name: list(self._slices_of(kept)) for kept in saved if _described(kept)}
        if self._target.drop_redundancy:
            keepers = balanced([piece for pieces in slices.values() for piece in pieces])
            return {name: [replace(p, keepers=(keepers[p.key],)) for p in pieces] for name, pieces in slices.items()}
        return slices

    def _slices_of(self, kept: Kept) -> Iterator[_Slice]:
        """By the layout of the first stage that has it; one that cuts a tied tensor otherwise owns none of them."""
        first = kept.layouts[min(kept.layouts)].sharding
        owners: dict[int, list[int]] = {}
        for stage, layout in sorted(kept.layouts.items()):
            if layout.sharding.parts == first.parts:
                for local, number in enumerate(numbers_of(layout.sharding)):
                    owners.setdefault(number, []).append(stage * self._devices + local)
        nbytes = kept.tensor.spec.nbytes // len(owners)
        for number, ranks in sorted(owners.items()):
            yield _Slice(storage_key(kept.name, number), tuple(ranks), nbytes, tuple(ranks))

    def _held_by(self, part: _ModelOrOpt) -> dict[int, list[Kept]]:
        """What each rank's file holds. Where replicas are dropped, numbers that each rank has for itself are lost."""
        held: dict[int, list[Kept]] = {}
        if self._target.drop_redundancy:
            for kept in self._saved[part]:
                keepers = {rank for piece in self._slices[part].get(kept.name, ()) for rank in piece.keepers}
                for rank in keepers:
                    held.setdefault(rank, []).append(kept)
            return dict(sorted(held.items()))
        of_stage: dict[int, list[Kept]] = {}
        for kept in self._saved[part]:
            for stage in kept.layouts:
                of_stage.setdefault(stage, []).append(kept)
        return {stage * self._devices + n: of_stage[stage] for stage in sorted(of_stage) for n in range(self._devices)}

    # --- files

    def files(self) -> list[PlannedFile]:
        """All files of the target that hold tensors."""
        made: list[PlannedFile] = []
        dash = f"{self._target.prefix}-" if self._target.prefix else ""
        folder = iteration_name(self._target.iteration)
        for group, (part, held) in enumerate(self._held.items()):
            dense = self._target.drop_redundancy
            total = len(held) if dense else self.world
            for place, (rank, kept) in enumerate(held.items()):
                stage, local = divmod(rank, self._devices)
                name = f"{dash}{part}-{place if dense else rank:07d}-{total:07d}.safetensors"
                self._names[part, rank] = name
                form = self._form(part, rank, kept)
                made.append(PlannedFile(len(made), f"{folder}/{name}", rank, local, form, 2 * stage + group))
        return made

    def _form(self, part: _ModelOrOpt, rank: int, held: Sequence[Kept]) -> int:
        """Ranks of a stage hold the same but for replicas that were dropped and for numbers of their own."""
        stage = rank // self._devices
        texts = self._draft.texts(rank) if part == "model" else ()
        source_rank = self._draft.source_rank(rank) if self._varied else ANY_RANK
        key = (part, rank if self._target.drop_redundancy else stage, source_rank, texts)
        if key not in self._forms:
            cuts = tuple(self._draft.cut(kept, kept.layouts[stage], source_rank) for kept in held)
            self._forms[key] = self._draft.form(cuts, texts, self._format, _NOTES)
        return self._forms[key]

    # --- what tells of them

    def parameters(self) -> dict[str, Any]:
        """Of ``metadata.json``, by name."""
        return {kept.name: self._parameter(kept) for part in self._saved.values() for kept in part if _described(kept)}

    def _parameter(self, kept: Kept) -> dict[str, Any]:
        stage = min(kept.layouts)
        ranks = tuple(range(stage * self._devices, (stage + 1) * self._devices))
        number, _ = self._draft.cut(kept, kept.layouts[stage], ANY_RANK)
        try:
            return written_parameter(self._draft.assembler.tensors[number].spec.dtype, kept.layouts[stage], ranks)
        except LayoutError as error:
            raise LayoutError(f"{kept.name}: {error.message}", error.where, error.hint) from None

    def storage(self, *, groups: bool) -> dict[str, Any]:
        """Where each slice lies. ``groups``: whether to say for whom: for all that own it, where one rank alone keeps
        it; else for the rank itself, for to name all beside each would take the square of their number.
        """
        return {
            piece.key: [
                {"file_name": self._names[part, rank], "storage_rank": rank}
                | ({"rank_group": piece.owners if len(piece.keepers) == 1 else (rank,)} if groups else {})
                for rank in piece.keepers
            ]
            for part, by_name in self._slices.items()
            for pieces in by_name.values()
            for piece in pieces
        }


def _described(kept: Kept) -> bool:
    """Whether metadata tells of it: a number that each rank has for itself is no slice of anything."""
    return not kept.varied and (is_state(kept.name) or not is_of_optimizer(kept.name))


def balanced(slices: Iterable[_Slice]) -> dict[str, int]:
    """For each slice the rank that keeps it: of the slices with the fewest owners the largest first, each to its owner
    with the fewest bytes so far.
    """
    load: Counter[int] = Counter()
    keepers = {}
    for piece in sorted(slices, key=lambda p: (len(p.owners), -p.nbytes, p.key)):
        keeper = min(piece.owners, key=lambda rank: (load[rank], rank))
        load[keeper] += piece.nbytes
        keepers[piece.key] = keeper
    return keepers


def progress_of(source: Catalog) -> dict[str, int | float | None]:
    """By the keys of ``common.json``, what a source says of it; of ranks that differ the first counts."""
    if source.progress:
        return dict(source.progress)
    tensors = (source.tensors.get(name) for name in ("epoch_num", "step_num", "global_step", "loss_scale"))
    return {tensor.name: _value(source, tensor) for tensor in tensors if tensor is not None and _is_number(tensor)}


def _is_number(tensor: Tensor) -> bool:
    shard = next(iter(tensor.shards))
    return prod(tensor.spec.shape) == 1 and tensor.spec.dtype in _CODES and bool(shard.held) and shard.held[0].file >= 0


def _value(source: Catalog, tensor: Tensor) -> int | float:
    shard = next(iter(tensor.shards))
    held = shard.held[0]
    (extent,) = cut_extents(held.extents_of(shard.box, tensor.spec.itemsize), 0, tensor.spec.itemsize)
    with opened(source.files[held.file].path) as file:
        content = file.read(extent.offset, extent.nbytes)
    value: int | float = struct.unpack(
        _CODES[tensor.spec.dtype], extent.coded.decoded(content) if extent.coded else content
    )[0]
    return value
