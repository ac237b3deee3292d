"""Strategy files and folders of them → one Strategy; merging of the stages of a pipeline."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from reshard.errors import CheckpointError, StorageError, StrategyError, counted, listed, reported
from reshard.foreign import HEAD_NBYTES, foreign, hint_of_yaml
from reshard.layout.stages import AnySharding, Strategy
from reshard.layout.tensor import Sharding
from reshard.plain_files import local_content
from reshard.strategy.file import STAGE_PREFIX, LayoutItem, Operator, StrategyFile
from reshard.strategy.json_file import read_json, write_json
from reshard.strategy.protobuf import read_protobuf, write_protobuf

_RANK = re.compile(r"_rank_(\d+)\.(?:ckpt|json)$")
SUFFIXES = (".ckpt", ".json")


class AnyPath(Protocol):
    """What reading needs of a path; ``pathlib.Path`` has it, and so may what lies elsewhere."""

    @property
    def name(self) -> str: ...

    @property
    def suffix(self) -> str: ...

    def is_dir(self) -> bool: ...

    def iterdir(self) -> Iterator[AnyPath]: ...

    def read_bytes(self) -> bytes: ...


def read_strategy(path: str | AnyPath) -> Strategy:
    """Read a strategy file (.ckpt or .json) or a folder of per-rank files. Raises StrategyError, StorageError."""
    path = Path(path) if isinstance(path, str) else path
    if path.is_dir():
        return _from_stages(stage_files(path), str(path))
    return of_file(_read_file(path))


def of_file(file: StrategyFile) -> Strategy:
    """What a file alone says. Raises StrategyError where that is a part only."""
    if file.merged:
        return _from_stages(_split(file), file.path)
    if file.stage != 0:
        raise StrategyError(
            f"the file describes pipeline stage {file.stage} alone",
            where=file.path,
            hint="give the folder with the files of all stages, or their merged file",
        )
    return _from_stages({0: file}, file.path)


def merge_stages(folder: str | AnyPath) -> StrategyFile:
    """The per-rank files of a folder as one file of all stages, names as ``0-name``. Raises StrategyError."""
    stages = stage_files(Path(folder) if isinstance(folder, str) else folder)
    _from_stages(stages, str(folder))
    layouts: dict[str, LayoutItem] = {}
    operators: dict[str, Operator] = {}
    for stage, file in stages.items():
        layouts |= {f"{stage}-{name}": item for name, item in file.layouts.items()}
        operators |= {f"{stage}-{op.name}": op for op in file.operators}
    return StrategyFile(str(folder), stages[0].kind, tuple(operators.values()), layouts)


def encode(file: StrategyFile, current_stage: int) -> bytes:
    """The bytes of a strategy file in its own encoding."""
    write = write_json if file.kind == "json" else write_protobuf
    return write(file.operators, file.layouts, current_stage)


def stage_files(folder: AnyPath) -> Mapping[int, StrategyFile]:
    """One file for each stage, by what the files say; equal ones and an old merged one are passed over."""
    if not folder.is_dir():
        raise StrategyError("no such folder", where=str(folder))
    paths = sorted((p for p in _listed(folder) if p.suffix == ".ckpt" or is_strategy_json(p)), key=lambda p: p.name)
    if not paths:
        raise StrategyError(
            "no strategy file (.ckpt or .json) in the folder",
            where=str(folder),
            hint=_one_level_down(folder) or "a job leaves its ckpt_strategy_rank_x.ckpt in output/strategy",
        )
    if len({p.suffix for p in paths}) > 1:
        raise StrategyError(
            "both .ckpt and .json strategies in the folder",
            where=str(folder),
            hint="keep one kind, or name one file",
        )
    files = list(_distinct(paths))
    single = [f for f in files if not f.merged]
    if not single:
        if len(files) > 1:
            raise _mixed(folder, [files[0].path, files[1].path])
        return _split(files[0])
    stages: dict[int, StrategyFile] = {}
    for file in single:
        known = stages.setdefault(file.stage, file)
        if known is not file and known.entries() != file.entries():
            raise _mixed(folder, [known.path, file.path])
    _check_ranks(folder, paths, single, stages)
    return dict(sorted(stages.items()))


def _one_level_down(folder: AnyPath) -> str:
    """Where in a folder that has no strategies they are; "" where nowhere."""
    below = sorted(str(place) for place in _listed(folder) if place.is_dir() and _holds_strategies(place))
    return f"there are some in {' and in '.join(below)}: give one of these" if below else ""


def _holds_strategies(folder: AnyPath) -> bool:
    with suppress(StorageError):  # one that may not be looked into, as lost+found
        return any(p.suffix in SUFFIXES and "strategy" in p.name for p in _listed(folder))
    return False


def is_strategy_json(path: AnyPath) -> bool:
    """Whether a file is a JSON strategy and not any other JSON that lies beside."""
    return path.suffix == ".json" and b'"parallel_layout_item"' in bytes_of(path)


def _distinct(paths: Iterable[AnyPath]) -> Iterable[StrategyFile]:
    """Files of equal bytes are read once: the ranks of a stage write the same."""
    seen: set[bytes] = set()
    for path in paths:
        data = bytes_of(path)
        if data not in seen:
            seen.add(data)
            yield _decode(data, path)


def _check_ranks(
    folder: AnyPath, paths: list[AnyPath], files: list[StrategyFile], stages: Mapping[int, StrategyFile]
) -> None:
    """A file named for rank r must describe the stage that r is in, else the files are of two jobs."""
    devices = _devices(stages[min(stages)])
    faults = []
    for file in files:
        found = _RANK.search(file.path)
        if found and file.operators and int(found[1]) // devices != file.stage:
            faults.append(f"{Path(file.path).name} describes stage {file.stage} of {counted(devices, 'rank')} a stage")
    world = devices * len(stages)
    for path in paths:
        found = _RANK.search(path.name)
        if found and int(found[1]) >= world and max(stages) == len(stages) - 1:
            faults.append(f"{path.name}: the stages found have ranks 0 to {world - 1}")
    if faults:
        raise StrategyError(
            "the files are not of one job:\n" + listed(faults),
            where=str(folder),
            hint="keep the files of one job",
        )


def _mixed(folder: AnyPath, paths: list[str]) -> StrategyError:
    names = " and ".join(Path(p).name for p in paths)
    return StrategyError(
        f"two strategies are mixed: {names} contradict each other",
        where=str(folder),
        hint="keep the files of one job in the folder, or name one merged file",
    )


def _listed(folder: AnyPath) -> list[AnyPath]:
    with reported(folder):
        return list(folder.iterdir())


def bytes_of(path: AnyPath) -> bytes:
    """Raises StrategyError where there is none, StorageError."""
    try:
        with reported(path):
            return local_content(path) if isinstance(path, Path) else path.read_bytes()
    except CheckpointError as error:
        raise StrategyError(error.message, error.where, error.hint) from None


def _read_file(path: AnyPath) -> StrategyFile:
    return _decode(bytes_of(path), path)


def _decode(data: bytes, path: AnyPath) -> StrategyFile:
    try:
        return (read_json if path.suffix == ".json" else read_protobuf)(data, str(path))
    except StrategyError as error:
        other = foreign(data[:HEAD_NBYTES])
        if other is None or (path.suffix == ".json" and error.hint):  # JSON that is no strategy, whole as it is
            raise
        weights = other.hint.startswith("rename it")  # under whatever name, it would be none
        hint = hint_of_yaml(str(path)) or (error.hint if weights else other.hint)
        raise StrategyError(f"it is {other.what}, not a strategy file", error.where, hint) from error


def _split(file: StrategyFile) -> Mapping[int, StrategyFile]:
    """A merged file as one file for each stage."""
    layouts: dict[int, dict[str, LayoutItem]] = {}
    for full_name, item in file.layouts.items():
        found = STAGE_PREFIX.fullmatch(full_name)
        if found:
            layouts.setdefault(int(found[1]), {})[found[2]] = item
    return {
        stage: StrategyFile(file.path, file.kind, tuple(op for op in file.operators if op.stage == stage), items)
        for stage, items in sorted(layouts.items())
    }


def _from_stages(stages: Mapping[int, StrategyFile], where: str) -> Strategy:
    missing = [str(s) for s in range(max(stages) + 1) if s not in stages]
    if missing:
        raise StrategyError(
            f"pipeline stages {', '.join(map(str, sorted(stages)))} found, {', '.join(missing)} missing",
            where=where,
            hint="bring the strategy files of one rank of every stage together",
        )
    devices = {_devices(file) for file in stages.values()}
    if len(devices) > 1:
        raise StrategyError(
            f"stages of different size: {sorted(devices)} ranks",
            where=where,
            hint="are the files of one job?",
        )
    made = any(file.marked for file in stages.values())
    return Strategy(tuple(file.entries() for file in stages.values()), devices.pop(), where, made)


def _devices(file: StrategyFile) -> int:
    """Ranks of the stage that a file describes: what every device matrix in it multiplies to."""
    distinct: dict[int, tuple[str, AnySharding]] = {}  # thousands of tensors share a few
    for name, item in file.layouts.items():
        distinct.setdefault(id(item.entry), (name, item.entry))
    counts: dict[int, str] = {}
    for name, entry in distinct.values():
        counts.setdefault(_sharding_of(entry).devices, name)
    if len(counts) > 1:
        (a, first), (b, second) = list(counts.items())[:2]
        raise StrategyError(f"{first!r} is laid out on {a} ranks, {second!r} on {b}", where=file.path)
    return next(iter(counts))


def _sharding_of(entry: AnySharding) -> Sharding:
    return entry if isinstance(entry, Sharding) else entry.sharding
