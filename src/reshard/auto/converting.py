"""The conversion at the start of a job: one rank plans and checks, the writers write, all go on together or fail."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from reshard.auto.contradiction import Model, refuse_contradiction
from reshard.auto.job_source import JobSource
from reshard.auto.job_strategy import JobStrategy
from reshard.auto.results import Results, beside, forget, take_places, write_files, write_strategy
from reshard.auto.session import Session
from reshard.auto.settings import Settings
from reshard.auto.shares import Part
from reshard.errors import CheckpointError, RunError, counted, named_ranks
from reshard.families.open_checkpoint import open_source
from reshard.families.strategies import merged_file
from reshard.ops.convert import execute, plan_from
from reshard.ops.observer import Observer
from reshard.ops.options import Options
from reshard.planning.plan import Plan
from reshard.storage.disk import Disk
from reshard.storage.storage import reported
from reshard.target.manifest import MANIFEST
from reshard.target.preflight import check_room
from reshard.target.target_paths import META, Place

T = TypeVar("T")


class Job(Struct, frozen=True):
    """All that a rank needs to know to take its part; equal on all ranks.

    Attributes:
        parts: what each of the ranks that write makes.
        format: of the files to make.
        model: what the YAML says of the weights.
    """

    settings: Settings
    source: JobSource
    strategy: JobStrategy
    results: Results
    parts: dict[int, Part]
    format: str
    model: Model
    limits: Options

    @property
    def ranks(self) -> frozenset[int] | None:
        """The target ranks that are made here; None for all."""
        made = [part.ranks for part in self.parts.values()]
        return frozenset().union(*(r for r in made if r is not None)) if None not in made else None


class Work(Struct, frozen=True):
    """What the first rank told the others to do: the plan."""

    identity: str


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


def convert_together(session: Session, job: Job, observer: Observer) -> Outcome:
    """This rank's part in the conversion. Returns when the results are in their places.

    Raises RunError with the error of another rank; else what went wrong on this one. Nothing of an earlier run was
    changed then.
    """
    if session.leads:
        return _lead(session, job, observer)
    if session.rank in job.parts:
        work = session.wait(_told(session, "work", Work))
        session.tell(f"done_{session.rank}", _write(session, job, work, observer))
    return session.wait(_told(session, "outcome", Outcome))


def _told(session: Session, name: str, kind: type[T]) -> Callable[[], T | None]:
    return lambda: session.told(name, kind)


def _lead(session: Session, job: Job, observer: Observer) -> Outcome:
    whole = _planned(job, _strategy_path(session, job))
    staged = job.results.staged(whole.identity)
    forget(job.results.root, "new", kept=staged)
    check_room(Place.of(staged, single=False), 0 if staged.exists() else whole.nbytes)
    strategies = _strategies(job, whole.identity)
    work = Work(whole.identity)
    session.tell("work", work)
    done = {session.rank: _write(session, job, work, observer)} if session.rank in job.parts else {}
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


def _planned(job: Job, strategy: str) -> Plan:
    """The plan of all that is made here. Raises InputError for weights that are not those of the job."""
    source = open_source(job.source.source)
    full = {name: tensor.spec.shape for name, tensor in source.tensors.items()}
    refuse_contradiction(job.model, full, job.settings.load_checkpoint)
    return plan_from(source, str(job.results.root), replace(_options(job, strategy), ranks=job.ranks))


def preview(job: Job) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What would be converted, from where and by whom, with the warnings; nothing is written."""
    with tempfile.TemporaryDirectory(prefix="reshard-") as folder:
        plan = _planned(job, _strategy_in(Path(folder), job))
    source = job.source
    cut = f"cut by {source.source.strategy}" if source.source.strategy else "one full checkpoint"
    writers = (f"rank {rank} writes {_told_part(part)}" for rank, part in job.parts.items())
    left = (f"{left.fate}: {len(left.names)}: {left.reason}" for left in plan.left_out)
    said = (
        f"would convert {job.settings.load_checkpoint}: {counted(len(source.found.files), 'file')}, {cut}",
        f"to {_loaded(job, plan)}: {counted(len(plan.files), 'file')}, {plan.nbytes:,} bytes, {job.strategy.why}",
        *writers,
        *left,
        "nothing was written, and nothing is started",
    )
    return said, (*job.strategy.warnings, *plan.warnings)


def _told_part(part: Part) -> str:
    if part.share:
        return f"share {part.share.index}/{part.share.count} of all bytes"
    return named_ranks(sorted(part.ranks or ()))


def _write(session: Session, job: Job, work: Work, observer: Observer) -> Done:
    """Make this rank's part of the target."""
    part = job.parts[session.rank]
    options = replace(_options(job, _strategy_path(session, job)), ranks=part.ranks, share=part.share)
    target = job.results.staged(work.identity) / job.results.name
    mine = plan_from(open_source(job.source.source), str(target), options)
    if mine.identity != work.identity:
        raise CheckpointError(
            f"rank {session.rank} sees other source files than rank {session.leader} does",
            job.settings.load_checkpoint,
            "is it the same checkpoint on every machine? copies must keep names, lengths and times of change (cp -p)",
        )
    made = execute(mine, target, options, _Watched(session, observer))
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


def _options(job: Job, strategy: str) -> Options:
    source = job.source.source
    return replace(
        job.limits,
        src_strategy=source.strategy,
        dst_strategy=strategy,
        format=job.format,
        select=source.select,
        suffix=source.suffix,
        drop_redundancy=job.settings.drop_redundancy and job.strategy.strategy is not None,
    )


def _strategy_path(session: Session, job: Job) -> str:
    """Where the job's strategy can be read; one that was made is noted in the run's own folder."""
    return _strategy_in(session.room, job, f"{session.rank}_")


def _strategy_in(folder: Path, job: Job, prefix: str = "") -> str:
    if job.strategy.strategy is None or job.strategy.path:
        return job.strategy.path
    ((name, content),) = job.strategy.files(merged=True).items()
    path = folder / f"{prefix}{name}"
    Disk().write_whole(str(path), content, fsync=False)
    return str(path)


def replaced(results: Results, strategy: JobStrategy, form: str) -> list[Path]:
    """The folders that a conversion replaces."""
    made = strategy.strategy is not None and not strategy.path
    merged = strategy.strategy is not None and form == "safetensors"
    return [results.root, *[results.strategy] * made, *[results.merged_strategy] * merged]


def _strategies(job: Job, identity: str) -> dict[Path, Path]:
    """The folders of strategies that MindFormers leaves, built beside their places."""
    strategy, made = job.strategy, {}
    for place in replaced(job.results, strategy, job.format)[1:]:
        forget(place, "new")
        made[place] = beside(place, f"new-{identity[:16]}")
        if place == job.results.strategy:
            write_strategy(made[place], strategy)
        else:
            _merged(job.source.source.strategy, made[place] / "src_strategy")
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


def _finish(job: Job, staged: Path, strategies: dict[Path, Path]) -> None:
    """All parts are there: everything takes its place at once."""
    target = staged / job.results.name
    if not (target / META / MANIFEST).exists():
        raise RunError("all writers are done, and the result has no manifest", str(target), "start the job again")
    with reported(target):
        for writer in job.parts:
            (target / f"transform_succeed_rank_{writer}.txt").touch()
    take_places({job.results.root: staged, **strategies})


def _loaded(job: Job, plan: Plan) -> str:
    """What the framework is to load: the folder of ``rank_x``, or the file of one full checkpoint."""
    folder = job.results.root / job.results.name
    return str(folder if job.strategy.strategy else folder / plan.files[0].path)
