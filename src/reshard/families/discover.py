"""Which files a source is made of: one file, a folder of full files, or ``rank_x`` folders with one file each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msgspec.structs import replace

from reshard.errors import CheckpointError, FormatError, listed, some
from reshard.families.family import Listing
from reshard.families.found import Found as Found
from reshard.families.found import Select as Select
from reshard.families.found import WeightFile, refuse_dangling, weights, with_suffix
from reshard.families.index_files import EXTRAS_NAME, Index, index_in, manifest_at, read_index
from reshard.families.part_names import WholeByNames, part_of, wholes
from reshard.families.rank_listing import find_ranks, lone_rank, rank_entries
from reshard.families.registry import listing
from reshard.families.strange_folders import (
    UNFINISHED,
    no_weights,
    refuse_slices,
    refuse_strategies,
    refuse_unfinished,
    unfinished,
)
from reshard.foreign import HEAD_NBYTES, Foreign, foreign, hint_of_yaml
from reshard.formats.registry import format_of, suffixes
from reshard.storage.storage import Entry, join
from reshard.storage.storages import opened, storage_of

_AT_ONCE = 16


def discover(path: str | Path, select: Select = "natural", suffix: str = "") -> Found:
    """Find the weight files of a checkpoint.

    Args:
        select: which file of a ``rank_x`` that holds several, the last by: (epoch, step) in its name (``natural``:
            ``1_10`` after ``1_9``), plain order of names (``name``), time of change (``mtime``), the step alone.
        suffix: only files whose name ends so before its extension, as in ``1_10``; an index is not asked then.

    Raises:
        CheckpointError: nothing there, a part that lacks, several checkpoints in one place, a rank twice.
    """
    return files_of(listing(str(path)), select, suffix)


def files_of(there: Listing, select: Select = "natural", suffix: str = "") -> Found:
    """As ``discover``, of a place that was looked at."""
    path, entries = there.path, there.entries
    if path.endswith(".json") and not there.folder:
        return _named(path)
    if not there.folder:
        return _one_file(path, there.there)
    ranks = rank_entries(entries)
    files = weights(path, entries)
    names = (e.name for e in entries if not e.folder and not e.dangling)
    index = None if suffix else index_in(path, names, {f.format for f in files})
    if any(e.folder for e in ranks):
        if index is not None:
            raise CheckpointError(
                "rank folders and an index in one folder", path, f"to read the index, name {index.path}"
            )
        beside = (f"{path} holds weight files beside its rank folders: the rank folders are used",) if files else ()
        return find_ranks(path, ranks, select, suffix, beside)
    if index is not None:
        return _indexed(index, entries, files)
    refuse_slices(path, entries, files)
    refuse_strategies(path, entries)
    if not files:
        raise no_weights(path, entries)
    found = _full(path, with_suffix(path, files, suffix), entries)
    return replace(found, warnings=(*found.warnings, *_warned_of_ranks(path, path)))


def _one_file(path: str, there: Entry) -> Found:
    _check_name(path)
    storage = storage_of(path)
    if not storage.remote and storage.entry(f"{path}.aria2") is not None:
        raise CheckpointError("its download is not finished: an .aria2 lies beside", path, "go on with the download")
    part = part_of(there.name)
    warnings = (
        (f"{path} is {part}, not a whole checkpoint",) if part else _warned_of_ranks(path, path.rpartition("/")[0])
    )
    return Found(path, ((0, path),), distributed=False, warnings=warnings, newest_ns=there.mtime_ns)


def _warned_of_ranks(path: str, place: str) -> tuple[str, ...]:
    """A warning for one rank's file or folder, beside which others lie: only a strategy tells whether it is whole."""
    alone = lone_rank(place)
    return (f"{path} is of {alone}: its tensors may be slices",) if alone else ()


def _check_name(path: str) -> None:
    """Raises FormatError for a name that is not one of weights, with what the file is."""
    if format_of(path) is not None:
        return
    if path.endswith(UNFINISHED):
        raise FormatError("the beginning of a download, not the whole file", path, "go on with the download")
    with opened(path) as file:
        found = foreign(file.read(0, min(file.nbytes, HEAD_NBYTES)))
    expected = f"expected {' or '.join(sorted(suffixes()))}"
    if found is not None:
        raise FormatError(f"{found.what}, and not called as weights are; {expected}", path, _hint(path, found))
    raise FormatError(f"not a weight file by its name; {expected}", path, "rename it, if it is one")


def _hint(path: str, found: Foreign) -> str:
    """What to do with a file of another kind: text that is not called as weights are was never one of them."""
    return hint_of_yaml(path) or ("give a weight file, or the folder of the checkpoint" if found.text else found.hint)


