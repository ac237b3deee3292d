"""Families by name, imported when a place may be one of theirs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import import_module

from msgspec import Struct

from reshard.errors import CheckpointError, UsageError
from reshard.families.family import Family, Listing
from reshard.storage.storage import Entry, normal
from reshard.storage.storages import storage_of


class FamilyEntry(Struct, frozen=True):
    """A family by the names of its files.

    Attributes:
        place: where its class lies; "" while it is not read.
        marks: matches the name of some entry of every folder of the family, or of its file.
        parts: matches those of these names whose files hold a part of a checkpoint each, though they can be read
            alone.
        told: what it is, in words, and ``hint`` what to do, where it is not read.
        safetensors: whether its files would be taken for full weights without their marks.
    """

    name: str
    place: str
    marks: str
    parts: str = ""
    told: str = ""
    hint: str = ""
    safetensors: bool = False


_OF_DEEPSPEED = r"((bf16_)?(zero_pp|expp)_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt|layer_\d+.*model_states\.pt"
_OF_MEGATRON = r"(model_optim_rng|model_rng|distrib_optim)\.pt"
_OF_DCP = r".+\.distcp|shard-\d+-model-.+\.safetensors"
_OF_FSDP = r"(model|optim|extra_state)_world_size_\d+_rank_\d+\.pt"
_SAVE_FULL = "save one full checkpoint with the program that wrote it"
FAMILIES = (
    FamilyEntry(
        "checkpoint2",
        "reshard.families.checkpoint2:Checkpoint2",
        r"metadata\.json|iteration_\d{8,}|(.*-)?(model|opt)-\d{7,}-\d{7,}\.safetensors",
        r"(.*-)?(model|opt)-\d{7,}-(?!0*1\.)\d{7,}\.safetensors",
    ),
    FamilyEntry(
        "deepspeed",
        "reshard.families.deepspeed:DeepSpeed",
        rf"latest|global_step\d+|{_OF_DEEPSPEED}",
        _OF_DEEPSPEED,
    ),
    FamilyEntry(
        "dcp",
        "reshard.families.dcp:Dcp",
        rf"\.metadata(\.tmp)?|__\d+\.metadata|\.rank\d+_metadata|step-\d+|pytorch_model_fsdp_\d+|{_OF_DCP}",
        rf"\.metadata|{_OF_DCP}",
    ),
    FamilyEntry("fsdp", "reshard.families.fsdp:Fsdp", rf"actor|critic|global_step_\d+|{_OF_FSDP}", _OF_FSDP),
    FamilyEntry(
        "megatron",
        "reshard.families.megatron:Megatron",
        rf"latest_checkpointed_iteration\.txt|iter_\d{{7,}}|release|mp_rank_\d+(_\d+)*|metadata\.json|common\.pt|{_OF_MEGATRON}",
        _OF_MEGATRON,
    ),
    FamilyEntry("ranks", "reshard.families.plain:RankFolders", r"rank_\d+"),
    FamilyEntry("full", "reshard.families.plain:FullFiles", r".*"),
    FamilyEntry(
        "",
        "",
        r"model\d+-mp(?!1\.)\d+\.safetensors",
        told="slices of DeepSeek's inference code",
        hint=_SAVE_FULL,
        safetensors=True,
    ),
    FamilyEntry(
        "universal",
        "",
        r"latest_universal|global_step\d+_universal",
        told="a universal checkpoint of DeepSpeed",
        hint="give the checkpoint that it was made of",
    ),
)
FALLBACK = "full"
"""The family of all that no other is recognised in."""


def family_named(name: str) -> Family:
    """Raises UsageError for a family that is not read."""
    for entry in FAMILIES:
        if entry.name == name and entry.place:
            module, _, attribute = entry.place.partition(":")
            made: Family = getattr(import_module(module), attribute)()
            return made
    known = ", ".join(entry.name for entry in FAMILIES if entry.place)
    raise UsageError(f"no family {name!r}", hint=f"one of: {known}")


def listing(path: str) -> Listing:
    """What lies there. Raises CheckpointError where nothing does."""
    path = normal(path)
    storage = storage_of(path)
    there = storage.entry(path)
    if there is None:
        raise CheckpointError("no such file or folder", path)
    return Listing(path, there, tuple(storage.entries(path)) if there.folder else ())


def listing_below(there: Listing, folder: Entry) -> Listing:
    """A folder in another, as ``listing`` has it."""
    path = there.at(folder.name)
    return Listing(path, folder, tuple(storage_of(path).entries(path)))


def recognised(there: Listing, name: str = "") -> Family:
    """The one family that a place is of. Raises UsageError where several may be, CheckpointError for a file that is a
    part of one.

    Args:
        name: what the user says that it is.
    """
    if name:
        return family_named(name)
    marked = _marked(there)
    _refuse_part(there, marked)
    found = [family for family in (family_named(entry.name) for entry in marked) if family.recognises(there)]
    if len(found) > 1:
        raise _several(there, [family.name for family in found])
    return found[0] if found else family_named(FALLBACK)


def _several(there: Listing, families: Sequence[str]) -> UsageError:
    """A place of several families; or where each has folders of its own, a folder of several checkpoints."""
    marks = {entry.name: entry.marks for entry in FAMILIES}
    marked = {name: [entry for entry in there.entries if re.fullmatch(marks[name], entry.name)] for name in families}
    folders = {entry.name: name for name, entries in marked.items() for entry in entries if entry.folder}
    if len(folders) < sum(map(len, marked.values())):
        told = f"it may be of several families: {', '.join(families)}"
        return UsageError(told, there.path, f"say which: --from {families[0]}")
    shown = ", ".join(f"{folder} ({name})" for folder, name in folders.items())
    places = " or ".join(there.at(folder) for folder in folders)
    return UsageError(f"checkpoints of several families lie here: {shown}", there.path, f"give one of them: {places}")


def _refuse_part(there: Listing, marked: Iterable[FamilyEntry]) -> None:
    """Raises CheckpointError for one of a family's files, which would pass for a whole checkpoint."""
    if there.folder:
        return
    for entry in marked:
        if entry.parts and re.fullmatch(entry.parts, there.there.name):
            raise CheckpointError(
                f"one file of a checkpoint ({entry.name}) of many: alone it is a part of the model",
                there.path,
                f"give its folder, {there.path.rpartition('/')[0] or '.'}; --from full takes what lies in the file",
            )


def _marked(there: Listing) -> list[FamilyEntry]:
    """The families that a place may be of by its names."""
    names = [entry.name for entry in there.entries] if there.folder else [there.there.name]
    return [
        entry
        for entry in FAMILIES
        if entry.place and entry.name != FALLBACK and any(re.fullmatch(entry.marks, name) for name in names)
    ]
