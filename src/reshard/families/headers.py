"""The headers of weight files, read by several threads; far away, what a manifest beside them says in their place."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from msgspec import Struct

from reshard.errors import FormatError, InputError
from reshard.families.found import Found, name_below
from reshard.foreign import HEAD_NBYTES, foreign
from reshard.formats.registry import format_named, format_of
from reshard.index import Contents, Stored
from reshard.interruption import proceed
from reshard.planning.catalog import IndexedFile
from reshard.storage.storage import join
from reshard.storage.storages import opened, storage_of
from reshard.target.manifest import MANIFEST, read_manifest
from reshard.target.manifest_file import ManifestFile
from reshard.target.target_paths import Place


def index_files(found: Found, *, trust_manifest: bool = True) -> list[IndexedFile]:
    """The headers of all files, read by several threads. Raises FormatError naming the file.

    The first is read alone: what it is like, the others need not be parsed for.
    """
    told = _told_by_manifest(found) if trust_manifest else {}

    def read(ranked: tuple[int, str]) -> IndexedFile:
        return index_file(*ranked, found.path, told)

    first = [read(ranked) for ranked in found.files[:1]]
    with ThreadPoolExecutor(storage_of(found.path).at_once) as pool:
        return [*first, *pool.map(read, found.files[1:])]


def index_file(rank: int, path: str, root: str, told: Mapping[str, _KnownFile] = {}) -> IndexedFile:
    """The header of one file. Raises FormatError naming it."""
    form = format_of(path)
    if form is None:
        raise FormatError("not a weight file by its name", path)
    proceed()
    with opened(path) as file:
        try:
            known = told.get(path)
            contents = known.contents if known and known.nbytes == file.nbytes else form.read_index(file)
        except FormatError as error:
            other = foreign(file.read(0, min(file.nbytes, HEAD_NBYTES)), form.name)
            if other is None:
                raise
            torch = format_named("torch")  # Lightning and others call theirs .ckpt, too
            contents = torch.read_index(file) if form.name == "ckpt" and other.torch else Contents({})
            if not contents.tensors:
                raise FormatError(f"it is {other.what}, not {form.name}", path, other.hint) from error
            form = torch
    return IndexedFile(path, name_below(root, path), file.nbytes, file.mtime_ns, rank, form.name, contents)


class _KnownFile(Struct, frozen=True):
    """What a file of ``nbytes`` holds, if it still is as it was written."""

    nbytes: int
    contents: Contents


def _told_by_manifest(found: Found) -> Mapping[str, _KnownFile]:
    """By path; of files that lie far away, and that are no newer than their manifest; of none where it is damaged."""
    if not storage_of(found.path).remote:
        return {}  # a header on a disk costs less than a doubt
    place = Place.of(found.path, single=len(found.files) == 1 and found.files[0][1] == found.path)
    there = place.storage.entry(join(place.meta, MANIFEST))
    if there is None or there.mtime_ns < found.newest_ns:
        return {}
    try:
        files = read_manifest(place).files
        return {join(place.folder, f.path): _KnownFile(f.nbytes, _contents(f)) for f in files if f.texts is not None}
    except InputError:  # the headers say the same
        return {}


def _contents(file: ManifestFile) -> Contents:
    tensors = {name: Stored(shard.cut.spec, shard.extents) for name, shard in file.shards().items()}
    return Contents(tensors, file.texts or {}, file.notes or {})
