"""``rank_x`` folders: which file of each is meant, and whether it is that rank's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from reshard.errors import CheckpointError, UsageError, counted, listed
from reshard.families.found import SELECTS, Found, Select, WeightFile, refuse_dangling, weights, with_suffix
from reshard.families.part_names import part_of
from reshard.families.registry import FALLBACK
from reshard.families.strange_folders import held
from reshard.formats.registry import suffixes
from reshard.planning.catalog import Catalog
from reshard.storage.storage import Entry, join
from reshard.storage.storages import storage_of

_RANK = re.compile(r"rank_(\d+)")
_RANK_OF_FILE = re.compile(r"(?:(?<!lora)(?<!lora_)rank[_-]?|^checkpoint_)(\d+)")
_NUMBERED = re.compile(r"(.*?)(\d+)")
_STEP = re.compile(r"(\d+)_(\d+)\.[^.]+$")
MIXED_STEPS = "ranks are at different steps"


def is_rank(name: str) -> bool:
    """Whether a folder's name is that of a rank."""
    return _RANK.fullmatch(name) is not None


def rank_entries(entries: Iterable[Entry]) -> list[Entry]:
    """What is called as the folder of a rank, be it one or not."""
    return [e for e in entries if _RANK.fullmatch(e.name)]


def lone_rank(place: str) -> str:
    """Of which rank a folder is, where those of others lie beside it, in words; "" where it is no such folder."""
    folder, _, name = _by_own_name(place).rpartition("/")
    if not is_rank(name):
        return ""
    others = 0
    with suppress(UsageError):  # over http(s) nothing is listed
        others = len(rank_entries(storage_of(place).entries(folder or "."))) - 1
    return f"{name}, beside {counted(others, 'other rank')}" if others > 0 else ""


def _by_own_name(place: str) -> str:
    """A folder that is named as no rank may be one: as the current folder, or by a link."""
    plain = is_rank(place.rpartition("/")[2]) or storage_of(place).remote
    return place if plain else os.path.realpath(place)


def lone_rank_of(source: Catalog) -> tuple[str, str]:
    """The one folder that files taken for a full checkpoint lie in, and ``lone_rank`` of it; "" without one."""
    places = {file.path.rpartition("/")[0] for file in source.files}
    if source.kind != FALLBACK or len(places) != 1:
        return "", ""
    place = _by_own_name(*places)
    return place, lone_rank(place)


def find_ranks(path: str, places: list[Entry], select: Select, suffix: str, warnings: tuple[str, ...]) -> Found:
    """The file of every rank. Raises CheckpointError."""
    chosen: dict[int, WeightFile] = {}
    differing: list[int] = []
    empty: list[int] = []
    with ThreadPoolExecutor(storage_of(path).at_once) as pool:
        folders = [join(path, place.name) for place in places]
        listings = pool.map(_listed, folders, places)
        for folder, entries in zip(folders, listings, strict=True):
            files = weights(folder, entries)
            rank = _rank(folder)
            if rank in chosen:
                raise CheckpointError(f"{_name(folder)} and {_name(chosen[rank].folder)} are the same rank", path)
            if not files:
                empty.append(rank)
                continue
            chosen[rank], agree = _of_rank(folder, files, select, suffix)
            differing += [] if agree else [rank]
    if not chosen:
        said = f"the rank_x folders hold no weight files: {places[0].name} holds {held(_listed(folders[0], places[0]))}"
        raise CheckpointError(said, path, f"weight files end in {' or '.join(sorted(suffixes()))}")
    refuse_dangling(chosen.values())
    _refuse_strangers(path, chosen)
    if differing:
        example = chosen[differing[0]]
        warnings += (
            f"{counted(len(differing), 'rank folder')} {'holds' if len(differing) == 1 else 'hold'} several files "
            "and the ways to choose one differ: "
            f"by {select!r} {_name(example.folder)} gives {example.name}",
        )
    steps = {step_of(f.name) for f in chosen.values()}
    if len(steps) > 1:
        warnings += (f"{MIXED_STEPS}: {', '.join(map(str, sorted(steps)[:4]))}",)
    return Found(
        path,
        tuple((rank, chosen[rank].path) for rank in sorted(chosen)),
        distributed=True,
        warnings=warnings,
        newest_ns=max(f.entry.mtime_ns for f in chosen.values()),
        empty=tuple(sorted(set(empty) - set(chosen))),
    )


def _listed(folder: str, place: Entry) -> list[Entry]:
    return storage_of(folder).entries(folder) if place.folder else []


def _of_rank(folder: str, files: list[WeightFile], select: Select, suffix: str) -> tuple[WeightFile, bool]:
    """The file of a rank, and whether all rules choose it."""
    files = with_suffix(folder, files, suffix)
    if len({f.format for f in files}) > 1:
        raise CheckpointError(
            "weight files of two formats in one rank folder", folder, "keep one format, or give --suffix"
        )
    files = _closest(folder, files, suffix)
    found = _pick(files, select)
    part = part_of(found.name)
    if part is not None:
        raise CheckpointError(
            f"{found.name} is {part}, and of a rank folder one file is taken",
            folder,
            "a checkpoint in parts is one full checkpoint: name this folder itself",
        )
    return found, len({_pick(files, rule) for rule in SELECTS}) == 1


def _closest(folder: str, files: list[WeightFile], suffix: str) -> list[WeightFile]:
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


def _refuse_strangers(path: str, chosen: Mapping[int, WeightFile]) -> None:
    """A file that names another rank than its folder was put there by mistake. Raises CheckpointError."""
    faults = [
        f"rank_{rank}/{file.name}"
        for rank, file in sorted(chosen.items())
        if (told := [int(n) for n in _RANK_OF_FILE.findall(file.name)]) and rank not in told
    ]
    faults = faults or _misnumbered(chosen)
    if faults:
        raise CheckpointError(
            "files of other ranks than their folders:\n" + listed(faults), path, "put each file where it belongs"
        )


def _misnumbered(chosen: Mapping[int, WeightFile]) -> list[str]:
    """Where names differ by a number alone, and these are all numbers of ranks, they are the ranks'."""
    numbers = {}
    for rank, file in chosen.items():
        found = _NUMBERED.fullmatch(file.stem)
        if found is None or _STEP.search(file.name):
            return []
        numbers[rank] = found
    own = {int(found[2]) for found in numbers.values()}
    if len({found[1] for found in numbers.values()}) > 1 or len(own) == 1 or not own <= set(chosen):
        return []
    return [f"rank_{rank}/{chosen[rank].name}" for rank, found in sorted(numbers.items()) if int(found[2]) != rank]


def _name(folder: str) -> str:
    return folder.rpartition("/")[2]


def _rank(folder: str) -> int:
    return int(_name(folder)[5:])


def _pick(files: list[WeightFile], select: Select) -> WeightFile:
    if select == "name":
        return files[-1]
    if select == "mtime":
        return max(files, key=lambda f: (f.entry.mtime_ns, f.name))
    if select == "step":
        return max(files, key=lambda f: (step_of(f.name)[1], natural(f.name)))
    return max(files, key=lambda f: (step_of(f.name), natural(f.name)))


def step_of(name: str) -> tuple[int, int]:
    """(epoch, step) in the name of a file that training saved; (-1, -1) without."""
    found = _STEP.search(name)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """A sort key in which numbers count as numbers.

    >>> sorted(["a-1_10", "a-1_9"], key=natural)
    ['a-1_9', 'a-1_10']
    """
    return tuple((0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"([0-9]+)", name) if p)
