"""``transform_checkpoint.py``: full or sliced .ckpt → another layout, by one process or by several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from reshard.compat.arguments import Parser, truth
from reshard.compat.console import Progress, banner, log, program, warn
from reshard.compat.mindspore.catalogs import of_files
from reshard.compat.placing import is_staged, on_disk, place_folders, remove, staged
from reshard.compat.strategies import merge_signals, prepared
from reshard.digits import number_in
from reshard.errors import PlanError, ReshardError, UsageError, counted, reported
from reshard.families.discover import Select
from reshard.layout.stages import Strategy
from reshard.ops.convert import execute, plan, plan_from
from reshard.ops.options import Options
from reshard.ops.strange_files import lost_with
from reshard.planning.decide import Missing
from reshard.storage.storages import is_inside
from reshard.target.preflight import refuse_within
from reshard.target.target_paths import Place

_SPELLINGS = {
    "--src_ckpt_dir": "--src_checkpoint",
    "--src_ckpt_path_or_dir": "--src_checkpoint",
    "--dst_ckpt_dir": "--dst_checkpoint_dir",
    "--src_strategy_path_or_dir": "--src_strategy",
    "--src_ckpt_strategy": "--src_strategy",
    "--dst_strategy_path_or_dir": "--dst_strategy",
    "--dst_ckpt_strategy": "--dst_strategy",
    "--process_num": "--transform_process_num",
}
_EXAMPLE = ("--src_checkpoint=llama.ckpt", "--dst_checkpoint=out", "--dst_strategy=strategy/")


class Transformation(Struct, frozen=True):
    """What one process was asked to do.

    Attributes:
        rank_id: this process's number. Where ``shared``, it makes the target ranks from here to the next process's.
        world_size: target ranks, of which ``processes`` processes make an equal share each.
        shared: other processes were started for the other ranks; else this one makes them all.
    """

    src: str
    dst: str
    src_strategy: str
    dst_strategy: str
    prefix: str
    rank_id: int
    world_size: int
    processes: int
    shared: bool
    by_rank: bool
    missing: Missing

    @property
    def writers(self) -> range:
        """The numbers of the processes that write."""
        return range(0, self.world_size, self.world_size // self.processes)

    @property
    def select(self) -> Select:
        """The reference's rule for several files in a ``rank_x``: the last by name, or by rank the last changed."""
        return "mtime" if self.by_rank else "name"


def _run(argv: Sequence[str]) -> None:
    job = _job(argv)
    log(f"rank_id: {job.rank_id}")
    log(f"world_size: {job.world_size}")
    log(f"transform_process_num: {job.processes}")
    log(f"transform_rank_id_list: {list(job.writers)}")
    if not job.src_strategy and not job.dst_strategy:
        raise UsageError("`src_strategy` and `dst_strategy` cannot both be None!")
    if job.shared and job.rank_id not in job.writers:
        log(f"rank_id {job.rank_id} is not in transform_rank_id_list: nothing to do")
        return
    main = job.rank_id == 0
    sources = _sources(job.src)
    transforms = [_Transform(job, source, Path(job.dst, name)) for name, source in sources.items()]
    for transform in transforms:
        transform.refuse_inside()
    try:
        src, dst = prepared(job.src_strategy, write=main), prepared(job.dst_strategy, write=main)
        options = Options(
            src,
            dst,
            format="ckpt",
            prefix=job.prefix,
            select=job.select,
            ranks=_ranks(job, dst),
            missing=job.missing,
            overwrite=True,
        )
        parts = _parts(job, [*sources.values()], replace(options, ranks=None)) if len(sources) > 1 else frozenset()
    except ReshardError as error:
        transforms[0].failed(error)
        raise
    with merge_signals([job.src_strategy, job.dst_strategy], main=main):
        for transform in transforms:
            transform.run(replace(options, missing="drop") if transform.source in parts else options)
    log("......Transform finished!......")


