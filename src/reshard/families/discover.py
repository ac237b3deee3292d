"""Which files a source is made of: one file, a folder of full files, or ``rank_x`` folders with one file each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from msgspec import Struct

from reshard.errors import CheckpointError, FormatError, UsageError, listed
from reshard.families.index_files import parts_named, read_named
from reshard.families.torch_names import weight_names
from reshard.formats.registry import format_of, suffixes
from reshard.storage.storage import Entry, join, normal
from reshard.storage.storages import storage_of

Select = Literal["natural", "name", "mtime", "step"]
SELECTS: tuple[Select, ...] = ("natural", "name", "mtime", "step")
_RANK = re.compile(r"rank_(\d+)")
_STEP = re.compile(r"(\d+)_(\d+)\.[^.]+$")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json", "param_name_map.json")
_LISTINGS_AT_ONCE = 16


class Found(Struct, frozen=True):
    """Files with the rank that each belongs to; all of rank 0 where ``distributed`` is False.

    ``newest_ns`` is when the last of them changed.
    """

    path: str
    files: tuple[tuple[int, str], ...]
    distributed: bool
    warnings: tuple[str, ...] = ()
    newest_ns: int = 0


class _File(Struct, frozen=True):
    """A file of a folder."""

    folder: str
    entry: Entry

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def path(self) -> str:
        return join(self.folder, self.name)

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def format(self) -> str:
        form = format_of(self.name)
        return form.name if form else ""


def discover(path: str | Path, select: Select = "natural", suffix: str = "") -> Found:
    """Find the weight files of a checkpoint.

    Args:
        select: which file of a ``rank_x`` that holds several, the last by: (epoch, step) in its name (``natural``:
            ``1_10`` after ``1_9``), plain order of names (``name``), time of change (``mtime``), the step alone.
        suffix: only files whose name ends so before its extension, as in ``1_10``.

    Raises:
        CheckpointError: nothing there, several formats in one rank, a rank twice.
    """
    path = normal(path)
    if path.endswith(".json"):
        return _named(path)
    storage = storage_of(path)
    there = storage.entry(path)
    if there is None:
        raise CheckpointError("no such file or folder", path)
    if not there.folder:
        _format_suffix(path)
        return Found(path, ((0, path),), distributed=False, newest_ns=there.mtime_ns)
    entries = storage.entries(path)
    folders = [join(path, e.name) for e in entries if e.folder and _RANK.fullmatch(e.name)]
    files = _weights(path, entries)
    if folders:
        beside = (f"{path} holds weight files beside its rank folders: the rank folders are used",) if files else ()
        return _ranks(path, folders, select, suffix, beside)
    if not files:
        raise CheckpointError(
            f"no weight files ({' or '.join(sorted(suffixes()))}) and no rank_x folders",
            path,
            "give a weight file, a folder of them, or the folder that holds rank_0, rank_1, …",
        )
    return _full(path, files, suffix, {e.name for e in entries})


def _named(path: str) -> Found:
    """The files that an index or a manifest names, where no folder can be listed or others lie beside."""
    named = read_named(path)
    storage = storage_of(path)
    with ThreadPoolExecutor(_LISTINGS_AT_ONCE) as pool:
        entries = list(pool.map(storage.entry, (file for _, file in named.files)))
    absent = [file for (_, file), entry in zip(named.files, entries, strict=True) if entry is None]
    if absent:
        raise CheckpointError("files that it names are missing:\n" + listed(absent), path, "bring them, too")
    newest = max((entry.mtime_ns for entry in entries if entry), default=0)
    return Found(named.folder, named.files, named.distributed, newest_ns=newest)


def _weights(folder: str, entries: Iterable[Entry]) -> list[_File]:
    files = [_File(folder, e) for e in entries if not e.folder and format_of(e.name)]
    taken = weight_names(f.name for f in files)
    return [f for f in files if f.name in taken]


def _format_suffix(path: str) -> None:
    if format_of(path) is None:
        raise FormatError(
            f"not a weight file by its name; expected {' or '.join(sorted(suffixes()))}",
            path,
            "rename it, if it is one",
        )


def _full(path: str, files: list[_File], suffix: str, there: set[str]) -> Found:
    files = _with_suffix(path, files, suffix)
    if len({f.format for f in files}) > 1:
        raise CheckpointError(
            "full weight files of two formats in one folder", path, "name one file, or keep one format"
        )
    of_torch = files[0].format == "torch"
    indexes = [name for name in _INDEX if name in there and name.startswith("pytorch_") == of_torch]
    warnings = tuple(w for name in indexes for w in _check_index(join(path, name), files))
    newest = max(f.entry.mtime_ns for f in files)
    return Found(path, tuple((0, f.path) for f in files), distributed=False, warnings=warnings, newest_ns=newest)


def _check_index(index: str, files: list[_File]) -> tuple[str, ...]:
    """Every part that an index names must be there. Which tensors each holds, the headers say."""
    names = parts_named(index)
    absent = sorted(names - {f.name for f in files})
    if absent:
        raise CheckpointError(
            "parts that the index names are missing:\n" + listed(absent), index, "download the checkpoint again"
        )
    extra = sorted(f.name for f in files if f.name not in names and f.name != "hyper_param.safetensors")
    return (f"{index}: does not name {', '.join(extra[:4])}, whose tensors are taken too",) if extra else ()


def _with_suffix(path: str, files: list[_File], suffix: str) -> list[_File]:
    """Files whose name ends in ``suffix`` before its extension; a number in the name is not cut in two."""
    if not suffix:
        return files
    cut = r"(?<!\d)" if suffix[0].isdigit() else ""
    found = [p for p in files if re.search(rf"{cut}{re.escape(suffix)}$", p.stem)]
    if not found:
        raise CheckpointError(f"no file whose name ends in {suffix!r} (of {len(files)} files)", path, "check --suffix")
    return found


def _closest(folder: str, files: list[_File], suffix: str) -> list[_File]:
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
            folder,
            "give a longer --suffix",
        )
    return shortest


def _ranks(path: str, folders: list[str], select: Select, suffix: str, warnings: tuple[str, ...]) -> Found:
    chosen: dict[int, _File] = {}
    differing: list[int] = []
    with ThreadPoolExecutor(_LISTINGS_AT_ONCE) as pool:
        listings = pool.map(storage_of(path).entries, folders)
        for folder, entries in zip(folders, listings, strict=True):
            files = _weights(folder, entries)
            rank = _rank(folder)
            if rank in chosen:
                raise CheckpointError(f"{_name(folder)} and {_name(chosen[rank].folder)} are the same rank", path)
            if files:
                chosen[rank], agree = _of_rank(folder, files, select, suffix)
                differing += [] if agree else [rank]
    if not chosen:
        endings = " or ".join(sorted(suffixes()))
        raise CheckpointError("the rank_x folders hold no weight files", path, f"weight files end in {endings}")
    if differing:
        example = chosen[differing[0]]
        warnings += (
            f"{len(differing)} rank folders hold several files and the rules of --select differ: "
            f"by {select!r} {_name(example.folder)} gives {example.name}",
        )
    steps = {_step(f.name) for f in chosen.values()}
    if len(steps) > 1:
        warnings += (f"ranks are at different steps: {', '.join(map(str, sorted(steps)[:4]))}",)
    files_by_rank = tuple((rank, chosen[rank].path) for rank in sorted(chosen))
    newest = max(f.entry.mtime_ns for f in chosen.values())
    return Found(path, files_by_rank, distributed=True, warnings=warnings, newest_ns=newest)


def _of_rank(folder: str, files: list[_File], select: Select, suffix: str) -> tuple[_File, bool]:
    """The file of a rank, and whether all rules choose it."""
    files = _with_suffix(folder, files, suffix)
    if len({f.format for f in files}) > 1:
        raise CheckpointError(
            "weight files of two formats in one rank folder", folder, "keep one format, or give --suffix"
        )
    files = _closest(folder, files, suffix)
    return _pick(files, select), len({_pick(files, rule) for rule in SELECTS}) == 1


def _name(folder: str) -> str:
    return folder.rpartition("/")[2]


def _rank(folder: str) -> int:
    return int(_name(folder)[5:])


def as_select(text: str) -> Select:
    """The rule of this name. Raises UsageError."""
    for rule in SELECTS:
        if rule == text:
            return rule
    raise UsageError(f"--select {text!r}", hint=f"one of: {', '.join(SELECTS)}")


def _pick(files: list[_File], select: Select) -> _File:
    if select == "name":
        return files[-1]
    if select == "mtime":
        return max(files, key=lambda f: (f.entry.mtime_ns, f.name))
    if select == "step":
        return max(files, key=lambda f: (_step(f.name)[1], natural(f.name)))
    return max(files, key=lambda f: (_step(f.name), natural(f.name)))


def _step(name: str) -> tuple[int, int]:
    """(epoch, step) in the name of a file that training saved; (-1, -1) without."""
    found = _STEP.search(name)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """A sort key in which numbers count as numbers.

    >>> sorted(["a-1_10", "a-1_9"], key=natural)
    ['a-1_9', 'a-1_10']
    """
    return tuple((0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"([0-9]+)", name) if p)
