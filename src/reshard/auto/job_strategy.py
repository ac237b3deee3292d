"""How the job that starts will cut its weights: by the strategy that it wrote, or by its YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from reshard.auto.config import Config
from reshard.auto.settings import AutoSettings
from reshard.errors import InputError, ReshardError, StrategyError, counted
from reshard.families.strategies import read_strategy
from reshard.layout.stages import AnySharding, Factored, Strategy
from reshard.layout.tensor import Sharding
from reshard.ops.make_strategy import StrategyWish, made_stages
from reshard.planning.names import is_state
from reshard.storage.storages import is_inside
from reshard.strategy.marked_files import made_files
from reshard.strategy.placing import Stages


class JobStrategy(Struct, frozen=True):
    """The strategy of the job, one of three.

    Attributes:
        strategy: None for one full checkpoint.
        path: where it lies; "" where it was made just now.
        stages: the same with shapes, where the YAML gives them.
        why: how it was found, for people.
    """

    strategy: Strategy | None
    path: str = ""
    stages: Stages = ()
    why: str = ""
    warnings: tuple[str, ...] = ()

    def files(self, *, merged: bool) -> Mapping[str, bytes]:
        """What is to be written of one that was made."""
        assert self.strategy is not None
        return made_files(self.stages, self.strategy.devices, merged=merged, json_format=False)


class StrategySearch(Struct, frozen=True):
    """Where to look for the job's strategy.

    Attributes:
        given: a strategy file or folder that is said to be it.
        mindformers_version: whose rules a strategy is made by.
        world: ranks of the job.
    """

    world: int
    given: str = ""
    mindformers_version: str = ""


def job_strategy(config: Config, settings: AutoSettings, wanted: StrategySearch) -> JobStrategy:
    """The one given, else that in ``output/strategy`` if it is of this job, else one made from the YAML.

    Raises StrategyError where there is none, or where it is of another number of ranks.
    """
    if not settings.parallel:
        return JobStrategy(None, why="one full checkpoint")
    if wanted.given:
        given = read_strategy(wanted.given)
        if given.world != wanted.world:
            raise _of_another_world(given, wanted)
        return JobStrategy(given, wanted.given, why=f"strategy {wanted.given}")
    written, left = _written(settings, wanted)
    try:
        made = _made(config, settings, wanted)
    except InputError as error:
        if written is None:
            raise _with_hint(error, left) from None
        return JobStrategy(written, written.where, why=f"strategy {written.where}")
    if written is not None and not left:
        left = _contradiction(written, made)
    if written is None or left:
        return replace(made, warnings=(left,) if left else ())
    return JobStrategy(written, written.where, made.stages, why=f"strategy {written.where}")


def made_from_yaml(config: Config, settings: AutoSettings, wanted: StrategySearch) -> bool:
    """Whether nothing but the YAML says how the job cuts its weights, and it does; the folder is not looked at."""
    if wanted.given or not settings.parallel:
        return False
    try:
        _made(config, settings, wanted)
    except InputError:
        return False
    return True


def _written(settings: AutoSettings, wanted: StrategySearch) -> tuple[Strategy | None, str]:
    """What a run of the framework left in ``output/strategy``; and why it is passed over."""
    folder = Path(settings.output_dir, "strategy")
    if not folder.is_dir() or not any(folder.iterdir()):
        return None, ""
    if settings.src_strategy and is_inside(settings.src_strategy, folder):
        return None, ""  # it is the source's
    try:
        found = read_strategy(folder)
    except StrategyError as error:
        return None, f"{folder} is passed over: {error.message}"
    if found.made:
        return None, ""  # ours, of an earlier run: made anew it is the same, or the YAML has changed
    if found.world != wanted.world:
        return None, f"{folder} is passed over: it is of {counted(found.world, 'rank')}, the job has {wanted.world}"
    return found, ""


def _made(config: Config, settings: AutoSettings, wanted: StrategySearch) -> JobStrategy:
    """From the YAML; where that lacks the model's settings, with names and shapes of a full source."""
    making = StrategyWish(config=config.where, content=config.parallel, mindformers_version=wanted.mindformers_version)
    try:
        _, job, stages = made_stages(making)
    except InputError as error:
        if settings.src_strategy:
            raise
        try:
            _, job, stages = made_stages(replace(making, checkpoint=settings.load_checkpoint))
        except ReshardError:
            raise error from None
    devices = job.sizes.devices
    strategy = Strategy(
        tuple({name: layout.sharding for name, layout in stage.items()} for stage in stages),
        devices,
        config.where,
        made=True,
    )
    if strategy.world != wanted.world:
        raise _of_another_world(strategy, wanted)
    return JobStrategy(strategy, stages=stages, why=f"strategy made from {config.where}")


