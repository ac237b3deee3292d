"""Verify: read a target again and compare every byte with its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reshard.errors import CheckpointError, DifferenceError, listed
from reshard.ops.observer import Observer
from reshard.run.manifest import file_faults, read_manifest
from reshard.run.target import Place


@dataclass(frozen=True, slots=True)
class Verified:
    files: int
    nbytes: int


def verify(dst: str | Path, observer: Observer | None = None) -> Verified:
    """Raises DifferenceError listing every file, byte range and tensor that changed; CheckpointError without a
    manifest.
    """
    observer = observer or Observer()
    if not Path(dst).exists():
        raise CheckpointError("no such file or folder", str(dst))
    place = Place.of(dst, single=Path(dst).is_file())
    manifest = read_manifest(place.meta)
    observer.start("verifying", sum(f.nbytes for f in manifest.files))
    faults: list[str] = []
    read: list[int] = []
    try:
        for file in manifest.files:
            faults += file_faults(place.folder, file, read)
            observer.advance(file.nbytes)
    finally:
        observer.end()
    if not manifest.complete:
        faults.append(f"only {len({f.rank for f in manifest.files})} of {manifest.world} ranks were made so far")
    if faults:
        raise DifferenceError("not as it was written:\n" + listed(faults), str(dst), "make it again from its source")
    return Verified(len(manifest.files), sum(read))
