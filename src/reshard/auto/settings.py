"""What a job's settings ask for, checked: MindFormers' keys with its defaults and its rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from msgspec import Struct

from reshard.auto.config import KEYS, SRC_STRATEGY, Config
from reshard.auto.launch import Launch
from reshard.digits import number_in
from reshard.errors import UsageError, listed
from reshard.families.discover import Select
from reshard.storage.storage import is_url
from reshard.strategy.spelling import misspelt
from reshard.yaml_text import whole_numbers

_SIGNS = ("MA_LOG_DIR", "MA_JOB_DIR", "MA_LOCAL_LOG_PATH", "BATCH_GROUP_NAME")
"""Any of these is set there. MindFormers takes keys of S3 for a sign too; those are set elsewhere as well."""
ROOT = "/cache/ma-user-work"
"""Where MindFormers works there; the machine's own disk."""

_AXES = ("data_parallel", "model_parallel", "context_parallel", "pipeline_stage")
_NPUS_PER_NODE = 8


class AutoSettings(Struct, frozen=True):
    """What to do with the weights when the job starts.

    Attributes:
        writers: processes that write, evenly spread over the ranks; 0 where all share the work by bytes.
        by_rank: take the file last changed of a ``rank_x`` with several, as MindFormers does then.
        parallel: whether the target is cut at all; else it is one full checkpoint.
        per_node: ranks on one machine.
        format: of the files that the job loads; "" where the YAML leaves it open.
        resume: False, True, or the name of a file to resume from.
        own_disks: machines share none; each converts its own ranks.
        on_load: the training script loads by itself, nothing is written.
        own_loader: MindFormers' newer loader, which reads whole weights and cuts them by itself.
    """

    load_checkpoint: str
    src_strategy: str
    auto_trans: bool
    writers: int
    by_rank: bool
    parallel: bool
    only_save_strategy: bool
    per_node: int
    output_dir: str
    format: str
    drop_redundancy: bool
    resume: bool | str
    own_disks: bool
    on_load: bool
    own_loader: bool
    remote_save_url: str
    warnings: tuple[str, ...] = ()

    def select(self, form: str) -> Select:
        """MindFormers' rule for several files of a format in a ``rank_x``."""
        if form == "safetensors":
            return "natural"
        return "mtime" if self.by_rank else "name"