_CALLED = {"--src-strategy": "--src_strategy", "--dst-strategy": "--dst_strategy", "--missing": "--missing"}
_BY_PLACE = {
    "--src-strategy": "SRC_STRATEGY",
    "--dst-strategy": "DST_STRATEGY",
    "--world_size": "WORLD_SIZE",
    "--rank_id": "RANK_ID",
}
"""Of the .sh, whose words have no options."""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command line, whoever called it."""
    return program(_run, _BY_PLACE if os.environ.get("RESHARD_CALLED") else _CALLED)(argv)


def _job(argv: Sequence[str]) -> Transformation:
    options = Parser(
        "transform_checkpoint", "Convert MindSpore .ckpt weights between parallel layouts.", _EXAMPLE, _SPELLINGS
    )
    add = options.add
    add("--src_checkpoint", metavar="P", help="a .ckpt, a folder of them, or of rank_x/")
    add("--dst_checkpoint_dir", metavar="P", help="gets NAME/rank_r/{prefix}{r}.ckpt")
    add("--src_strategy", metavar="P", help="file or folder; none: a full checkpoint")
    add("--dst_strategy", metavar="P", help="file or folder; none: a full checkpoint")
    add("--prefix", "checkpoint_", help="beginning of the file names (default: %(default)s)")
    add("--rank_id", None, int, metavar="R", help="number of this process (default: env RANK_ID; none: it makes all)")
    add("--world_size", 1, int, metavar="N", help="target ranks that the processes share")
    add("--transform_process_num", 1, int, metavar="N", help="processes; with --rank_id or RANK_ID this is one of them")
    add("--transform_by_rank", False, truth, metavar="BOOL", help="take the file last changed of a rank_x")
    add("--missing", "error", choices=["error", "drop"], help="ours: drop leaves out what nobody can know")
    given = options.parse(argv)
    if not given.src_checkpoint:
        raise UsageError("--src_checkpoint must be given")
    dst = given.dst_checkpoint_dir or os.path.join(os.getcwd(), "transformed_checkpoint")
    if not given.dst_checkpoint_dir:
        warn([f"`dst_checkpoint_dir` is set to {dst}"])
    on_disk(dst)
    processes = _processes(given.transform_process_num, given.world_size)
    rank = _given_rank(given.rank_id, given.world_size) if processes > 1 else None
    return Transformation(
        given.src_checkpoint.rstrip("/") or "/",
        dst,
        given.src_strategy,
        given.dst_strategy,
        given.prefix,
        rank or 0,
        given.world_size,
        processes,
        rank is not None,
        processes > 1 or (given.transform_by_rank and given.world_size > 1),
        given.missing,
    )


def _given_rank(option: int | None, world: int) -> int | None:
    """The number of this process, an option of 0 or none being overruled by the environment; None: there is one."""
    text = os.environ.get("RANK_ID", "")
    told = number_in(text)
    if text and told is None:
        raise UsageError(f"RANK_ID={text!r} is not a number")
    rank = option or (told if text else option)
    if rank is not None and not 0 <= rank < world:
        raise UsageError(
            f"rank_id {rank} is not one of {world} ranks", hint="check --rank_id or RANK_ID, and --world_size"
        )
    return rank


def _processes(asked: int, world: int) -> int:
    if world < 1 or asked < 1:
        raise UsageError(f"world_size {world} and transform_process_num {asked} should not be smaller than 1")
    if asked > world:
        warn([f"transform_process_num {asked} is bigger than world_size {world}: set to {world}"])
        return world
    if world % asked:
        raise UsageError(f"transform_process_num {asked} does not divide world_size {world}")
    return asked


def _sources(src: str) -> dict[str, str]:
    """For each folder of the target its source: the folder of ``rank_x``, or full files, each on its own."""
    folder = Path(src)
    if folder.is_dir():
        files = sorted(folder.glob("*.ckpt"))
        if any(folder.glob("rank_*")) or not files:
            return {folder.resolve().name: src}
    else:
        real = folder.resolve()
        files = [real if real.suffix == folder.suffix else folder]
    stems = [p.name.split(".")[0] for p in files]
    if len(set(stems)) < len(stems):
        warn(["files of the same name up to the first dot: their folders are called by their whole names"])
        stems = [p.stem for p in files]
    return dict(zip(stems, map(str, files), strict=True))


def _ranks(job: Transformation, dst_strategy: str | Strategy) -> frozenset[int] | None:
    """The target ranks that this process makes; None for all of them."""
    world = dst_strategy.world if isinstance(dst_strategy, Strategy) else 1
    if not job.shared:
        if job.world_size not in (1, world):
            warn([f"world_size is {job.world_size}, the target has {counted(world, 'rank')}: all are made"])
        return None
    if not dst_strategy:
        return frozenset({0} if job.rank_id == 0 else ())
    if world != job.world_size:
        raise UsageError(
            f"world_size is {job.world_size}, the strategy has {counted(world, 'rank')}: no process makes some",
            where=job.dst_strategy,
            hint=f"--world_size {world}",
        )
    return frozenset(range(job.rank_id, job.rank_id + job.world_size // job.processes))


def _parts(job: Transformation, sources: list[str], options: Options) -> frozenset[str]:
    """Of the full files of one folder, each converted by itself, those that make a whole only together.

    Raises:
        PlanError: they do not.
    """
    lacking: dict[str, PlanError] = {}
    for source in sources:
        try:
            plan(source, job.dst, options)
        except PlanError as error:
            lacking[source] = error
    if len(lacking) == 1:
        ((source, alone),) = lacking.items()
        raise PlanError(alone.message, source, alone.hint)
    if lacking:
        plan_from(of_files(dict(enumerate(lacking))), job.dst, options)
    return frozenset(lacking)


class _Transform:
    """One source into its folder of the target."""

    def __init__(self, job: Transformation, source: str, target: Path) -> None:
        self._job = job
        self.source = source
        self._target = target

    def run(self, options: Options) -> None:
        log(f"The transformed checkpoint will be saved under {self._target}.")
        try:
            self._clear()
            if options.ranks is None or options.ranks:
                self._convert(options)
        except BaseException as error:
            self.failed(error)
            raise
        with reported(self._target):
            self._target.mkdir(parents=True, exist_ok=True)
            self._signal("succeed").touch()
        banner("Transform succeed!")
        log(f"The transformed checkpoint was saved to {self._target}")

    def _convert(self, options: Options) -> None:
        job = self._job
        banner("Transforming ckpt")
        log(f"src_checkpoint: {self.source}")
        log(f"src_strategy: {job.src_strategy or None}")
        log(f"dst_checkpoint: {self._target}")
        log(f"dst_strategy: {job.dst_strategy or None}")
        progress = Progress("Transforming checkpoint")
        made = plan(self.source, self._target, options)
        warn(made.warnings)
        log(f"checkpoint_file_map: {[s.path for s in made.sources]}")
        if job.by_rank:
            for file in made.files:
                banner(f"Transforming Ckpt For Rank: {file.rank}")
                log(f"save_checkpoint_path: {self._target / file.path}")
        if not job.shared:
            warn(execute(made, self._target, options, progress).warnings)
        else:
            with staged(self._target) as folder:
                warn(execute(made, folder, options, progress).warnings)
                place_folders(folder, self._target)
        for left in made.left_out:
            log(f"{left.fate}: {len(left.names)}: {left.reason}")
        progress.finish()

    def refuse_inside(self) -> None:
        """Nothing that was given may lie in the folder whose content is replaced, nor that in what is read."""
        refuse_within(Place.of(self._target, single=False), (self.source,))
        for given in filter(None, (self.source, self._job.src_strategy, self._job.dst_strategy)):
            if is_inside(given, self._target):
                raise UsageError(f"{given} lies inside the target", str(self._target), "choose another target")

    def _clear(self) -> None:
        """What an earlier run left and this one does not replace: each process its own, the first what is nobody's."""
        job = self._job
        for outcome in ("succeed", "failed"):
            remove(self._signal(outcome))
        if not job.shared or job.rank_id or not self._target.is_dir():
            return
        warn(lost_with(self._target))
        ranks = {f"rank_{r}" for r in range(job.world_size if job.dst_strategy else 1)}
        signals = {self._signal(o, r).name for o in ("succeed", "failed") for r in job.writers}
        with reported(self._target):
            for path in sorted(self._target.iterdir()):
                if path.name not in ranks | signals and not is_staged(path):
                    remove(path)

    def failed(self, error: BaseException) -> None:
        kind = type(error).__name__
        banner(f"Transform failed due to: {kind}")  # what it says comes once, on standard error
        with suppress(OSError):  # the error itself is what must be seen
            self._target.mkdir(parents=True, exist_ok=True)
            self._signal("failed").write_text(str(error) or kind, encoding="utf-8", errors="backslashreplace")

    def _signal(self, outcome: str, rank: int | None = None) -> Path:
        return self._target / f"transform_{outcome}_rank_{self._job.rank_id if rank is None else rank}.txt"
