"""Rank folders and full files: weights by their strategy, by the manifest of ours beside them, or whole."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError, UsageError, counted
from reshard.families.discover import files_of
from reshard.families.family import Listing
from reshard.families.found import Found
from reshard.families.headers import index_files
from reshard.families.indexed import by_index
from reshard.families.ours import ByManifest, by_manifest, refuse_unfinished_target, strategy_fault
from reshard.families.rank_folders import catalog
from reshard.families.rank_listing import is_rank
from reshard.families.source import Source
from reshard.families.strategies import read_strategy
from reshard.layout.stages import Strategy
from reshard.planning.catalog import Catalog, IndexedFile
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
    files, told = by_index(found, index_files(found, trust_manifest=source.trust_manifest))
    made = _told_apart(found, files, strategy, ours_there=there.entry(META) is not None)
    of_files = (f"{file.path}: {warning}" for file in files for warning in file.contents.warnings)
    warnings = (*found.warnings, *told, *of_files, *made.warnings)
    return replace(made, warnings=warnings, told_by={**made.told_by, **found.told_by})


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
