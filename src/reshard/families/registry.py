"""Families by name, imported when a place may be one of theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module

from msgspec import Struct

from reshard.errors import CheckpointError, UsageError
from reshard.families.family import Family, Listing
from reshard.storage.storage import normal
from reshard.storage.storages import storage_of


class _Entry(Struct, frozen=True):
    """``marks`` matches the name of some entry of every folder of the family, or of its file; ``parts`` the names of
    files of which each holds a part of a checkpoint, though it can be read alone.
    """

    name: str
    place: str
    marks: str
    parts: str = ""


_OF_DEEPSPEED = r"((bf16_)?(zero_pp|expp)_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt|layer_\d+.*model_states\.pt"
_OF_MEGATRON = r"(model_optim_rng|model_rng|distrib_optim)\.pt"
_OF_DCP = r".+\.distcp|shard-\d+-model-.+\.safetensors"
_OF_FSDP = r"(model|optim|extra_state)_world_size_\d+_rank_\d+\.pt"
_FAMILIES = (
    _Entry(
        "checkpoint2",
        "reshard.families.checkpoint2:Checkpoint2",
        r"metadata\.json|iteration_\d{8,}|(.*-)?(model|opt)-\d{7,}-\d{7,}\.safetensors",
    ),
    _Entry(
        "deepspeed",
        "reshard.families.deepspeed:DeepSpeed",
        rf"latest|global_step\d+|{_OF_DEEPSPEED}",
        _OF_DEEPSPEED,
    ),
    _Entry(
        "dcp",
        "reshard.families.dcp:Dcp",
        rf"\.metadata(\.tmp)?|__\d+\.metadata|\.rank\d+_metadata|step-\d+|pytorch_model_fsdp_\d+|{_OF_DCP}",
        _OF_DCP,
    ),
    _Entry("fsdp", "reshard.families.fsdp:Fsdp", rf"actor|critic|global_step_\d+|{_OF_FSDP}", _OF_FSDP),
    _Entry(
        "megatron",
        "reshard.families.megatron:Megatron",
        rf"latest_checkpointed_iteration\.txt|iter_\d{{7,}}|release|mp_rank_\d+(_\d+)*|metadata\.json|{_OF_MEGATRON}",
        _OF_MEGATRON,
    ),
)
PLAIN = ("ranks", "full")
"""Families that need no recognising: rank folders, and full files, are what everything else is."""


def is_known(name: str) -> bool:
    """Whether a family of this name is read."""
    return any(entry.name == name for entry in _FAMILIES)


def family_named(name: str) -> Family:
    """Raises UsageError for a family that is not known."""
    for entry in _FAMILIES:
        if entry.name == name:
            module, _, attribute = entry.place.partition(":")
            made: Family = getattr(import_module(module), attribute)()
            return made
    raise UsageError(f"no family {name!r}", hint=f"one of: {', '.join([*PLAIN, *(entry.name for entry in _FAMILIES)])}")


def listing(path: str) -> Listing:
    """What lies there. Raises CheckpointError where nothing does."""
    path = normal(path)
    storage = storage_of(path)
    there = storage.entry(path)
    if there is None:
        raise CheckpointError("no such file or folder", path)
    return Listing(path, there, tuple(storage.entries(path)) if there.folder else ())


def recognised(there: Listing, name: str = "") -> Family | None:
    """The one family that a place is of; None for rank folders and full files. Raises UsageError where several may be,
    CheckpointError for a file that is a part of one.

    Args:
        name: what the user says that it is.
    """
    if name:
        return None if name in PLAIN else family_named(name)
    _refuse_part(there)
    found = [family for family in _candidates(there) if family.recognises(there)]
    if len(found) > 1:
        names = [family.name for family in found]
        raise UsageError(
            f"it may be of several families: {', '.join(names)}", there.path, f"say which: --from {names[0]}"
        )
    return found[0] if found else None


def _refuse_part(there: Listing) -> None:
    """Raises CheckpointError for one of a family's files, which would pass for a whole checkpoint."""
    if there.folder:
        return
    for entry in _FAMILIES:
        if re.fullmatch(entry.parts, there.there.name):
            raise CheckpointError(
                f"one file of a checkpoint ({entry.name}) of many: alone it is a part of the model",
                there.path,
                f"give its folder, {there.path.rpartition('/')[0] or '.'}; --from full takes what lies in the file",
            )


def _candidates(there: Listing) -> Iterator[Family]:
    names = [entry.name for entry in there.entries] if there.folder else [there.there.name]
    for entry in _FAMILIES:
        if any(re.fullmatch(entry.marks, name) for name in names):
            yield family_named(entry.name)
