"""Opening a checkpoint: its files' headers, joined with its strategy; the comparison of what only bytes can settle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from msgspec.structs import replace

from reshard.errors import CheckpointError, FormatError, UsageError, counted
from reshard.families.discover import Found, files_of
from reshard.families.family import Listing
from reshard.families.found import name_below
from reshard.families.indexed import by_index
from reshard.families.manifest_headers import Told, told_by_manifest
from reshard.families.ours import by_manifest, strategy_fault
from reshard.families.rank_folders import catalog
from reshard.families.rank_listing import is_rank
from reshard.families.registry import listing, recognised
from reshard.families.source import Source
from reshard.families.strategies import read_strategy
from reshard.foreign import HEAD_NBYTES, foreign
from reshard.formats.registry import format_of
from reshard.index import Extent, cut_extents
from reshard.interruption import proceed
from reshard.layout.stages import Strategy
from reshard.planning.catalog import Catalog, IndexedFile, Tensor
from reshard.storage.machine import uncollected
from reshard.storage.storage import ReadFile, join
from reshard.storage.storages import storage_of
from reshard.target.filling import BEGUN
from reshard.target.target_paths import META, Place

_BLOCK_NBYTES = 8 << 20
_REMOTE_COMPARISONS = 16  # each with two blocks
_REMOTE_BLOCK_NBYTES = 1 << 20


_Bytes = tuple[int, tuple[Extent, ...]]
"""The number of a file, and bytes of it."""


@uncollected()
def open_source(source: Source, *, trust_manifest: bool = True) -> Catalog:
    """Read headers and strategy. Raises InputError with what is missing or contradictory.

    Args:
        trust_manifest: in object storage, take a manifest's word for headers.
    """
    there = listing(source.path)
    family = recognised(there, source.family)
    if family is not None:
        if source.strategy:
            raise UsageError(
                f"a strategy was given, and {family.name} describes itself", there.path, "leave --src-strategy out"
            )
        return replace(family.read(there, source), kind=family.name)
    if source.iteration is not None:
        raise UsageError("there are no iterations to choose from", there.path, "leave --iteration out")
    found = _plain(there, source)
    strategy = read_strategy(source.strategy) if source.strategy else None
    if strategy is not None and not found.distributed and strategy.world > 1:
        raise UsageError(
            f"a strategy of {counted(strategy.world, 'rank')} was given for one full checkpoint",
            where=source.path,
            hint="leave --src-strategy out, or give the folder that holds rank_0, rank_1, …",
        )
    files, told = by_index(found, index_files(found, trust_manifest=trust_manifest))
    made = _told_apart(found, files, strategy, ours_there=there.entry(META) is not None)
    of_files = (f"{file.path}: {warning}" for file in files for warning in file.contents.warnings)
    warnings = (*found.warnings, *told, *of_files, *made.warnings)
    return replace(made, warnings=warnings, told_by={**made.told_by, **found.told_by})


def _plain(there: Listing, source: Source) -> Found:
    """Rank folders or full files, whichever lies there or was asked for."""
    if source.family == "full":
        there = replace(there, entries=tuple(e for e in there.entries if not (e.folder and is_rank(e.name))))
    found = files_of(there, source.select, source.suffix)
    if source.family == "ranks" and not found.distributed:
        raise UsageError("--from ranks, and there are no rank folders", there.path, "leave --from out")
    return found


def refuse_unfinished_target(path: str) -> None:
    """Raises CheckpointError for a target of ours that is being filled: what lacks of it, nobody can see."""
    place = Place.of(path, single=False)
    if place.storage.entry(join(place.meta, BEGUN)) is not None:
        raise CheckpointError(
            "a conversion into it has not ended: it is not whole",
            path,
            "give the same command with --resume; rank folders are read as far as they go with --src-strategy",
        )


def _told_apart(found: Found, files: Sequence[IndexedFile], strategy: Strategy | None, *, ours_there: bool) -> Catalog:
    """By its strategy, or of files that we wrote by their manifest; else of a full checkpoint.

    ``ours_there``: whether our own notes lie in the folder.
    """
    ours, doubt = by_manifest(found, files)
    if strategy is not None:
        made = catalog(files, strategy)
        if ours is not None and (fault := strategy_fault(made, ours)):
            raise CheckpointError(
                f"the strategy is not the one of these files, which reshard wrote: {fault}",
                found.path,
                "leave the strategy out: the manifest beside the files says how they are cut",
            )
        return made
    if ours is not None:
        return ours
    if ours_there:
        refuse_unfinished_target(found.path)
    _check_lone_ranks(found, doubt)
    return catalog(files, None)


def _check_lone_ranks(found: Found, doubt: str) -> None:
    """Without a strategy only rank_0 alone is a whole checkpoint. ``doubt``: why no manifest helps."""
    if found.whole and not doubt:
        return
    why = f" (its manifest is not trusted: {doubt})" if doubt else ""
    without = f" ({len(found.empty)} without a weight file)" if found.empty else ""
    folders = counted(len(found.files) + len(found.empty), "rank folder")
    raise CheckpointError(
        f"{folders}{without} and no strategy: nobody can know how the tensors were cut{why}",
        found.path,
        "give its strategy, the file or folder that the job saved: --src-strategy",
    )


def index_files(found: Found, *, trust_manifest: bool = True) -> list[IndexedFile]:
    """The headers of all files, read by several threads. Raises FormatError naming the file.

    The first is read alone: what it is like, the others need not be parsed for.
    """
    told = told_by_manifest(found) if trust_manifest else {}

    def read(ranked: tuple[int, str]) -> IndexedFile:
        return _index(*ranked, found.path, told)

    first = [read(ranked) for ranked in found.files[:1]]
    with ThreadPoolExecutor(storage_of(found.path).at_once) as pool:
        return [*first, *pool.map(read, found.files[1:])]


def _index(rank: int, path: str, root: str, told: Mapping[str, Told]) -> IndexedFile:
    form = format_of(path)
    if form is None:
        raise FormatError("not a weight file by its name", path)
    proceed()
    file = storage_of(path).open(path)
    try:
        known = told.get(path)
        contents = known.contents if known and known.nbytes == file.nbytes else form.read_index(file)
    except FormatError as error:
        other = foreign(file.read(0, min(file.nbytes, HEAD_NBYTES)), form.name)
        if other is not None:
            raise FormatError(f"it is {other.what}, not {form.name}", path, other.hint) from error
        raise FormatError(error.message, path, error.hint) from error
    finally:
        file.close()
    return IndexedFile(path, name_below(root, path), file.nbytes, file.mtime_ns, rank, form.name, contents)


def agreements(source: Catalog, names: Iterable[Tensor]) -> dict[str, bool]:
    """Whether all ranks that hold a tensor hold the same bytes, by reading them."""
    with ThreadPoolExecutor(_comparing_at_once(source)) as pool:
        tensors = list(names)
        return {t.name: same for t, same in zip(tensors, pool.map(partial(_agree, source), tensors), strict=True)}


def _comparing_at_once(source: Catalog) -> int:
    return _REMOTE_COMPARISONS if any(storage_of(f.path).remote for f in source.files[:1]) else 1


def _agree(source: Catalog, tensor: Tensor) -> bool:
    itemsize = tensor.spec.itemsize
    held = ([(h.file, h.extents_of(shard.box, itemsize)) for h in shard.held] for shard in tensor.shards)
    return all(_equal(source, holders[0], other) for holders in held for other in holders[1:])


def _equal(source: Catalog, a: _Bytes, b: _Bytes) -> bool:
    """Whether two equally long shards hold the same bytes."""
    block_nbytes = _REMOTE_BLOCK_NBYTES if storage_of(source.files[a[0]].path).remote else _BLOCK_NBYTES
    left, right = (storage_of(path).open(path) for path in (source.files[file].path for file, _ in (a, b)))
    try:
        for start in range(0, sum(extent.nbytes for extent in a[1]), block_nbytes):
            if _read(left, a[1], start, block_nbytes) != _read(right, b[1], start, block_nbytes):
                return False
        return True
    finally:
        left.close()
        right.close()


def _read(file: ReadFile, extents: tuple[Extent, ...], start: int, nbytes: int) -> bytes:
    return b"".join(file.read(e.offset, e.nbytes) for e in cut_extents(extents, start, nbytes))