def _named(path: str) -> Found:
    """The files that an index or a manifest names, where no folder can be listed or others lie beside."""
    manifest = manifest_at(path)
    if manifest is None:
        return _indexed(read_index(path), (), ())
    there = _entries_of(file for _, file in manifest.files)
    _refuse_absent(path, [file for file, entry in there.items() if entry is None])
    newest = max((entry.mtime_ns for entry in there.values() if entry), default=0)
    return Found(manifest.folder, manifest.files, manifest.distributed, newest_ns=newest)


def _indexed(index: Index, entries: Sequence[Entry], beside: Sequence[WeightFile]) -> Found:
    """The files that an index names: what else lies there is not of its checkpoint."""
    for file in index.files:
        _check_name(file)
    known = {join(index.folder, e.name): e for e in entries if not e.dangling}
    wanted = [*index.files, *([index.extras] if index.extras else [])]
    there: dict[str, Entry | None] = {file: known.get(file) for file in wanted}
    there.update(_entries_of(file for file in wanted if there[file] is None and not _was_listed(file, index, entries)))
    if index.extras and there[index.extras] is None:
        del there[index.extras]
    absent = [file for file, entry in there.items() if entry is None or entry.folder]
    _refuse_absent(index.path, absent, [f.path for f in beside if f.path not in there])
    refuse_unfinished(index.folder, entries, (file.removeprefix(index.folder).lstrip("/") for file in there))
    others = [f.name for f in beside if f.path not in there]
    warnings = (f"{index.path} does not name {some(others)}: left out",)
    return Found(
        index.folder,
        tuple((0, file) for file in sorted(there)),
        distributed=False,
        warnings=warnings if others else (),
        newest_ns=max((entry.mtime_ns for entry in there.values() if entry), default=0),
        index=index.path,
        holders=index.holders,
        total_nbytes=index.total_nbytes,
    )


def _was_listed(file: str, index: Index, entries: Sequence[Entry]) -> bool:
    """Whether a folder was listed and the file would lie right in it."""
    return bool(entries) and "/" not in file.removeprefix(index.folder).lstrip("/")


def _entries_of(files: Iterable[str]) -> Mapping[str, Entry | None]:
    paths = list(files)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(paths, pool.map(lambda file: storage_of(file).entry(file), paths), strict=True))


def _refuse_absent(index: str, absent: Sequence[str], others: Sequence[str] = ()) -> None:
    if absent:
        names = [name.removeprefix(index.rpartition("/")[0]).lstrip("/") for name in sorted(absent)]
        hint = "bring them, or download the checkpoint again"
        if others:
            hint += f"; if another file is meant, name it: {', '.join(others[:4])}"
        raise CheckpointError("files that it names are missing:\n" + listed(names), index, hint)


def _full(path: str, files: Sequence[WeightFile], entries: Sequence[Entry]) -> Found:
    """Files without an index: their names must tell that they are one checkpoint, and all of it."""
    refuse_dangling(files)
    refuse_unfinished(path, entries, (f.name for f in files))
    begun = unfinished(entries)
    told = wholes(_without_extras([f.name for f in files]))
    missing = [name for whole in told for name in whole.missing]
    if missing and len(told) == 1:
        more = f" ({', '.join(begun[:4])}: a download that is not finished)" if begun else ""
        raise CheckpointError(
            "parts that their names tell of are missing:\n" + listed(missing),
            path,
            f"bring them{more}, with their index",
        )
    if len(told) > 1:
        raise _several(path, files, told)
    if begun:
        raise CheckpointError(
            "downloads that are not finished:\n" + listed(begun),
            path,
            "go on with them, or name the file that is meant",
        )
    newest = max(f.entry.mtime_ns for f in files)
    return Found(path, tuple((0, f.path) for f in files), distributed=False, newest_ns=newest)


def _without_extras(names: list[str]) -> list[str]:
    """What MindSpore keeps beside its parts is of their checkpoint."""
    if any(name.startswith("part0.") for name in names):
        return [name for name in names if name != EXTRAS_NAME]
    return names


def _several(path: str, files: Sequence[WeightFile], told: Sequence[WholeByNames]) -> CheckpointError:
    """Which of several is meant, only the user knows."""
    formats = " of two formats" if len({f.format for f in files}) > 1 else ""
    lines = [f"{whole}{': parts are missing' if whole.missing else ''}" for whole in told]
    alone = [join(path, whole.names[0]) for whole in told if len(whole.names) == 1 and not whole.missing]
    sets = [part.after.rpartition(".")[0] for whole in told if (part := part_of(whole.names[0])) and not whole.missing]
    ways = [f"name the file that is meant: {' or '.join(alone[:4])}"] if alone else []
    ways += [f"choose a set by its names: --suffix={' or --suffix='.join(sets[:4])}"] if sets else []
    hint = "; ".join(ways) or "keep the files of one"
    return CheckpointError(
        f"{len(told)} full checkpoints{formats} in one folder, and no index that names one:\n" + listed(lines),
        path,
        hint,
    )
