"""Where a checkpoint of Megatron lies: a folder of saves with a tracker, or the folder of one iteration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from reshard.digits import number_in
from reshard.errors import CheckpointError, UsageError
from reshard.families.family import Listing
from reshard.families.megatron_cut import RankCounts
from reshard.families.rank_listing import natural
from reshard.families.registry import listing_below
from reshard.families.source import Source
from reshard.planning.identity import hash_of_file
from reshard.storage.storages import content_of

TRACKER = "latest_checkpointed_iteration.txt"
DESCRIPTION = "metadata.json"
COMMON = "common.pt"
RANK = re.compile(r"mp_rank_(\d+)(?:_(\d{3,}))?(?:_(\d{3,}))?")
MODEL_FILES = ("model_optim_rng.pt", "model_rng.pt")
_METADATA = ".metadata"
_ITERATION = re.compile(r"iter_(\d{7,})")
_RELEASE = "release"
_MAX_NBYTES = 1 << 16


class Chosen(Struct, frozen=True):
    """The folder of the save that is meant.

    Attributes:
        number: of its iteration; None for a release.
        described: what its metadata.json says; None without.
    """

    folder: Listing
    number: int | None
    described: dict[str, Any] | None
    told_by: dict[str, str]
    warnings: tuple[str, ...] = ()


def iteration_name(number: int) -> str:
    """
    >>> iteration_name(10)
    'iter_0000010'
    """
    return f"iter_{number:07d}"


def rank_name(at: RankCounts, sizes: RankCounts) -> str:
    """What the folder of a rank is called.

    >>> rank_name(RankCounts(1, 3, 0), RankCounts(2, 4, 1)), rank_name(RankCounts(0, 0, 1), RankCounts(1, 1, 2))
    ('mp_rank_01_003', 'mp_rank_00_001')
    """
    stage = f"_{at.stages:03d}" if sizes.stages > 1 else ""
    return f"mp_rank_{at.tensor:02d}{stage}" + (f"_{at.experts:03d}" if sizes.experts > 1 else "")


def is_save(there: Listing) -> bool:
    """Whether it is the folder of one save, or of one rank in it."""
    described = _backend(there) is not None or (there.entry(COMMON) is not None and there.entry(_METADATA) is not None)
    return has_ranks(there) or is_of_rank(there) or described


def has_ranks(there: Listing) -> bool:
    return any(entry.folder and RANK.fullmatch(entry.name) for entry in there.entries)


def is_of_rank(there: Listing) -> bool:
    return any(entry.name == MODEL_FILES[0] for entry in there.entries)


def is_root(there: Listing) -> bool:
    """Whether saves lie in it, finished or not."""
    tracked = there.entry(TRACKER) is not None
    return any(tracked or is_save(below) or below.entry(_METADATA) is not None for below in saves(there))


def saves(there: Listing) -> Iterator[Listing]:
    """The folders below that are called as Megatron calls saves, each listed when it is asked for."""
    named = (e for e in there.entries if e.folder and (_ITERATION.fullmatch(e.name) or e.name == _RELEASE))
    for entry in sorted(named, key=lambda e: natural(e.name)):
        yield listing_below(there, entry)


def chosen(there: Listing, source: Source) -> Chosen:
    """Raises CheckpointError with the saves that are there, where none or several may be meant."""
    if is_save(there) or not is_root(there):
        number = _number(there.there.name)
        if source.iteration is not None and source.iteration != number:
            raise UsageError(
                f"--iteration {source.iteration}, and this folder holds one save", there.path, "give the folder above"
            )
        return _described(there, {}, ())
    if source.iteration is not None:
        return _described(_named(there, iteration_name(source.iteration), "asked for"), {}, ())
    if there.entry(TRACKER) is None:
        found = list(saves(there))
        if len(found) > 1:
            raise CheckpointError(
                f"{len(found)} saves and no {TRACKER}: {_shown(found)}", there.path, "give --iteration, or the folder"
            )
        told = f"{there.path} has no {TRACKER}: {found[0].there.name} is the only save in it; its end is not certain"
        return _described(found[0], {}, (told,))
    content = content_of(there.at(TRACKER))
    text = content.decode("utf-8-sig", "replace").strip()
    number = number_in(text)
    if text != _RELEASE and number is None:
        raise CheckpointError(
            f"{text[:40]!r} is no iteration; there are: {_shown(saves(there))}",
            there.at(TRACKER),
            "mend it, or give --iteration",
        )
    name = text if number is None else iteration_name(number)
    return _described(_named(there, name, f"what {TRACKER} says"), {TRACKER: hash_of_file(content)}, ())


def _described(folder: Listing, told_by: dict[str, str], warnings: tuple[str, ...]) -> Chosen:
    described = None
    if folder.entry(DESCRIPTION) is not None:
        described = _description(folder)
        told_by = {**told_by, DESCRIPTION: hash_of_file(content_of(folder.at(DESCRIPTION)))}
    return Chosen(folder, _number(folder.there.name), described, told_by, warnings)


def _description(there: Listing) -> dict[str, Any]:
    try:
        told = json.loads(content_of(there.at(DESCRIPTION)))
    except (ValueError, RecursionError):
        told = None
    return told if isinstance(told, dict) else {}


def _backend(there: Listing) -> object:
    """What wrote the tensors, as Megatron's metadata.json says; None for a folder that is not Megatron's."""
    entry = there.entry(DESCRIPTION)
    small = entry is not None and not entry.folder and entry.nbytes <= _MAX_NBYTES
    return _description(there).get("sharded_backend") if small else None


def _named(there: Listing, name: str, wanted: str) -> Listing:
    found = list(saves(there))
    for listing in found:
        if listing.there.name == name:
            return listing
    raise CheckpointError(
        f"{name} is {wanted}, and is not there; there are: {_shown(found)}",
        there.path,
        "name the folder that is meant, or give --iteration",
    )


def _shown(found: Iterator[Listing] | list[Listing]) -> str:
    return ", ".join(listing.there.name for listing in found) or "none"


def _number(name: str) -> int | None:
    found = _ITERATION.fullmatch(name)
    return int(found[1]) if found else None
