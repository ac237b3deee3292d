"""What a manifest that lies beside weight files says of them, so that their headers need not be fetched."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from reshard.families.discover import Found
from reshard.index import Contents, Stored, TensorSpec
from reshard.storage.storage import join
from reshard.storage.storages import storage_of
from reshard.target.manifest import MANIFEST, ManifestFile, read_manifest
from reshard.target.target_paths import Place


class Told(Struct, frozen=True):
    """What a file of ``nbytes`` holds, if it still is as it was written."""

    nbytes: int
    contents: Contents


def told_by_manifest(found: Found) -> Mapping[str, Told]:
    """By path; of files that lie far away, and that are no newer than their manifest. Raises InputError."""
    if not storage_of(found.path).remote:
        return {}  # a header on a disk costs less than a doubt
    place = Place.of(found.path, single=len(found.files) == 1 and found.files[0][1] == found.path)
    there = place.storage.entry(join(place.meta, MANIFEST))
    if there is None or there.mtime_ns < found.newest_ns:
        return {}
    files = read_manifest(place).files
    return {join(place.folder, f.path): Told(f.nbytes, _contents(f)) for f in files if f.texts is not None}


def _contents(file: ManifestFile) -> Contents:
    tensors = {name: Stored(TensorSpec(s.dtype, s.box.shape), s.extents) for name, s in file.tensors.items()}
    return Contents(tensors, file.texts or {}, file.notes or {})
