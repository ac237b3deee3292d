"""Verify: read a target again and compare every byte with its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msgspec import Struct

from reshard.errors import CheckpointError, DifferenceError, PlanError, listed
from reshard.families.open_checkpoint import open_source
from reshard.families.registry import listing, recognised
from reshard.families.source import Source
from reshard.formats.registry import format_of
from reshard.ops.crc import check_crcs
from reshard.ops.observer import Observer
from reshard.storage.machine import auto_workers
from reshard.storage.storage import join
from reshard.storage.storages import storage_of
from reshard.target.manifest import MANIFEST, Manifest, file_faults, read_manifest
from reshard.target.target_paths import Place

_OURS = ("ranks", "full")
"""Families that we write with a manifest: one without is not ours, or not finished."""


class Verified(Struct, frozen=True):
    """What was read and found as it was written.

    Attributes:
        ranks: were made so far, of ``world``.
        unlisted: weight files that lie in the target and are not in its manifest.
    """

    files: int
    nbytes: int
    ranks: int
    world: int
    unlisted: tuple[str, ...] = ()


class Tiled(Struct, frozen=True):
    """A checkpoint that another program wrote, and that is whole: what its values should be, nothing says.

    Attributes:
        family: what wrote it, in words.
        nbytes: of its tensors.
    """

    family: str
    tensors: int
    files: int
    nbytes: int
    warnings: tuple[str, ...]


def is_of_another(dst: str | Path) -> bool:
    """Whether it has no manifest and is recognised as another program's."""
    there = listing(str(dst))
    place = Place.of(there.path, single=not there.folder)
    return place.storage.entry(join(place.meta, MANIFEST)) is None and recognised(there).name not in _OURS


def verify_tiled(source: Source) -> Tiled:
    """Prove that slices tile every tensor, and that the CRC-32 sums fit that its files state.

    Raises PlanError listing what no file holds, CheckpointError for sums that do not fit.
    """
    catalog = open_source(source)
    lacking = [f"{tensor.name}: {hole.box}" for tensor in catalog.tensors.values() for hole in tensor.shards.missing()]
    if lacking:
        raise PlanError("slices that no file holds:\n" + listed(lacking), source.path, "bring the missing files")
    told = check_crcs(catalog)
    nbytes = sum(tensor.spec.nbytes for tensor in catalog.tensors.values())
    return Tiled(catalog.family, len(catalog.tensors), len(catalog.files), nbytes, (*catalog.warnings, *told))


def verify(dst: str | Path, observer: Observer | None = None) -> Verified:
    """Raises DifferenceError listing every file, byte range and tensor that changed.

    Raises CheckpointError without a manifest, or where it has no checksums.
    """
    observer = observer or Observer()
    there = storage_of(str(dst)).entry(str(dst))
    if there is None:
        raise CheckpointError("no such file or folder", str(dst))
    place = Place.of(dst, single=not there.folder)
    manifest = read_manifest(place)
    if any(not run.xxh3 for file in manifest.files for run in file.runs):
        raise CheckpointError(
            "it was written with --checksum off: there is nothing to compare with",
            str(dst),
            "compare with the source instead: reshard verify SRC DST",
        )
    faults: list[str] = []
    nbytes = sum(file.nbytes for file in manifest.files)
    observer.start("verifying", nbytes)
    observer.start_files(len(manifest.files))
    workers = 1 if place.local else auto_workers([place.path])
    try:  # whoever looks at a file waits for its runs, which others read: so far away neither waits for the next file
        with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as lookers:
            for found in lookers.map(lambda f: file_faults(place, f, readers, observer.advance), manifest.files):
                faults += found
                observer.finish_files(1)
    finally:
        observer.end()
    if faults:
        raise DifferenceError("not as it was written:\n" + listed(faults), str(dst), "make it again from its source")
    ranks = len({f.rank for f in manifest.files})
    return Verified(len(manifest.files), nbytes, ranks, manifest.world, tuple(_unlisted(place, manifest)))


def _unlisted(place: Place, manifest: Manifest) -> Iterator[str]:
    """Of a folder; beside a target that is one file lies whatever the user keeps there."""
    if place.single:
        return
    known = {file.path for file in manifest.files}
    found = place.storage.entries(place.folder)
    folders = [e.name for e in found if e.folder]
    with ThreadPoolExecutor(place.storage.at_once) as pool:
        inside = pool.map(lambda name: place.storage.entries(join(place.folder, name)), folders)
        below = [join(name, e.name) for name, entries in zip(folders, inside, strict=True) for e in entries]
    for path in (*(e.name for e in found if not e.folder), *below):
        if format_of(path) is not None and path not in known:
            yield path
