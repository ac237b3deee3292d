"""This rank's weights straight from the files that there are, whatever their layout: nothing is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reshard.auto.config import read_config
from reshard.auto.contradiction import model_of
from reshard.auto.job_names import opened
from reshard.auto.job_source import JobSource, job_source
from reshard.auto.job_strategy import JobStrategy, StrategySearch, job_strategy
from reshard.auto.launch import launch_of
from reshard.auto.matching import Here, match
from reshard.auto.preparing import Call
from reshard.auto.settings import read_settings
from reshard.errors import UsageError
from reshard.families.discover import Found
from reshard.families.planner import planned
from reshard.families.rank_targets import ranks_or_full
from reshard.families.source import Source
from reshard.formats.in_memory import InMemory
from reshard.frameworks import Framework, given_as
from reshard.planning.catalog import Catalog
from reshard.planning.target import Choices, Target

if TYPE_CHECKING:
    from reshard.moving.memory import LazyArrays


def load(
    config: str | Path | Mapping[str, Any],
    *,
    rank: int | None = None,
    world_size: int | None = None,
    arrays_as: Framework = "numpy",
    call: Call | None = None,
) -> Mapping[str, Any]:
    """What this rank of the job holds, by name.

    NumPy arrays are made when asked for, anew each time, and belong to the caller: bytes that lie together in one file
    are mapped and not copied; of a tensor that is cut along an inner dim the rank's rows are read whole. MindSpore
    Parameters and torch tensors are made at once.

    Args:
        config: the job's YAML, or its settings as a mapping. ``auto_trans_ckpt`` need not be set.
        rank, world_size: None for what the launcher's environment says.
        arrays_as: ``numpy``, ``mindspore`` or ``torch``.

    Raises:
        UsageError: a setting is wrong or a framework is not installed.
        InputError: the source cannot become the job's layout.
    """
    call = call or Call()
    launch = launch_of(os.environ, rank, world_size)
    read = read_config(config, call.changes)
    settings = read_settings(read, launch, os.environ)
    if not settings.load_checkpoint:
        raise UsageError("load_checkpoint is empty: there are no weights to load", read.where)
    source = job_source(settings)
    strategy = job_strategy(read, settings, StrategySearch(launch.world, call.dst_strategy, call.mindformers_version))
    if (
        strategy.strategy
        and source.strategy is None
        and not source.family
        and match(Here(source.found, None, launch.rank, settings.per_node), strategy, wanted_format="")
    ):
        source, strategy = _own_file(source.found, launch.rank), JobStrategy(None)
    catalog = opened(source, strategy.strategy, model_of(read, call.mindformers_version))
    return given_as(_arrays(catalog, strategy, launch.rank if strategy.strategy else 0), arrays_as)


def _own_file(found: Found, rank: int) -> JobSource:
    """This rank's file alone: it is what the rank is to hold."""
    path = dict(found.files)[rank]
    return JobSource(Source(path), Found(path, ((0, path),), distributed=False), None)


def _arrays(source: Catalog, strategy: JobStrategy, rank: int) -> LazyArrays:
    from reshard.moving.memory import LazyArrays

    target = Target(ranks_or_full(strategy.strategy, InMemory()), ranks=frozenset({rank}))
    return LazyArrays(planned(source, target, Choices()))
