"""The conversion at the start of a job: one rank plans and checks, the writers write, all go on together or fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from reshard.auto.contradiction import FullShapes, refuse_contradiction
from reshard.auto.job_names import opened
from reshard.auto.job_source import JobSource
from reshard.auto.job_strategy import JobStrategy
from reshard.auto.results import Results, take_places, write_files, write_strategy
from reshard.auto.session import Session
from reshard.auto.settings import AutoSettings
from reshard.auto.shares import OwnFiles
from reshard.errors import CheckpointError, RunError, counted, named_ranks, reported
from reshard.families.checkpoint2_target import checkpoint2_asked
from reshard.families.planner import planned
from reshard.families.rank_targets import ranks_or_full
from reshard.families.strategies import merged_file
from reshard.families.targets import AskedTarget
from reshard.formats.registry import format_named
from reshard.ops.convert import bill_of, execute, shared_block
from reshard.ops.observer import Observer
from reshard.ops.options import Means
from reshard.planning.catalog import Catalog
from reshard.planning.plan import Plan
from reshard.planning.target import Choices, Kind, Target
from reshard.storage.disk import Disk
from reshard.target.manifest import MANIFEST
from reshard.target.overwrite import beside, forget
from reshard.target.preflight import check_room
from reshard.target.target_paths import META, Place

T = TypeVar("T")


class JobConversion(Struct, frozen=True):
    """All that a rank needs to know to take its part; equal on all ranks.

    Attributes:
        parts: what each of the ranks that write makes.
        format: of the files to make.
        model: what the YAML says of the weights.
    """

    settings: AutoSettings
    source: JobSource
    strategy: JobStrategy
    results: Results
    parts: dict[int, OwnFiles]
    format: str
    model: FullShapes
    limits: Means

    @property
    def ranks(self) -> frozenset[int] | None:
        """The target ranks that are made here; None for all."""
        made = [part.ranks for part in self.parts.values()]
        return frozenset().union(*(r for r in made if r is not None)) if None not in made else None

    def plan(self, source: Catalog, part: OwnFiles, shared_block_nbytes: int) -> Plan:
        """Of one writer's files, of this source."""
        kind = self._kind(source)
        target = Target(kind, ranks=part.ranks, share=part.share, shared_block_nbytes=shared_block_nbytes)
        return planned(source, target, Choices())

    def _kind(self, source: Catalog) -> Kind:
        """What the job's loader reads."""
        strategy = self.strategy.strategy
        if self.settings.own_loader:
            return replace(checkpoint2_asked(AskedTarget(strategy=strategy), source), strategy=strategy)
        drop = self.settings.drop_redundancy and strategy is not None
        return ranks_or_full(strategy, format_named(self.format), drop_redundancy=drop)


class FirstRanksOrder(Struct, frozen=True):
    """What the first rank told the others to do: the plan, and the blocks that its files share with the source's."""

    identity: str
    shared_block_nbytes: int


class Done(Struct, frozen=True):
    """What one rank wrote."""

    files: int
    written_nbytes: int
    read_nbytes: int


class Outcome(Struct, frozen=True):
    """What the job loads now; what was written in all, what was left out, what was odd."""

    load_checkpoint: str
    done: Done
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def convert_together(session: Session, job: JobConversion, observer: Observer) -> Outcome:
    """This rank's part in the conversion. Returns when the results are in their places.

    Raises RunError with the error of another rank; else what went wrong on this one. Nothing of an earlier run was
    changed then.
    """
    if session.leads:
        return _lead(session, job, observer)
    if session.rank in job.parts:
        work = session.wait(_told(session, "work", FirstRanksOrder))
        source = opened(job.source, job.strategy.strategy, job.model)
        mine = job.plan(source, job.parts[session.rank], work.shared_block_nbytes)
        session.tell(f"done_{session.rank}", _write(session, job, work, mine, observer))
    return session.wait(_told(session, "outcome", Outcome))


def _told(session: Session, name: str, kind: type[T]) -> Callable[[], T | None]:
    return lambda: session.told(name, kind)


def _lead(session: Session, job: JobConversion, observer: Observer) -> Outcome:
    source = _opened(job)
    whole = _whole(job, source)
    staged = job.results.staged(whole.identity)
    forget(job.results.root, "new", kept=staged)
    check_room(Place.of(staged, single=False), 0 if staged.exists() else _room(whole, staged, job.limits))
    strategies = _strategies(job, whole.identity)
    work = FirstRanksOrder(whole.identity, whole.shared_block_nbytes)
    session.tell("work", work)
    done = {}
    if session.rank in job.parts:
        mine = _part_of(whole, source, job, job.parts[session.rank])
        done[session.rank] = _write(session, job, work, mine, observer)
    for rank in job.parts:
        if rank != session.rank:
            done[rank] = session.wait(_told(session, f"done_{rank}", Done))
    session.proceed()
    _finish(job, staged, strategies)
    outcome = Outcome(
        _loaded(job, whole),
        Done(
            sum(d.files for d in done.values()),
            sum(d.written_nbytes for d in done.values()),
            sum(d.read_nbytes for d in done.values()),
        ),
        tuple(f"{left.fate}: {len(left.names)}: {left.reason}" for left in whole.left_out),
        (*job.strategy.warnings, *whole.warnings),
    )
    session.tell("outcome", outcome)
    return outcome


