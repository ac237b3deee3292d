"""Rank folders and full files: weights by their strategy, by the manifest of ours beside them, or whole.

What an index names comes from the file that it names it in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError, UsageError, counted, listed, located, some
from reshard.families.discover import files_of
from reshard.families.family import Listing
from reshard.families.found import Found
from reshard.families.headers import index_files
from reshard.families.index_files import EXTRAS_NAME
from reshard.families.ours import ByManifest, by_manifest, refuse_unfinished_target, strategy_fault
from reshard.families.rank_folders import catalog
from reshard.families.rank_listing import is_rank
from reshard.families.saved_slices import is_of_slices, slices_of
from reshard.families.source import Source
from reshard.families.strategies import read_strategy
from reshard.layout.stages import Strategy
from reshard.planning.catalog import Catalog, IndexedFile
from reshard.planning.names import weight_of_state
from reshard.target.target_paths import META


class RankFolders(Struct, frozen=True):
    name: str = "ranks"
    takes: frozenset[str] = frozenset({"strategy", "select", "suffix"})

    def recognises(self, there: Listing) -> bool:
        return any(entry.folder and is_rank(entry.name) for entry in there.entries)

    def read(self, there: Listing, source: Source) -> Catalog:
        if not self.recognises(there):
            raise UsageError("--from ranks, and there are no rank folders", there.path, "leave --from out")
        return _of_files(there, source)


class FullFiles(Struct, frozen=True):
    """What everything else is. A strategy of one rank is one of a full checkpoint."""

    name: str = "full"
    takes: frozenset[str] = frozenset({"strategy", "select", "suffix"})

    def recognises(self, there: Listing) -> bool:
        return True

    def read(self, there: Listing, source: Source) -> Catalog:
        entries = tuple(entry for entry in there.entries if not (entry.folder and is_rank(entry.name)))
        return _of_files(replace(there, entries=entries), source)


def _of_files(there: Listing, source: Source) -> Catalog:
    found = files_of(there, source.select, source.suffix)
    strategy = read_strategy(source.strategy) if source.strategy else None
    if strategy is not None and not found.distributed and strategy.world > 1:
        raise UsageError(
            f"a strategy of {counted(strategy.world, 'rank')} was given for one full checkpoint",
            where=source.path,
            hint="leave --src-strategy out, or give the folder that holds rank_0, rank_1, …",
        )
    files, sliced = _without_slices_of_states(index_files(found, trust_manifest=source.trust_manifest))
    files, told = _by_index(found, files)
    made = _told_apart(found, files, strategy, ours_there=there.entry(META) is not None)
    of_files = (f"{file.path}: {warning}" for file in files for warning in file.contents.warnings)
    warnings = (*found.warnings, *sliced, *told, *of_files, *made.warnings)
    return replace(made, warnings=warnings, told_by={**made.told_by, **found.told_by})


def _without_slices_of_states(files: Sequence[IndexedFile]) -> tuple[Sequence[IndexedFile], tuple[str, ...]]:
    """The files without states that are smaller than their weights in what MindSpore keeps beside its parts: of names
    that were filtered out as it merged that is what rank 0 held. And what to warn of.
    """
    at = next((i for i, file in enumerate(files) if file.name == EXTRAS_NAME), None)
    if at is None:
        return files, ()
    weights = {name: stored.spec.shape for file in files for name, stored in file.contents.tensors.items()}
    extras = files[at].contents
    cut = [n for n, s in extras.tensors.items() if _is_slice(s.spec.shape, weights.get(weight_of_state(n), ()))]
    if not cut:
        return files, ()
    whole = {name: stored for name, stored in extras.tensors.items() if name not in cut}
    made = (*files[:at], replace(files[at], contents=replace(extras, tensors=whole)), *files[at + 1 :])
    return made, (f"{files[at].path} holds one rank's slices of {some(cut)}: left out",)


def _is_slice(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return (
        len(shape) == len(whole) and shape != whole and all(n and m % n == 0 for n, m in zip(shape, whole, strict=True))
    )


def _by_index(found: Found, files: Sequence[IndexedFile]) -> tuple[list[IndexedFile], tuple[str, ...]]:
    """The files without the copies that their index passes over, and what to warn of. Raises CheckpointError."""
    _refuse_slices(found, files)
    if not found.index:
        return list(files), ()
    holding: dict[str, list[str]] = {}
    for file in files:
        for name in file.contents.tensors:
            holding.setdefault(name, []).append(file.path)
    _refuse_unheld(found, holding)
    kept, unnamed, copies = [], [], []
    for file in files:
        tensors = {n: s for n, s in file.contents.tensors.items() if found.holders.get(n, file.path) == file.path}
        kept.append(replace(file, contents=replace(file.contents, tensors=tensors)))
        copies += sorted(f"{name} in {file.name}" for name in file.contents.tensors.keys() - tensors.keys())
        if file.name != EXTRAS_NAME:
            unnamed += [name for name in tensors if name not in found.holders]
    told = [f"does not name {some(unnamed)}, which its files hold: taken too"] if unnamed else []
    told += [f"names other files for {some(copies)}: left out"] if copies else []
    return kept, (*(f"{found.index} {each}" for each in told), *_told_otherwise(found, kept))


def _told_otherwise(found: Found, files: Sequence[IndexedFile]) -> tuple[str, ...]:
    """A warning where the index tells of more or fewer bytes than the tensors that it names have: loaders do not read
    that number. Tensors that share their bytes are counted each, or once.
    """
    named = [(file.path, s) for file in files for n, s in file.contents.tensors.items() if n in found.holders]
    nbytes = sum(stored.spec.nbytes for _, stored in named)
    if found.total_nbytes in (None, nbytes):
        return ()
    if found.total_nbytes == sum({(path, s.extents): s.spec.nbytes for path, s in named}.values()):
        return ()
    said = f"{found.index} says total_size {found.total_nbytes:,} bytes, and the tensors that it names have {nbytes:,}"
    return (f"{said}: it may be of another revision than the files",)


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


def _told_apart(found: Found, files: Sequence[IndexedFile], strategy: Strategy | None, *, ours_there: bool) -> Catalog:
    """By its strategy, or of files that we wrote by their manifest; else of a full checkpoint.

    ``ours_there``: whether our own notes lie in the folder.
    """
    ours = by_manifest(found, files)
    if strategy is not None:
        made = catalog(files, strategy)
        if ours.catalog is not None and (fault := strategy_fault(made, ours.catalog)):
            raise CheckpointError(
                f"the strategy is not the one of these files, which reshard wrote: {fault}",
                found.path,
                "leave the strategy out: the manifest beside the files says how they are cut",
            )
        return replace(made, warnings=(*made.warnings, *ours.warnings))
    if ours.catalog is not None:
        return ours.catalog
    if ours_there:
        refuse_unfinished_target(found.path)
    _check_lone_ranks(found, ours)
    return catalog(files, None)


def _check_lone_ranks(found: Found, ours: ByManifest) -> None:
    """Without a strategy only rank_0 alone is a whole checkpoint."""
    if found.whole and not ours.doubt:
        return
    why = f" ({ours.untrusted})" if ours.doubt else ""
    without = f" ({len(found.empty)} without a weight file)" if found.empty else ""
    folders = counted(len(found.files) + len(found.empty), "rank folder")
    raise CheckpointError(
        f"{folders}{without} and no strategy: nobody can know how the tensors were cut{why}",
        found.path,
        "give its strategy, the file or folder that the job saved: --src-strategy",
    )
