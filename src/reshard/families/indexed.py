"""What an index and its files' headers say of each other: a tensor comes from the file that the index names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from reshard.errors import CheckpointError, listed
from reshard.families.found import Found
from reshard.formats.base import SHARDING
from reshard.planning.catalog import IndexedFile
from reshard.planning.parts import EXTRAS_NAME

_SHOWN = 4


def by_index(found: Found, files: Sequence[IndexedFile]) -> tuple[list[IndexedFile], tuple[str, ...]]:
    """The files without the copies that their index passes over, and what to warn of. Raises CheckpointError."""
    _refuse_slices(found, files)
    if not found.index:
        return list(files), ()
    holding: dict[str, list[str]] = {}
    for file in files:
        for name in file.contents.tensors:
            holding.setdefault(name, []).append(file.path)
    _refuse_unheld(found, holding)
    kept, unnamed = [], []
    for file in files:
        tensors = {n: s for n, s in file.contents.tensors.items() if found.holders.get(n, file.path) == file.path}
        kept.append(replace(file, contents=replace(file.contents, tensors=tensors)))
        if file.name != EXTRAS_NAME:
            unnamed += [name for name in tensors if name not in found.holders]
    shown = ", ".join(unnamed[:_SHOWN]) + (" …" if unnamed[_SHOWN:] else "")
    return kept, (f"{found.index} does not name {shown}, which its files hold: taken too",) if unnamed else ()


def _refuse_unheld(found: Found, holding: Mapping[str, Sequence[str]]) -> None:
    faults = []
    for name, path in found.holders.items():
        held = holding.get(name, ())
        if path not in held:
            elsewhere = f", but in {held[0].rpartition('/')[2]}" if held else ""
            faults.append(f"{name}: not in {path.rpartition('/')[2]}{elsewhere}")
    if faults:
        raise CheckpointError(
            "tensors that it names are not in their files:\n" + listed(faults),
            found.index,
            "index and files are of two revisions: download the checkpoint again",
        )


def _refuse_slices(found: Found, files: Sequence[IndexedFile]) -> None:
    """PyTorch notes in safetensors that it saves from many ranks where each slice begins. Raises CheckpointError.

    The first rank's slices begin at 0, as whole tensors do: whole they are where an index names them.
    """
    for file in files:
        told = file.contents.notes.get(SHARDING)
        if told is None:
            continue
        places = _read(told)
        begins = next((f"{name} begins at {at}" for name, at in places.items() if any(at)), "")
        if begins or not found.index:
            raise CheckpointError(
                f"slices that PyTorch's distributed checkpoint saved{f' ({begins})' if begins else ''}: "
                "not read yet by this release",
                file.path,
                "give the consolidated checkpoint by its index, or consolidate it (enable_consolidation=True)",
            )


def _read(told: str) -> Mapping[str, Sequence[int]]:
    """Where each tensor begins; nothing where it cannot be understood, which then counts as slices all the same."""
    try:
        content: Any = json.loads(told)
        return {str(name): [int(n) for n in entry["saved_offsets"]] for name, entry in content.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {"a tensor": [1]}
