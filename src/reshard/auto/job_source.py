"""Which files the job loads from, by MindFormers' rules."""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import Struct

from reshard.auto.settings import AutoSettings
from reshard.errors import CheckpointError, UsageError
from reshard.families.discover import Found, discover
from reshard.families.family import Family, Listing
from reshard.families.rank_listing import rank_entries
from reshard.families.registry import listing, recognised
from reshard.families.source import Source
from reshard.families.strategies import read_strategy
from reshard.layout.stages import Strategy
from reshard.storage.storage import Entry, join
from reshard.storage.storages import is_inside, storage_of

_RANK_FOLDER = re.compile(r"rank_\d+")
_AFTER_RANK = re.compile(r"rank_\d+(?P<rest>[-_].+)")
_STEP = re.compile(r"(?P<epoch>\d+)_(?P<step>\d+)\.(ckpt|safetensors)$")

_PLAIN = ("ranks", "full")
"""Families that do not say how they are cut."""


class JobSource(Struct, frozen=True):
    """The source as it is here: how to open it, its files, its strategy and where that lies.

    ``family``: of one that says itself how it is cut; its files are not looked for here.
    """

    source: Source
    found: Found
    strategy: Strategy | None
    strategy_path: str = ""
    family: str = ""


def job_source(settings: AutoSettings) -> JobSource:
    """Raises InputError for a source that is not there, or a strategy that is not one."""
    path = settings.load_checkpoint
    there = listing(path)
    family = recognised(there)
    if family.name not in _PLAIN:
        return _self_described(there, family, settings)
    suffix = _suffix(settings)
    select = settings.select(settings.format)
    found = discover(path, select, suffix)
    form = found.files[0][1].rpartition(".")[2]
    if select != settings.select(form):
        select = settings.select(form)
        found = discover(path, select, suffix)
    where = settings.src_strategy or (_beside(settings, form) if found.distributed else "")
    strategy = read_strategy(where) if where else None
    return JobSource(Source(path, strategy or "", select, suffix), found, strategy, where)


def _self_described(there: Listing, family: Family, settings: AutoSettings) -> JobSource:
    if settings.src_strategy:
        raise UsageError(
            f"src_strategy_path_or_dir is set, and {family.name} says itself how it is cut",
            there.path,
            "leave it empty",
        )
    return JobSource(Source(there.path), Found(there.path, ((0, there.path),), distributed=True), None, "", family.name)


def reads_itself(path: str) -> bool:
    """Whether MindFormers' newer loader reads what lies there: a Checkpoint 2.0, or a folder of full safetensors. One
    that is not there is the job's own to tell.
    """
    storage = storage_of(path)
    there = storage.entry(path)
    if there is None:
        return True
    if not there.folder:
        return False
    found = listing(path)
    family = recognised(found)
    if family.name not in _PLAIN:
        return family.name == "checkpoint2"
    weights = any(entry.name.endswith(".safetensors") for entry in found.entries if not entry.folder)
    return weights and not rank_entries(found.entries)


def refuse_unknown_cut(source: JobSource) -> None:
    """Raises CheckpointError for slices of which no strategy says how they were cut."""
    ranks = [rank for rank, _ in source.found.files]
    if source.strategy is None and not source.family and not source.found.whole:
        raise CheckpointError(
            f"{len(ranks)} rank folders ({', '.join(f'rank_{r}' for r in ranks[:4])} …) and no strategy: "
            "nobody can know how they were cut",
            source.found.path,
            "set src_strategy_path_or_dir to the strategy that they were saved with",
        )


def _beside(settings: AutoSettings, form: str) -> str:
    """MindFormers looks for the strategy of safetensors weights in ``strategy`` beside their folder."""
    if form != "safetensors" or storage_of(settings.load_checkpoint).remote:
        return ""
    beside = Path(settings.load_checkpoint).absolute().parent / "strategy"
    return str(beside) if beside.is_dir() and not is_inside(beside, settings.output_dir) else ""


def _suffix(settings: AutoSettings) -> str:
    """The end of the names of the files to resume from; "" to take the last of each rank."""
    if not settings.resume:
        return ""
    if isinstance(settings.resume, str):
        stem = settings.resume.rpartition("/")[2].removesuffix(".ckpt").removesuffix(".safetensors")
        found = _AFTER_RANK.search(stem)
        return found["rest"] if found else stem
    return _newest_of_all(settings.load_checkpoint)


def _newest_of_all(path: str) -> str:
    """The newest epoch and step that every rank has: a run that was killed leaves some ranks a step ahead."""
    storage = storage_of(path)
    folders = [e for e in storage.entries(path) if e.folder and _RANK_FOLDER.fullmatch(e.name)]
    steps = [_steps(storage.entries(join(path, folder.name))) for folder in folders]
    if not steps or max(map(len, steps)) < 2:
        return ""
    common = set.intersection(*steps)
    if not common:
        raise CheckpointError(
            "resume_training: no step that all ranks have", path, "name the file: resume_training: NAME-1_10.ckpt"
        )
    return "{}_{}".format(*max(common))


def _steps(entries: list[Entry]) -> set[tuple[int, int]]:
    found = (_STEP.search(entry.name) for entry in entries if not entry.folder)
    return {(int(m["epoch"]), int(m["step"])) for m in found if m}