def _opened(job: JobConversion) -> Catalog:
    """The source. Raises InputError for weights that are not those of the job."""
    source = opened(job.source, job.strategy.strategy, job.model)
    full = {name: tensor.spec.shape for name, tensor in source.tensors.items()}
    refuse_contradiction(job.model, full, job.settings.load_checkpoint)
    return source


def _whole(job: JobConversion, source: Catalog) -> Plan:
    """The plan of all writers' files, which share blocks with the source's where the results' disk lets them."""
    return job.plan(source, OwnFiles(job.ranks), shared_block(source, Place.of(job.results.root, single=False)))


def _room(whole: Plan, staged: Path, limits: Means) -> int:
    """Bytes of the disk that the results take."""
    return whole.nbytes - (bill_of(whole, staged, limits).shared_nbytes if whole.shared_block_nbytes else 0)


def _part_of(whole: Plan, source: Catalog, job: JobConversion, part: OwnFiles) -> Plan:
    """The plan of one writer's files, of the plan of all."""
    if part.share:
        return job.plan(source, part, whole.shared_block_nbytes)
    return replace(whole, files=tuple(file for file in whole.files if file.rank in (part.ranks or ())))


def preview(job: JobConversion) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What would be converted, from where and by whom, with the warnings; nothing is written."""
    opened, source = _opened(job), job.source
    plan = _whole(job, opened)
    told = opened.family if source.family else "one full checkpoint"
    cut = f"cut by {source.strategy_path}" if source.strategy_path else told
    writers = (f"rank {rank} writes {_told_part(part)}" for rank, part in job.parts.items())
    left = (f"{left.fate}: {len(left.names)}: {left.reason}" for left in plan.left_out)
    said = (
        f"would convert {job.settings.load_checkpoint}: {counted(len(plan.sources), 'file')}, {cut}",
        f"to {_loaded(job, plan)}: {counted(len(plan.files), 'file')}, {plan.nbytes:,} bytes, {job.strategy.why}",
        *writers,
        *left,
        "nothing was written, and nothing is started",
    )
    return said, (*job.strategy.warnings, *plan.warnings)


def _told_part(part: OwnFiles) -> str:
    if part.share:
        return f"share {part.share.index}/{part.share.count} of all bytes"
    return named_ranks(sorted(part.ranks or ()))


def _write(session: Session, job: JobConversion, work: FirstRanksOrder, mine: Plan, observer: Observer) -> Done:
    """Make this rank's part of the target."""
    target = job.results.staged(work.identity) / job.results.name
    if mine.identity != work.identity:
        raise CheckpointError(
            f"rank {session.rank} sees other source files than rank {session.leader} does",
            job.settings.load_checkpoint,
            "is it the same checkpoint on every machine? copies must keep names, lengths and times of change (cp -p)",
        )
    made = execute(mine, target, job.limits, _Watched(session, observer))
    return Done(len(mine.files), made.written_nbytes, made.read_nbytes)


class _Watched(Observer):
    """Stops this rank's work soon after another rank has failed, and shows that it goes on."""

    def __init__(self, session: Session, shown: Observer) -> None:
        self._session = session
        self._shown = shown
        self.start, self.end = shown.start, shown.end  # type: ignore[method-assign]

    def advance(self, nbytes: int) -> None:
        self._session.proceed()
        self._shown.advance(nbytes)


def replaced(results: Results, strategy: JobStrategy, form: str) -> list[Path]:
    """The folders that a conversion replaces."""
    made = strategy.strategy is not None and not strategy.path
    merged = strategy.strategy is not None and form == "safetensors"
    return [results.root, *[results.strategy] * made, *[results.merged_strategy] * merged]


def _strategies(job: JobConversion, identity: str) -> dict[Path, Path]:
    """The folders of strategies that MindFormers leaves, built beside their places."""
    strategy, made = job.strategy, {}
    for place in replaced(job.results, strategy, job.format)[1:]:
        forget(place, "new")
        made[place] = beside(place, f"new-{identity[:16]}")
        if place == job.results.strategy:
            write_strategy(made[place], strategy)
        else:
            _merged(job.source.strategy_path, made[place] / "src_strategy")
            if strategy.path:
                _merged(strategy.path, made[place] / "dst_strategy")
            else:
                (content,) = strategy.files(merged=True).values()
                write_files(made[place], {"dst_strategy.ckpt": content})
    return made


def _merged(strategy: str, target: Path) -> None:
    """The merged file of a strategy that may be a folder; none for a full checkpoint."""
    if not strategy:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix, content = merged_file(strategy)
    Disk().write_whole(f"{target}{suffix}", content, fsync=False)


def _finish(job: JobConversion, staged: Path, strategies: dict[Path, Path]) -> None:
    """All parts are there: everything takes its place at once."""
    target = staged / job.results.name
    if not (target / META / MANIFEST).exists():
        raise RunError("all writers are done, and the result has no manifest", str(target), "start the job again")
    with reported(target):
        for writer in job.parts:
            (target / f"transform_succeed_rank_{writer}.txt").touch()
    take_places({job.results.root: staged, **strategies})


def _loaded(job: JobConversion, plan: Plan) -> str:
    """What the framework is to load: the folder of ``rank_x``, or the file of one full checkpoint."""
    folder = job.results.root / job.results.name
    return str(folder if job.strategy.strategy or job.settings.own_loader else folder / plan.files[0].path)
