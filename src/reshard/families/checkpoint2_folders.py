"""Where a Checkpoint 2.0 lies: a root with a tracker and folders of iterations, or one such folder."""

from __future__ import annotations

import re

from reshard.digits import number_in
from reshard.errors import CheckpointError, UsageError, counted
from reshard.families.family import Listing
from reshard.families.registry import listing_below
from reshard.storage.storage import Entry, join, own_name
from reshard.storage.storages import opened, storage_of, text_of

TRACKER = "latest_checkpointed_iteration.txt"
METADATA = "metadata.json"
COMMON = "common.json"
_ITERATION = re.compile(r"iteration_(\d{8,})")
_WEIGHTS = re.compile(r"(?:.*-)?(?:model|opt)-\d{7,}-(\d{7,})\.safetensors", re.DOTALL)
_HUGGING_FACE = "model.safetensors.index.json"
_HEAD_NBYTES = 4096
_SHOWN = 8


def iteration_name(iteration: int) -> str:
    """
    >>> iteration_name(7)
    'iteration_00000007'
    """
    return f"iteration_{iteration:08d}"


def number_of(name: str) -> int | None:
    """The iteration that a folder of this name holds; None for another name."""
    found = _ITERATION.fullmatch(name)
    return int(found[1]) if found else None


def is_root(there: Listing) -> bool:
    return any(entry.folder and number_of(entry.name) is not None for entry in there.entries)


def is_iteration(there: Listing) -> bool:
    """By what its metadata begins with; without any, by the names that the trainer gives to files."""
    metadata = there.entry(METADATA)
    if metadata is not None and not metadata.folder:
        head = _head(there.at(METADATA))
        if b'"state_dict_metadata"' in head or b'"storage_data"' in head:
            return True
    beside = there.entry(COMMON) is not None or number_of(own_name(there.path)) is not None
    return any(beside or int(total) > 1 for total in _totals(there))


def _head(path: str) -> bytes:
    with opened(path) as file:
        return file.read(0, min(file.nbytes, _HEAD_NBYTES))


def _totals(there: Listing) -> list[str]:
    """Of each weight file how many its name says that there are."""
    names = (_WEIGHTS.fullmatch(entry.name) for entry in there.entries if not entry.folder)
    return [found[1] for found in names if found]


def devices_told(there: Listing) -> int:
    """How many files of a kind their names tell of; at least the one that is there."""
    return max(map(int, _totals(there)), default=1)


def weight_files(there: Listing) -> dict[str, Entry]:
    """What may be weights, by name; links that lead to nothing are not there."""
    files = (e for e in there.entries if not e.folder and not e.dangling)
    return {e.name: e for e in files if e.name.endswith(".safetensors") and not e.name.startswith(".")}


def is_trainers(name: str) -> bool:
    """Whether a file is called as the trainer calls weights."""
    return _WEIGHTS.fullmatch(name) is not None


def iteration_folder(there: Listing, iteration: int | None, *, chosen: bool) -> tuple[Listing, list[str]]:
    """The folder of the iteration that is meant, and what to warn of.

    Args:
        chosen: whether the user said that it is a Checkpoint 2.0.
    """
    if not is_root(there) or there.entry(METADATA) is not None:
        _refuse_other(there, iteration)
        folder, warnings = there, _beyond_tracker(there)
    else:
        name, warnings = _chosen(there, iteration)
        entry = there.entry(name)
        assert entry is not None
        folder = listing_below(there, entry)
    if folder.entry(_HUGGING_FACE) is not None and not chosen:
        raise UsageError(
            f"a Checkpoint 2.0 and Hugging Face weights ({_HUGGING_FACE}) lie here",
            folder.path,
            "say which are meant: --from checkpoint2 or --from full",
        )
    return folder, warnings


def _refuse_other(there: Listing, iteration: int | None) -> None:
    number = number_of(own_name(there.path))
    if iteration is not None and number != iteration:
        raise UsageError(
            f"--iteration {iteration}, and this folder holds one iteration{'' if number is None else f', {number}'}",
            there.path,
            "leave --iteration out, or give the folder above",
        )


def _beyond_tracker(there: Listing) -> list[str]:
    """A warning for an iteration that the tracker above it has not come to."""
    number = number_of(own_name(there.path))
    above = folder_above(there)
    if number is None or storage_of(above).entry(join(above, TRACKER)) is None:
        return []
    latest = number_in(text_of(join(above, TRACKER)))
    if latest is None or latest >= number:
        return []
    return [f"{join(above, TRACKER)} says {latest}: the save of iteration {number} may not have ended"]


def folder_above(there: Listing) -> str:
    """
    >>> folder_above(Listing("root/iteration_00000007", Entry("iteration_00000007", True, 0, 0)))
    'root'
    """
    folder, _, name = there.path.rstrip("/").rpartition("/")
    return (folder or ".") if name.strip(".") else join(there.path, "..")


def _chosen(there: Listing, iteration: int | None) -> tuple[str, list[str]]:
    """The name of an iteration's folder in a root."""
    numbers = {e.name: n for e in there.entries if e.folder and (n := number_of(e.name)) is not None}
    shown = _shown(numbers)
    tracker = there.entry(TRACKER)
    if iteration is not None:
        return _existing(there, numbers, iteration, f"--iteration {iteration}"), []
    if tracker is not None and not tracker.folder:
        latest = _tracked(there.at(TRACKER), shown)
        return _existing(there, numbers, latest, f"{TRACKER} says {latest}"), []
    if len(numbers) > 1:
        raise CheckpointError(
            f"{counted(len(numbers), 'iteration')} and no {TRACKER}: {shown}", there.path, "give --iteration"
        )
    (name,) = numbers
    return name, [
        f"{there.path} has no {TRACKER}: {name} is the only iteration, and taken; a save that did not end leaves it so"
    ]


def _tracked(path: str, shown: str) -> int:
    text = text_of(path)
    number = number_in(text)
    if number is None:
        raise CheckpointError(
            f"{text[:40]!r} is no number of an iteration; there are: {shown}", path, "mend it, or give --iteration"
        )
    return number


def _existing(there: Listing, numbers: dict[str, int], iteration: int, why: str) -> str:
    name = iteration_name(iteration)
    if numbers.get(name) != iteration:
        raise CheckpointError(
            f"{why}, and there is no {name}; there are: {_shown(numbers)}", there.path, "give another --iteration"
        )
    return name


def _shown(numbers: dict[str, int]) -> str:
    names = sorted(numbers, key=numbers.__getitem__)
    return (", ".join(names[-_SHOWN:]) + (f" and {len(names) - _SHOWN} older" if len(names) > _SHOWN else "")) or "none"
