"""Which files a source is made of: one file, a folder of full files, or ``rank_x`` folders with one file each."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reshard.errors import CheckpointError, FormatError, UsageError, listed
from reshard.formats.registry import format_of, suffixes
from reshard.run.storage import reported

Select = Literal["natural", "name", "mtime", "step"]
SELECTS: tuple[Select, ...] = ("natural", "name", "mtime", "step")
_RANK = re.compile(r"rank_(\d+)")
_STEP = re.compile(r"(\d+)_(\d+)\.[^.]+$")
_INDEX = ("model.safetensors.index.json", "param_name_map.json")


@dataclass(frozen=True, slots=True)
class Found:
    """Files with the rank that each belongs to; all of rank 0 where ``distributed`` is False."""

    path: str
    files: tuple[tuple[int, str], ...]
    distributed: bool
    warnings: tuple[str, ...] = ()


def discover(path: str | Path, select: Select = "natural", suffix: str = "") -> Found:
    """Find the weight files of a checkpoint.

    Args:
        select: which file of a ``rank_x`` that holds several, the last by: (epoch, step) in its name (``natural``:
            ``1_10`` after ``1_9``), plain order of names (``name``), time of change (``mtime``), the step alone.
        suffix: only files whose name ends so before its extension, as in ``1_10``.

    Raises:
        CheckpointError: nothing there, several formats in one rank, a rank twice.
    """
    path = Path(path)
    with reported(path):
        if path.is_file():
            _format_suffix(path)
            return Found(str(path), ((0, str(path)),), distributed=False)
        if not path.exists():
            raise CheckpointError("no such file or folder", str(path))
        entries = sorted(path.iterdir())
    folders = [p for p in entries if p.is_dir() and _RANK.fullmatch(p.name)]
    files = [p for p in entries if p.is_file() and p.name.endswith(tuple(suffixes()))]
    if folders:
        beside = (f"{path} holds weight files beside its rank folders: the rank folders are used",) if files else ()
        return _ranks(path, folders, select, suffix, beside)
    if not files:
        raise CheckpointError(
            f"no weight files ({' or '.join(sorted(suffixes()))}) and no rank_x folders",
            str(path),
            "give a weight file, a folder of them, or the folder that holds rank_0, rank_1, …",
        )
    return _full(path, files, suffix)


def _format_suffix(path: Path) -> None:
    if format_of(path.name) is None:
        raise FormatError(
            f"not a weight file by its name; expected {' or '.join(sorted(suffixes()))}",
            str(path),
            "rename it",
        )


def _full(path: Path, files: list[Path], suffix: str) -> Found:
    files = _with_suffix(path, files, suffix)
    if len({p.suffix for p in files}) > 1:
        raise CheckpointError(
            "full weight files of two formats in one folder", str(path), "name one file, or keep one format"
        )
    warnings = tuple(w for name in _INDEX if (path / name).is_file() for w in _check_index(path / name, files))
    return Found(str(path), tuple((0, str(p)) for p in files), distributed=False, warnings=warnings)


def _check_index(index: Path, files: list[Path]) -> tuple[str, ...]:
    """Every part that an index names must be there. Which tensors each holds, the headers say."""
    with reported(index):
        text = index.read_bytes()
    try:
        content = json.loads(text)
        names = set((content.get("weight_map", content)).values())
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise CheckpointError(f"not an index of weight files: {error}", str(index)) from None
    absent = sorted(str(n) for n in names - {p.name for p in files})
    if absent:
        raise CheckpointError(
            "parts that the index names are missing:\n" + listed(absent),
            str(index),
            "download the checkpoint again",
        )
    extra = sorted(p.name for p in files if p.name not in names and p.name != "hyper_param.safetensors")
    return (f"{index}: does not name {', '.join(extra[:4])}, whose tensors are taken too",) if extra else ()


def _with_suffix(path: Path, files: list[Path], suffix: str) -> list[Path]:
    """Files whose name ends in ``suffix`` before its extension; a number in the name is not cut in two."""
    if not suffix:
        return files
    cut = r"(?<!\d)" if suffix[0].isdigit() else ""
    found = [p for p in files if re.search(rf"{cut}{re.escape(suffix)}$", p.stem)]
    if not found:
        raise CheckpointError(
            f"no file whose name ends in {suffix!r} (of {len(files)} files)", str(path), "check --suffix"
        )
    return found


def _closest(folder: Path, files: list[Path], suffix: str) -> list[Path]:
    """Of several files that end in ``suffix`` the one that MindSpore would have called so: the separator that it puts
    before, then the shortest name. Raises CheckpointError where that leaves several.
    """
    if not suffix or len(files) == 1:
        return files
    bare = suffix.lstrip("-_")
    separator = "-" if re.fullmatch(r"\d+_\d+", bare) else "_"
    exact = [p for p in files if p.stem.endswith(separator + bare) and not p.stem.endswith(f"rank{separator}{bare}")]
    shortest = [p for p in exact if len(p.name) == min(len(q.name) for q in exact)]
    if len(shortest) != 1:
        raise CheckpointError(
            f"{len(files)} files end in {suffix!r}: {', '.join(p.name for p in files[:4])}",
            str(folder),
            "give a longer --suffix",
        )
    return shortest


def _ranks(path: Path, folders: list[Path], select: Select, suffix: str, warnings: tuple[str, ...]) -> Found:
    chosen: dict[int, Path] = {}
    differing: list[str] = []
    for folder in folders:
        rank = int(folder.name[5:])
        if rank in chosen:
            raise CheckpointError(f"{folder.name} and {chosen[rank].parent.name} are the same rank", str(path))
        with reported(folder):
            files = sorted(p for p in folder.iterdir() if p.is_file() and p.name.endswith(tuple(suffixes())))
        if not files:
            continue
        files = _with_suffix(folder, files, suffix)
        if len({p.suffix for p in files}) > 1:
            raise CheckpointError(
                "weight files of two formats in one rank folder",
                str(folder),
                "keep one format, or give --suffix",
            )
        files = _closest(folder, files, suffix)
        chosen[rank] = _pick(files, select)
        if len({_pick(files, rule) for rule in SELECTS}) > 1:
            differing.append(folder.name)
    if not chosen:
        raise CheckpointError("the rank_x folders hold no weight files", str(path))
    if differing:
        example = chosen[int(differing[0][5:])].name
        warnings += (
            f"{len(differing)} rank folders hold several files and the rules of --select differ: "
            f"by {select!r} {differing[0]} gives {example}",
        )
    steps = {_step(p) for p in chosen.values()}
    if len(steps) > 1:
        warnings += (f"ranks are at different steps: {', '.join(map(str, sorted(steps)[:4]))}",)
    files_by_rank = tuple((rank, str(chosen[rank])) for rank in sorted(chosen))
    return Found(str(path), files_by_rank, distributed=True, warnings=warnings)


def as_select(text: str) -> Select:
    """The rule of this name. Raises UsageError."""
    for rule in SELECTS:
        if rule == text:
            return rule
    raise UsageError(f"--select {text!r}", hint=f"one of: {', '.join(SELECTS)}")


def _pick(files: list[Path], select: Select) -> Path:
    if select == "name":
        return files[-1]
    if select == "mtime":
        return max(files, key=lambda p: (p.stat().st_mtime_ns, p.name))
    if select == "step":
        return max(files, key=lambda p: (_step(p)[1], natural(p.name)))
    return max(files, key=lambda p: (_step(p), natural(p.name)))


def _step(path: Path) -> tuple[int, int]:
    """(epoch, step) in the name of a file that training saved; (-1, -1) without."""
    found = _STEP.search(path.name)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """A sort key in which numbers count as numbers.

    >>> sorted(["a-1_10", "a-1_9"], key=natural)
    ['a-1_9', 'a-1_10']
    """
    return tuple((0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"([0-9]+)", name) if p)
