"""What every rank calls when a job starts: afterwards the weights lie as the job loads them, and its YAML says so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import xxhash
from msgspec import Struct, field

from reshard.auto.config import SRC_STRATEGY, Config, read_config
from reshard.auto.contradiction import held_shapes, model_of, refuse_contradiction, refuse_slice
from reshard.auto.converting import JobConversion, convert_together, preview, replaced
from reshard.auto.handover import handed_over
from reshard.auto.job_names import names_wanted
from reshard.auto.job_source import JobSource, job_source, reads_itself, refuse_unknown_cut
from reshard.auto.job_strategy import JobStrategy, StrategySearch, job_strategy, made_from_yaml
from reshard.auto.launch import PORTS, Launch, launch_of
from reshard.auto.matching import Here, match
from reshard.auto.meeting import Hello
from reshard.auto.mirroring import Mirror
from reshard.auto.results import HANDED_OVER, Results, refuse_file, save_strategy, write_if_other
from reshard.auto.session import Session
from reshard.auto.settings import AutoSettings, read_settings
from reshard.auto.shares import OwnFiles, parts
from reshard.errors import InputError, ReshardError, UsageError, counted
from reshard.families.headers import index_files
from reshard.interruption import clears_up, proceed
from reshard.ops.observer import Observer
from reshard.ops.options import Means
from reshard.target.overwrite import forget

MEETING = ".reshard-auto"
Action = Literal["converted", "dry run", "left to the job", "matches", "nothing", "on load", "strategy", "scheduler"]


class Call(Struct, frozen=True):
    """How a rank takes part.

    Attributes:
        changes: settings by dotted key that win over the YAML.
        dst_strategy: the job's strategy, where it is neither in ``output/strategy`` nor to be made from the YAML.
        mindformers_version: whose rules a strategy is made by.
        per_node: each machine makes the files of its own ranks on its own disk.
        peer_timeout_s: how long another rank may be silent.
        goes_on: whether the framework starts afterwards, by a command or in this process.
        dry_run: say what would be done; nothing is written.
        hello_port: where rank 0 listens on the launcher's master address; None for one derived from the launcher's.
        limits: workers, memory, rate and the like of the conversion.
    """

    changes: Mapping[str, Any] = {}
    dst_strategy: str = ""
    mindformers_version: str = ""
    per_node: bool = False
    peer_timeout_s: float = 120.0
    hello_port: int | None = None
    goes_on: bool = True
    dry_run: bool = False
    limits: Means = field(default_factory=Means)

    def __post_init__(self) -> None:
        if not self.peer_timeout_s > 0:
            raise UsageError(f"a peer timeout of {self.peer_timeout_s} s", hint="--peer-timeout takes seconds above 0")
        if self.hello_port is not None and not 0 <= self.hello_port < PORTS:
            raise UsageError(
                f"port {self.hello_port}", hint=f"--hello-port takes a number below {PORTS}; 0: do not ask"
            )


class Prepared(Struct, frozen=True):
    """How the job goes on.

    Attributes:
        config: the YAML for the framework that starts next.
        load_checkpoint: what it loads.
        action: what was done.
        said: the same in words, a line each.
    """

    config: str
    load_checkpoint: str
    action: Action
    said: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def prepare(
    config: str | Path | Mapping[str, Any],
    *,
    rank: int | None = None,
    world_size: int | None = None,
    call: Call | None = None,
    observer: Observer | None = None,
) -> Prepared:
    """Bring a job's weights into its layout, together with its other ranks.

    Every rank calls it. The result is in ``output/transformed_checkpoint`` (``unified_checkpoint`` for safetensors) and
    the YAML to start with in ``output/reshard_run.yaml``.

    Args:
        config: the job's YAML, or its settings as a mapping.
        rank, world_size: None for what the launcher's environment says.

    Raises:
        UsageError: a setting is wrong, or the ranks do not share ``output_dir``; nothing was written.
        InputError: the source cannot become the job's layout.
        RunError: another rank failed or did not come; the error says which and why.
    """
    call = call or Call()
    launch = launch_of(os.environ, rank, world_size)
    if launch.scheduler:
        return Prepared(str(config) if isinstance(config, str | Path) else "", "", "scheduler",
                        ("a MindSpore scheduler: it has no rank and takes no part",))  # fmt: skip
    read = read_config(config, call.changes)
    settings = read_settings(read, launch, os.environ)
    return _Start(read, settings, launch, call).run(observer or Observer())


class _Start(Struct, frozen=True):
    """One rank at the start of a job."""

    config: Config
    settings: AutoSettings
    launch: Launch
    call: Call

    @clears_up()
    def run(self, observer: Observer) -> Prepared:
        settings = self.settings
        refuse_file(Path(settings.output_dir).absolute())
        if settings.only_save_strategy:
            return self._strategy_alone()
        if not settings.load_checkpoint:
            return self._as_it_is("nothing", "load_checkpoint is empty: there are no weights to load")
        if settings.own_loader and reads_itself(settings.load_checkpoint):
            return self._left_to_job("use_legacy_format: False: the job reads load_checkpoint and cuts it by itself")
        if not settings.auto_trans and not settings.own_loader:
            return self._as_it_is("nothing", "auto_trans_ckpt is not True: the weights are loaded as they are")
        if self.call.dry_run:
            return self._shown(self._planned())
        session = self._session()
        session.arrive()
        try:
            planned = self._planned()
        except ReshardError as error:
            self._tell_waiting(session, error)
            raise
        if isinstance(planned, Prepared):
            session.withdraw()
            return planned
        return self._convert(session, planned, observer)

    def _shown(self, planned: Prepared | JobConversion) -> Prepared:
        if isinstance(planned, Prepared):
            return planned
        said, warnings = preview(planned)
        return Prepared("", self.settings.load_checkpoint, "dry run", said, (*self.settings.warnings, *warnings))

    def _planned(self) -> Prepared | JobConversion:
        """What is seen from this rank alone: nothing is to be done, or what all are to do together."""
        settings = self.settings
        source = job_source(settings)
        wanted = StrategySearch(self.launch.world, self.call.dst_strategy, self.call.mindformers_version)
        model = model_of(self.config, self.call.mindformers_version)
        refuse_slice(source, model)
        strategy = job_strategy(self.config, settings, wanted)
        matched = "" if source.family or settings.own_loader else match(self._here(source), strategy, settings.format)
        held = held_shapes(index_files(source.found)) if matched and not source.found.distributed else {}
        if matched and not names_wanted(held, strategy.strategy, model):
            refuse_contradiction(model, held, settings.load_checkpoint)
            return self._as_it_is("matches", f"nothing to convert: {matched}", strategy.warnings)
        if settings.on_load:
            said = "transform: on_load: nothing is converted; the script loads with reshard.auto.load"
            return self._as_it_is("on load", said, strategy.warnings)
        refuse_unknown_cut(source)
        if settings.own_loader and len(self._members()) < self.launch.world:
            raise UsageError(
                "each machine converts by itself, and a Checkpoint 2.0 tells of the files of all",
                self.config.where,
                "put output_dir on a disk that all machines share",
            )
        ckpt = source.found.files[0][1].endswith(".ckpt") and not settings.own_loader
        form = "safetensors" if settings.own_loader else settings.format or ("ckpt" if ckpt else "safetensors")
        results = Results.of(settings, form)
        results.refuse_inside(settings, replaced(results, strategy, form))
        return JobConversion(settings, source, strategy, results, self._parts(strategy), form, model, self.call.limits)

    def _here(self, source: JobSource) -> Here:
        return Here(source.found, source.strategy, self.launch.rank, self.settings.per_node)

    def _tell_waiting(self, session: Session, error: ReshardError) -> None:
        """Others may see what this rank does not, and wait for it: they hear why it cannot begin."""
        if not session.awaited():
            session.withdraw()
            return
        with suppress(ReshardError), session:
            session.join(refusing=error)
            raise error

    def _convert(self, session: Session, job: JobConversion, observer: Observer) -> Prepared:
        settings, strategy = self.settings, job.strategy
        places = replaced(job.results, strategy, job.format)
        with session:
            session.join()
            session.refuse_neighbours()
            outcome = convert_together(session, job, observer)
            if settings.remote_save_url:
                self._mirror(session, job.results, places)
            path = self._hand_over(outcome.load_checkpoint)
            if session.leads:
                for place in places:
                    forget(place, "old")
            proceed()
        said = (
            f"{outcome.load_checkpoint}: {counted(outcome.done.files, 'file')}, {strategy.why}",
            *outcome.notes,
        )
        warnings = (*settings.warnings, *outcome.warnings)
        return Prepared(path, outcome.load_checkpoint, "converted", said, warnings)

    def _mirror(self, session: Session, results: Results, places: list[Path]) -> None:
        """Send the results away; the signs of success last, when all ranks have sent theirs."""
        mirror = Mirror(results, self.settings.remote_save_url, session.proceed)
        mirror.send_rank(self.launch.rank)
        session.tell(f"sent_{self.launch.rank}", True)
        if session.leads:
            for rank in session.members:
                session.wait(lambda rank=rank: session.told(f"sent_{rank}", bool))  # type: ignore[misc]
            mirror.send_rest([folder for folder in places if folder != results.root])
            session.tell("mirrored", True)
        session.wait(lambda: session.told("mirrored", bool))

    def _members(self) -> tuple[int, ...]:
        """The ranks that convert together: all of the job, or those of this machine."""
        if not (self.call.per_node or self.settings.own_disks):
            return tuple(range(self.launch.world))
        per_node = min(self.settings.per_node, self.launch.world)
        first = self.launch.rank // per_node * per_node
        return tuple(range(first, min(first + per_node, self.launch.world)))

    def _parts(self, strategy: JobStrategy) -> dict[int, OwnFiles]:
        members, writers = self._members(), self.settings.writers
        ranks = members if strategy.strategy is not None else (0,)
        if len(members) == self.launch.world:
            return parts(members, ranks, writers, by_bytes=writers == 0)
        by_node = writers * len(members) // self.launch.world if writers else len(members)
        return parts(members, ranks, max(1, by_node), by_bytes=False)

    def _session(self) -> Session:
        folder = Path(self.settings.output_dir).absolute() / MEETING
        members = self._members()
        port = self.launch.port if self.call.hello_port is None else self.call.hello_port
        whole = len(members) == self.launch.world > 1
        meeting = Hello(folder, 0, (self.launch.address, port)) if whole and self.launch.address and port else None
        return Session(folder, self.launch.rank, members, self._about(), self.call.peer_timeout_s, meeting)

    def _about(self) -> str:
        """What all ranks must have been told alike. Paths may differ where machines mount disks in other places."""
        paths = ("output_dir", "load_checkpoint", *SRC_STRATEGY)
        content = {key: value for key, value in self.config.content.items() if key not in paths}
        return xxhash.xxh3_64_hexdigest(
            repr((self.launch.world, len(self._members()), self.call.mindformers_version, content)).encode()
        )

    def _as_it_is(self, action: Action, said: str, warnings: tuple[str, ...] = ()) -> Prepared:
        load = self.settings.load_checkpoint
        return Prepared(self._hand_over(load), load, action, (said,), (*self.settings.warnings, *warnings))

    def _left_to_job(self, said: str) -> Prepared:
        """What the framework does itself: it starts with the settings as they are."""
        load = self.settings.load_checkpoint
        return Prepared(self._hand_over(None), load, "left to the job", (said,), self.settings.warnings)

    def _hand_over(self, load_checkpoint: str | None) -> str:
        """Write the YAML for the framework, and give its path; "" where nothing is to be written."""
        if self.call.dry_run:
            return ""
        path = Path(self.settings.output_dir).absolute() / HANDED_OVER
        write_if_other(path, handed_over(self.config, load_checkpoint))
        return str(path)

    def _strategy_alone(self) -> Prepared:
        """``only_save_strategy``: the first of the ranks that share a disk writes the files of all, nothing is started.
        What is not made from the YAML the job writes itself.
        """
        settings = self.settings
        wanted = StrategySearch(self.launch.world, self.call.dst_strategy, self.call.mindformers_version)
        first, *others = self._members()
        if self.launch.rank in others and made_from_yaml(self.config, settings, wanted):
            # to look into the folder while the first replaces it would find it half gone
            said = f"only_save_strategy: rank {first} saves it"
            return Prepared("", settings.load_checkpoint, "strategy", (said,), settings.warnings)
        try:
            strategy = job_strategy(self.config, settings, wanted)
        except InputError as error:
            if not self.call.goes_on:
                raise
            return self._left_to_job(f"only_save_strategy: the job writes its own; from the YAML: {error.message}")
        folder = Path(settings.output_dir).absolute() / "strategy"
        if strategy.strategy is None:
            said = "only_save_strategy: a job of one full checkpoint has no strategy"
        elif strategy.path:
            said = f"only_save_strategy: it is there already: {strategy.path}"
        else:
            said = f"only_save_strategy: {folder}, {strategy.why}"
            if not self.call.dry_run:
                save_strategy(folder, strategy, settings)
        return Prepared("", settings.load_checkpoint, "strategy", (said,), (*settings.warnings, *strategy.warnings))
