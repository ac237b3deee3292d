"""What an index and its files' headers say of each other: a tensor comes from the file that the index names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from reshard.errors import CheckpointError, listed, located
from reshard.families.found import Found
from reshard.families.index_files import EXTRAS_NAME
from reshard.families.saved_slices import is_of_slices, slices_of
from reshard.planning.catalog import IndexedFile

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
        if not is_of_slices(file.contents):
            continue
        with located(file.path):
            slices = slices_of(file.contents)
        begins = next((f"{n} begins at {list(s.box.start)}" for n, s in slices.items() if any(s.box.start)), "")
        if begins or not found.index:
            shown = f" ({begins})" if begins else ""
            raise CheckpointError(
                f"slices that PyTorch's distributed checkpoint saved{shown}, one file of many",
                file.path,
                "give the folder of all its files, under their names (shard-…), or the consolidated one by its index",
            )
