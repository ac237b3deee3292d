"""Targets that we wrote: their manifest says which box of each tensor every file holds, so no strategy is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from operator import itemgetter

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError, InputError, counted
from reshard.families.discover import Found
from reshard.families.full import stand_ins, texts_and_notes
from reshard.index import Extent
from reshard.layout.box import Box
from reshard.planning.catalog import (
    Catalog,
    Grid,
    Held,
    IndexedFile,
    Loose,
    Ranks,
    Shard,
    Tensor,
    tensor_of_shards,
)
from reshard.storage.storage import join
from reshard.target.filling import is_being_filled
from reshard.target.manifest import MANIFEST, Manifest, read_manifest
from reshard.target.manifest_file import ManifestFile, ToldCut, ToldShard
from reshard.target.target_paths import Place

_OnRank = tuple[int, int | None, ToldShard]
"""A rank, the number of its file, which may be missing, and what that holds of a tensor."""
_Extents = tuple[Extent, ...]
_WhereHeld = tuple[int, int, _Extents]
"""Files that are alike, by number, which of their cuts they hold of a tensor, and where."""
NOT_TRUSTED = "its manifest is not trusted"
_UNFINISHED = "a conversion into it has not ended: it is not whole"


class _SamePlaces(Struct):
    """Files that hold tensors of the same shapes at the same places: of each its rank, its number, which may be
    missing, and its cuts.
    """

    files: list[tuple[int, int | None, Sequence[ToldCut]]]
    places: Mapping[str, tuple[int, _Extents]]


class ByManifest(Struct, frozen=True):
    """What rank folders hold by the manifest beside them; else ``doubt`` says why one that is there does not count.

    ``damaged``: they are not as it says; else it tells of a part of them.
    """

    catalog: Catalog | None = None
    doubt: str = ""
    damaged: bool = False

    @property
    def untrusted(self) -> str:
        return f"{NOT_TRUSTED}: {self.doubt}" if self.doubt else ""

    @property
    def warnings(self) -> tuple[str, ...]:
        return (self.untrusted,) if self.damaged else ()


def has_manifest(path: str) -> bool:
    """Whether a manifest lies in a folder."""
    place = Place.of(path, single=False)
    return place.storage.entry(join(place.meta, MANIFEST)) is not None


def by_manifest(found: Found, files: Sequence[IndexedFile]) -> ByManifest:
    if not found.distributed or not has_manifest(found.path):
        return ByManifest()
    try:
        manifest = read_manifest(Place.of(found.path, single=False))
        if doubt := _contradiction(manifest, files):
            return ByManifest(doubt=doubt, damaged=True)
        if not manifest.complete:
            return ByManifest(doubt="it tells of a part of the target only")
        return ByManifest(_catalog(files, manifest))
    except InputError as error:
        return ByManifest(doubt=error.message, damaged=True)


def _contradiction(manifest: Manifest, files: Sequence[IndexedFile]) -> str:
    """How the files are not those that the manifest tells of; "" where they are. One of a part tells of some."""
    told = {file.path: file for file in manifest.files}
    for file in files:
        if file.name not in told:
            if manifest.complete:
                return f"{file.name} is none of its files"
        elif file.rank != told[file.name].rank:
            return f"{file.name} is of rank {file.rank}, it says {told[file.name].rank}"
        elif file.nbytes != told[file.name].nbytes:
            return f"{file.name} has {counted(file.nbytes, 'byte')}, it says {told[file.name].nbytes:,}"
    if manifest.stages < 1 or manifest.world % manifest.stages:
        return f"it tells of {manifest.world} ranks in {manifest.stages} stages"
    ranks = {file.rank for file in manifest.files}
    if manifest.complete and (manifest.world != len(ranks) or manifest.world <= max(ranks)):
        return f"it tells of {manifest.world} ranks and names files of {len(ranks)}"
    return ""


def _catalog(files: Sequence[IndexedFile], manifest: Manifest) -> Catalog:
    """What the files hold, by the boxes that their manifest says. Raises InputError where it tells of other tensors,
    CheckpointError for boxes that overlap.
    """
    numbers = {file.name: number for number, file in enumerate(files)}
    alike = _told_alike(manifest.files, files, numbers)
    told: dict[str, list[_WhereHeld]] = {}
    for some, each in enumerate(alike):
        for name, (cut, extents) in each.places.items():
            told.setdefault(name, []).append((some, cut, extents))
    ranks = Ranks(manifest.stages, manifest.world // manifest.stages)
    of_files = _ToldTensors(alike, ranks.devices)
    tensors = {name: of_files.made(name, places) for name, places in told.items()}
    texts, notes, withheld = texts_and_notes(files)
    absent = (file.path for file in manifest.files if file.tensors and file.path not in numbers)
    return Catalog(
        tuple(files),
        tensors,
        texts,
        notes,
        ranks,
        told_by={MANIFEST: manifest.xxh3},
        warnings=stand_ins(files, ranks),
        withheld=withheld,
        lacking=tuple(f"{path} is missing" for path in absent),
        family=f"rank folders that reshard {manifest.reshard} wrote",
    )


def _told_alike(
    told: Iterable[ManifestFile], files: Sequence[IndexedFile], numbers: Mapping[str, int]
) -> list[_SamePlaces]:
    """The files of a manifest. Raises InputError for one that holds other tensors than it says, or elsewhere."""
    alike: dict[object, _SamePlaces] = {}
    checked: set[tuple[int, int]] = set()
    for file in told:
        cuts, number = file.cuts(), numbers.get(file.path)
        key = id(file.tensors), file.nbytes, tuple([cut.spec for cut in cuts])
        if key not in alike:
            alike[key] = _SamePlaces([], file.places(cuts))
        some = alike[key]
        some.files.append((file.rank, number, cuts))
        if number is not None and (pair := (id(some), id(files[number].contents.tensors))) not in checked:
            _check_holds(files[number], some.places, cuts)
            checked.add(pair)
    return list(alike.values())


def _check_holds(file: IndexedFile, told: Mapping[str, tuple[int, _Extents]], cuts: Sequence[ToldCut]) -> None:
    held = file.contents.tensors
    if told.keys() != held.keys() or any(
        cuts[cut].spec != held[name].spec or extents != held[name].extents for name, (cut, extents) in told.items()
    ):
        raise InputError(f"{file.name} holds other tensors than it says")


class _ToldTensors:
    """Makes tensors of what files hold of them; of those that are cut as another was, extents alone are new."""

    def __init__(self, alike: Sequence[_SamePlaces], devices: int) -> None:
        self._alike = alike
        self._devices = devices
        self._known: dict[tuple[tuple[int, int], ...], Tensor] = {}

    def made(self, name: str, places: Sequence[_WhereHeld]) -> Tensor:
        """Raises CheckpointError for boxes that overlap, or files that say different things of it."""
        cuts = tuple([(some, cut) for some, cut, _ in places])
        if cuts not in self._known:
            self._known[cuts] = _tensor(name, self._on_ranks(places), self._devices)
        like = self._known[cuts]
        extents = {file: lies for some, _, lies in places for _, file, _ in self._alike[some].files}

        def held(by: tuple[Held, ...]) -> tuple[Held, ...]:
            return tuple([Held(each.file, extents[each.file]) for each in by])

        shards: Grid | Loose
        if isinstance(like.shards, Grid):
            shards = replace(like.shards, cells={cell: held(by) for cell, by in like.shards.cells.items()})
        else:
            shards = Loose(tuple([Shard(shard.box, held(shard.held), shard.expected) for shard in like.shards]))
        return replace(like, name=name, shards=shards)

    def _on_ranks(self, places: Iterable[_WhereHeld]) -> list[_OnRank]:
        """In the order of the ranks."""
        found = (
            (rank, file, ToldShard(cuts[cut], lies))
            for some, cut, lies in places
            for rank, file, cuts in self._alike[some].files
        )
        return sorted(found, key=itemgetter(0))


def _tensor(name: str, told: Sequence[_OnRank], devices: int) -> Tensor:
    """What is whole everywhere may be of no strategy, as in a full checkpoint; a single value may vary by rank.

    A tied tensor may lie in several stages, cut differently: the first stage that holds it whole is taken.
    """
    spec, *others = dict.fromkeys(shard.cut.spec.of_shape(shard.cut.full_shape) for _, _, shard in told)
    if others:
        raise CheckpointError(f"{name}: its manifest says {spec} and {others[0]}")
    shards = [
        Shard(shard.cut.box, () if number is None else (Held(number, shard.extents),), (rank,))
        for rank, number, shard in told
    ]
    if len({shard.box for shard in shards}) == 1:
        varies = len(shards) > 1 and prod(spec.shape) == 1
        return replace(tensor_of_shards(name, spec, shards), known=False, compared=varies)
    by_stage: dict[int, list[Shard]] = {}
    for shard in shards:
        by_stage.setdefault(shard.expected[0] // devices, []).append(shard)
    found = [tensor_of_shards(name, spec, of_stage) for _, of_stage in sorted(by_stage.items())]
    return next((tensor for tensor in found if not tensor.shards.missing()), found[0])


def unfinished_target(path: str) -> str:
    """What is said of a target of ours that is being filled; "" for none."""
    return _UNFINISHED if is_being_filled(Place.of(path, single=False)) else ""


def refuse_unfinished_target(path: str) -> None:
    """Raises CheckpointError for a target of ours that is being filled: what lacks of it, nobody can see."""
    if told := unfinished_target(path):
        raise CheckpointError(
            told,
            path,
            "give the same command again, as: reshard convert SRC DST --resume; "
            "rank folders are read as far as they go with --src-strategy",
        )


def strategy_fault(by_strategy: Catalog, by_manifest: Catalog) -> str:
    """The first tensor that a strategy cuts otherwise than the manifest of the same files, in words; "" for none."""
    for name in by_strategy.tensors:
        ours, theirs = (_in_files(catalog.tensors[name]) for catalog in (by_strategy, by_manifest))
        file = next((file for file, box in ours.items() if box != theirs.get(file, box)), None)
        if file is not None:
            rank = by_strategy.files[file].rank
            return (
                f"{name} on rank {rank}: {_shown(ours[file])} by the strategy, {_shown(theirs[file])} by the manifest"
            )
    return ""


def _shown(box: Box) -> str:
    return f"{list(box.start)} to {list(box.stop)}"


def _in_files(tensor: Tensor) -> dict[int, Box]:
    return {one.file: box for box, held in tensor.shards.held() for one in held}