class _Faults:
    """Typed values by key; what is wrong is gathered, so that all of it is said at once."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = whole_numbers(content)
        self.found: list[str] = []
        self.warnings: list[str] = []

    def get(self, key: str, default: Any, fits: Callable[[Any], bool], allowed: str) -> Any:
        value = self._content.get(key)
        if value is None:
            return default
        if not fits(value):
            self.found.append(f"{key}: {value!r}, allowed: {allowed}")
            return default
        return value

    def flag(self, key: str, *, default: bool = False) -> bool:
        return bool(self.get(key, default, lambda v: isinstance(v, bool), "True or False"))

    def text(self, key: str, default: str = "") -> str:
        value = str(self.get(key, default, lambda v: isinstance(v, str) and "\0" not in v, "text without NUL"))
        return default if value in ("", "None") else value


def read_settings(config: Config, launch: Launch, environment: Mapping[str, str]) -> AutoSettings:
    """Raises UsageError with every key that is wrong, the value seen and what is allowed."""
    keys = _Faults(config.content)
    keys.found += misspelt(config.content, KEYS)
    parallel = keys.flag("use_parallel", default=launch.world > 1)
    world = launch.world
    writers = _writers(keys, world)
    if parallel:
        _check_sizes(keys, config.content, world)
    settings = AutoSettings(
        load_checkpoint=_load_checkpoint(keys, config.content),
        src_strategy=_src_strategy(keys),
        auto_trans=keys.flag("auto_trans_ckpt"),
        writers=writers,
        by_rank=_by_rank(keys, writers, world),
        parallel=parallel and world > 1,
        only_save_strategy=keys.flag("only_save_strategy"),
        per_node=_per_node(keys, launch, environment),
        output_dir=_output_dir(keys, environment),
        format=str(keys.get("load_ckpt_format", "", lambda v: v in ("ckpt", "safetensors"), "ckpt or safetensors")),
        drop_redundancy=keys.flag("remove_redundancy"),
        resume=keys.get("resume_training", False, lambda v: isinstance(v, bool | str), "True, False or a file name"),
        own_disks=in_modelarts(environment),
        on_load=keys.get("transform", "write", lambda v: v in ("write", "on_load"), "write or on_load") == "on_load",
        own_loader=bool(config.content.get("checkpoint")) or not keys.flag("use_legacy_format", default=True),
        remote_save_url=keys.text("remote_save_url", environment.get("REMOTE_SAVE_URL", "")),
        warnings=tuple(keys.warnings),
    )
    if keys.found:
        raise UsageError(listed(keys.found, 99), config.where, "correct these keys; nothing was written")
    return settings


def _load_checkpoint(keys: _Faults, content: Mapping[str, Any]) -> str:
    """What the job loads; the map ``checkpoint`` of newer releases wins."""
    block = content.get("checkpoint")
    newer = block.get("load_path") if isinstance(block, Mapping) else None
    path = newer if isinstance(newer, str) and newer else keys.text("load_checkpoint")
    return path.rstrip("/") or path


def _src_strategy(keys: _Faults) -> str:
    given = dict.fromkeys(filter(None, map(keys.text, SRC_STRATEGY)))
    if len(given) > 1:
        keys.found.append(f"{' and '.join(SRC_STRATEGY)}: {' and '.join(map(repr, given))}, allowed: one of the two")
    return next(iter(given), "")


def _writers(keys: _Faults, world: int) -> int:
    def fits(value: object) -> bool:
        return value == "auto" or (type(value) is int and value >= 1)

    asked = keys.get("transform_process_num", 1, fits, "a number from 1 that divides the world size, or auto")
    if asked == "auto":
        return 0
    if asked > world:
        keys.warnings.append(f"transform_process_num {asked} is more than the {world} processes: set to {world}")
        return world
    if world % asked:
        keys.found.append(f"transform_process_num: {asked}, allowed: a number that divides the world size {world}")
        return 1
    return int(asked)


def _by_rank(keys: _Faults, writers: int, world: int) -> bool:
    asked = keys.flag("transform_by_rank")
    return world > 1 and (writers != 1 or asked)


def _per_node(keys: _Faults, launch: Launch, environment: Mapping[str, str]) -> int:
    told = number_in(environment.get("DEVICE_NUM_PER_NODE", ""))
    default = told if told is not None else launch.local_world or _NPUS_PER_NODE

    def fits(value: object) -> bool:
        return type(value) is int and value > 0 and value & (value - 1) == 0

    return int(keys.get("npu_num_per_node", default, fits, "a power of two"))


def _output_dir(keys: _Faults, environment: Mapping[str, str]) -> str:
    output = keys.text("output_dir", ROOT if in_modelarts(environment) else "./output")
    if is_url(output):
        keys.found.append(
            f"output_dir: {output!r}, allowed: a folder on disk; remote_save_url names where to mirror it"
        )
    return output


def _check_sizes(keys: _Faults, content: Mapping[str, Any], world: int) -> None:
    """What the axes multiply to must be the world."""
    axes = whole_numbers(content.get("parallel_config"))
    if axes is None:
        return
    if not isinstance(axes, Mapping):
        keys.found.append(f"parallel_config: {axes!r}, allowed: a map")
        return
    sizes = [1 if (size := axes.get(axis)) is None else size for axis in _AXES]
    faulty = [
        f"parallel_config.{axis}: {size!r}, allowed: a number from 1"
        for axis, size in zip(_AXES, sizes, strict=True)
        if type(size) is not int or size < 1
    ]
    keys.found += faulty
    if not faulty and prod(sizes) != world:
        shown = " × ".join(f"{axis} {size}" for axis, size in zip(_AXES, sizes, strict=True))
        keys.found.append(f"parallel_config: {shown} = {prod(sizes)}, allowed: a product of {world}, the world size")


def in_modelarts(environment: Mapping[str, str]) -> bool:
    return any(name in environment for name in _SIGNS)
