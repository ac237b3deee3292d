"""Verify: read a target again and compare every byte with its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reshard.errors import CheckpointError, DifferenceError, listed
from reshard.ops.observer import Observer
from reshard.run.manifest import file_faults, read_manifest
from reshard.run.place import Place


@dataclass(frozen=True, slots=True)
class Verified:
    """What was read and found as it was written. ``ranks`` of ``world`` were made so far."""

    files: int
    nbytes: int
    ranks: int
    world: int


def verify(dst: str | Path, observer: Observer | None = None) -> Verified:
    """Raises DifferenceError listing every file, byte range and tensor that changed.

    Raises CheckpointError without a manifest, or where it has no checksums.
    """
    observer = observer or Observer()
    if not Path(dst).exists():
        raise CheckpointError("no such file or folder", str(dst))
    place = Place.of(dst, single=Path(dst).is_file())
    manifest = read_manifest(place)
    if any(not run.xxh3 for file in manifest.files for run in file.runs):
        raise CheckpointError(
            "it was written with --checksum off: there is nothing to compare with",
            str(dst),
            "compare with the source instead: reshard verify SRC DST",
        )
    observer.start("verifying", sum(f.nbytes for f in manifest.files))
    faults: list[str] = []
    read: list[int] = []
    try:
        for file in manifest.files:
            faults += file_faults(place.folder, file, read)
            observer.advance(file.nbytes)
    finally:
        observer.end()
    if faults:
        raise DifferenceError("not as it was written:\n" + listed(faults), str(dst), "make it again from its source")
    return Verified(len(manifest.files), sum(read), len({f.rank for f in manifest.files}), manifest.world)