def _with_hint(error: ReshardError, left: str) -> ReshardError:
    """An error of making a strategy, with what else could be done."""
    more = "or give --dst-strategy, or start once with --only_save_strategy True: then the job writes its own"
    hint = "; ".join(filter(None, (left, error.hint, more)))
    return type(error)(error.message, error.where, hint)


def _of_another_world(strategy: Strategy, wanted: StrategySearch) -> StrategyError:
    return StrategyError(
        f"the strategy is of {counted(strategy.world, 'rank')}, the job has {wanted.world}",
        strategy.where,
        "check parallel_config, --dst-strategy and the number of processes",
    )


def _contradiction(written: Strategy, made: JobStrategy) -> str:
    """Why the written strategy is of an earlier job: it cuts most tensors in another way than the YAML says.

    Raises StrategyError where few differ, or none is shared: nobody can know which of the two is right.
    """
    assert made.strategy is not None
    where = written.where
    if (len(written.stages), written.devices) != (len(made.strategy.stages), made.strategy.devices):
        return f"{where} is passed over: it has {len(written.stages)} pipeline stages, the YAML {len(made.stages)}"
    comparison = compared(written, made.strategy)
    differing = comparison.differing
    if 2 * len(differing) > comparison.cut > 0:
        return f"{where} is passed over: it cuts {differing[0]} in another way than the YAML says"
    if differing or not comparison.shared:
        what = f"cuts {differing[0]} in another way than" if differing else "has no tensor of"
        raise StrategyError(
            f"it {what} the YAML's model, and nobody can know which is right",
            where,
            "if it is of an earlier job, move it away; if it is of this one, say so with --dst-strategy "
            "(--mindformers-version tells whose rules the YAML is read by)",
        )
    return ""


class Compared(Struct, frozen=True):
    """Tensors of two strategies: how many both have, how many either cuts, which they cut differently."""

    shared: int
    cut: int
    differing: tuple[str, ...]


def compared(a: Strategy, b: Strategy) -> Compared:
    shared = cut = 0
    differing = []
    for ours, theirs in zip(a.stages, b.stages, strict=True):
        for name in (n for n in ours if n in theirs):
            shared += 1
            cut += any(map(_cuts, (ours[name], theirs[name])))
            if not same_cut(ours[name], theirs[name]):
                differing.append(name)
    return Compared(shared, cut, tuple(sorted(differing, key=lambda name: (is_state(name), name))))


def _cuts(entry: AnySharding) -> bool:
    return any(n > 1 for n in (entry if isinstance(entry, Sharding) else entry.sharding).parts)


def same_cut(a: AnySharding, b: AnySharding) -> bool:
    """Whether every rank holds the same part. Of an entry that JSON flattened, by any cut that it may stand for."""
    if isinstance(a, Factored):
        if isinstance(b, Factored):
            return a.sharding == b.sharding
        return any(same_cut(sharding, b) for sharding in a.groupings(len(b.parts)))
    if isinstance(b, Factored):
        return same_cut(b, a)
    return a.parts == b.parts and a.cells() == b.cells()
