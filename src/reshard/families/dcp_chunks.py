"""Where the numbers of a distributed checkpoint's chunks lie: each is a torch file of its own within a ``.distcp``.

There may be a million of them. Those of one dtype, shape and length begin with the same bytes up to their numbers: one
is understood, and of the others the beginning is compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from msgspec import Struct

from reshard.errors import CheckpointError, FormatError, listed
from reshard.families.family import Listing
from reshard.families.rank_listing import natural
from reshard.families.saved_slices import is_of_slices, slices_of
from reshard.formats.dcp_metadata import DcpChunk, DcpStretch
from reshard.formats.safetensors import Safetensors
from reshard.formats.torch_file import extents
from reshard.formats.torch_records import read_torch_records
from reshard.formats.torch_values import TensorRef
from reshard.formats.window import Window
from reshard.formats.zip_records import ZIP_MARK
from reshard.index import Contents, Extent
from reshard.interruption import proceed
from reshard.layout.box import Box
from reshard.planning.catalog import Held, IndexedFile, Shard
from reshard.storage.storage import Entry, ReadFile
from reshard.storage.storages import opened, storage_of

_RANK = re.compile(r"_+(?:rank)?(\d+)_.*")
_NEAR_NBYTES = 16384
_AHEAD_NBYTES = 1 << 18
_AGAIN = "the file is cut short, or of another save than .metadata: copy the checkpoint again"


class WantedChunk(Struct, eq=False):
    """A chunk of a tensor, and where it is said to lie. ``dtype`` is "" where nothing says it beforehand."""

    name: str
    dtype: str
    chunk: DcpChunk
    place: DcpStretch

    def __str__(self) -> str:
        return f"{self.name} at {list(self.chunk.offsets)}"


class StoredChunk(Struct, eq=False):
    """A chunk as its file has it."""

    name: str
    dtype: str
    shard: Shard


class ReadChunks(Struct, eq=False):
    file: IndexedFile
    found: Sequence[StoredChunk]


def read_chunks(folder: Listing, wanted: Mapping[str, Sequence[WantedChunk]]) -> list[ReadChunks]:
    """What each file holds of the chunks wanted of it, by its path below the folder.

    Raises CheckpointError for missing files, FormatError for chunks that are not as they are said to be.
    """
    paths = sorted(wanted, key=natural)
    there = _entries(folder, paths)
    _refuse_missing([path for path in paths if path not in there], wanted, folder.path)
    at_once = storage_of(folder.path).at_once
    kinds: _ChunkKinds = {}

    def read(path: str, number: int, of_path: Sequence[WantedChunk]) -> ReadChunks:
        proceed()
        with opened(folder.at(path)) as file:
            found, zips = _chunks(_ChunkFile(file, number, path, kinds), of_path, max(at_once // len(paths), 1))
        within = tuple([(one.name, Extent(one.place.offset, one.place.length)) for one in of_path]) if zips else ()
        form = "torch" if zips else "safetensors"
        there = (folder.at(path), path, file.nbytes, file.mtime_ns, rank_of(path), form, Contents({}), within)
        return ReadChunks(IndexedFile(*there), found)

    with ThreadPoolExecutor(at_once) as pool:
        firsts = _firsts(wanted)
        list(pool.map(read, firsts, range(len(firsts)), firsts.values()))
        return list(pool.map(read, paths, range(len(paths)), (wanted[path] for path in paths)))


def _firsts(wanted: Mapping[str, Sequence[WantedChunk]]) -> dict[str, list[WantedChunk]]:
    """A chunk of each kind of which there are several, to be understood before the others are asked for."""
    first: dict[tuple[int, str, tuple[int, ...]], tuple[str, WantedChunk]] = {}
    found: dict[str, list[WantedChunk]] = {}
    for path, of_path in wanted.items():
        for one in of_path:
            kind = _kind(one)
            before = first.setdefault(kind, (path, one))
            if before[1] is not one and before[0]:
                found.setdefault(before[0], []).append(before[1])
                first[kind] = ("", one)
    return found


def rank_of(path: str) -> int:
    """The rank that wrote a file, by its name; 0 where that does not tell.

    >>> rank_of("__3_0.distcp"), rank_of("_rank2_.safetensors"), rank_of("weights.distcp")
    (3, 2, 0)
    """
    found = _RANK.fullmatch(path.rpartition("/")[2])
    return int(found[1]) if found else 0


def _entries(folder: Listing, paths: Sequence[str]) -> dict[str, Entry]:
    """The files that are there. Raises CheckpointError for a path that leads out of the folder."""
    there = {entry.name: entry for entry in folder.entries if not entry.folder and not entry.dangling}
    for path in paths:
        if {"", ".", ".."} & set(path.split("/")) or "\\" in path:
            raise CheckpointError(f"chunks are said to lie in {path!r}, outside of the folder", folder.path)
        if "/" in path and (entry := storage_of(folder.path).entry(folder.at(path))) is not None:
            there[path] = entry
    return there


def _refuse_missing(missing: Sequence[str], wanted: Mapping[str, Sequence[WantedChunk]], folder: str) -> None:
    if missing:
        lines = [f"{path}: {', '.join(map(str, wanted[path][:3]))}" for path in missing]
        raise CheckpointError(
            "files that .metadata names are missing, with what lies in them:\n" + listed(lines),
            folder,
            "bring them: each holds a part of the tensors",
        )


class _ChunkKind(Struct, frozen=True):
    """What chunks of a kind begin with, and where their numbers lie, counted from there."""

    head: bytes
    extents: tuple[Extent, ...]


_ChunkKinds = dict[tuple[int, str, tuple[int, ...]], _ChunkKind]
"""By length, dtype and shape."""


def _kind(one: WantedChunk) -> tuple[int, str, tuple[int, ...]]:
    return one.place.length, one.dtype, one.chunk.sizes


class _ChunkFile(Struct, frozen=True):
    """A file of chunks, open. ``kinds`` is shared by all files."""

    file: ReadFile
    number: int
    path: str
    kinds: _ChunkKinds


def _chunks(source: _ChunkFile, wanted: Sequence[WantedChunk], ways: int) -> tuple[list[StoredChunk], bool]:
    """What is in a file, and whether the chunks are files of their own in it. ``ways``: how many requests at once."""
    ordered = sorted(wanted, key=lambda one: one.place.offset)
    if ordered and _is_safetensors(source.file, ordered[0].place):
        return list(_in_safetensors(source, ordered)), False
    _refuse_twice(ordered)
    step = max(-(-len(ordered) // ways), 1)
    parts = [ordered[at : at + step] for at in range(0, len(ordered), step)]
    if len(parts) < 2:
        return list(_in_zips(source, ordered)), True
    with ThreadPoolExecutor(ways) as pool:
        return [one for part in pool.map(lambda part: list(_in_zips(source, part)), parts) for one in part], True


def _refuse_twice(ordered: Sequence[WantedChunk]) -> None:
    """Raises CheckpointError where two chunks of a tensor are said to be the same bytes."""
    for one, other in pairwise(ordered):
        same = one.name == other.name and one.place.offset == other.place.offset
        if same and one.chunk.offsets != other.chunk.offsets:
            raise CheckpointError(f"{one} and {other} lie in the same bytes of {one.place.path}", hint=_AGAIN)


def _is_safetensors(file: ReadFile, first: DcpStretch) -> bool:
    """Whether it is one safetensors file, of which ``.metadata`` cannot say where a chunk lies."""
    if file.read(0, min(file.nbytes, 9))[8:] != b"{":
        return False
    at = first.offset
    return first.length < 0 or at + len(ZIP_MARK) > file.nbytes or file.read(at, len(ZIP_MARK)) != ZIP_MARK


def _in_safetensors(source: _ChunkFile, wanted: Sequence[WantedChunk]) -> Iterator[StoredChunk]:
    contents = Safetensors().read_index(source.file)
    slices = slices_of(contents) if is_of_slices(contents) else {}
    for one in wanted:
        stored = contents.tensors.get(one.name)
        if stored is None:
            raise FormatError(f"it has no tensor {one.name}", hint=_AGAIN)
        if one.name in slices and slices[one.name].box.start != one.chunk.offsets:
            raise FormatError(f"{one}: here it begins at {list(slices[one.name].box.start)}", hint=_AGAIN)
        yield _found(source, one, (stored.spec.dtype, stored.spec.shape), stored.extents)


def _in_zips(source: _ChunkFile, wanted: Sequence[WantedChunk]) -> Iterator[StoredChunk]:
    """In the order of the file, so that what lies near is read in one go."""
    start, ahead = 0, b""
    for one in wanted:
        place = one.place
        _check_place(source, one)
        kind = source.kinds.get(_kind(one))
        if kind is not None:
            nbytes = len(kind.head)
            if place.offset < start or place.offset + nbytes > start + len(ahead):
                more = _AHEAD_NBYTES if place.length < _NEAR_NBYTES else nbytes
                start = place.offset
                ahead = source.file.read(start, min(max(more, nbytes), source.file.nbytes - start))
            if ahead.startswith(kind.head, place.offset - start):
                yield StoredChunk(one.name, one.dtype, _shard(source, one, _moved(kind.extents, place.offset)))
                continue
        yield _understood(source, one)


def _check_place(source: _ChunkFile, one: WantedChunk) -> None:
    """Raises FormatError for a chunk that lies beyond its file, or not as it is."""
    place, nbytes = one.place, source.file.nbytes
    if place.transforms:
        raise FormatError(
            f"{one.name} is packed ({str(place.transforms)[:80]}), which is not read",
            hint="save it without extensions of its writer",
        )
    if place.offset < 0 or place.length < 0 or place.offset + place.length > nbytes:
        end = place.offset + place.length
        raise FormatError(f"{one}: bytes {place.offset:,} to {end:,} of a file of {nbytes:,}", hint=_AGAIN)


def _understood(source: _ChunkFile, one: WantedChunk) -> StoredChunk:
    """A chunk whose file is read as one of its own. Raises FormatError where it is not the tensor that it should be."""
    place = one.place
    window = Window(source.file, place.offset, place.length)
    try:
        records = read_torch_records(window)
        tensor = records.pickled.value
        if not isinstance(tensor, TensorRef):
            raise FormatError("it is no tensor")
        lies = extents(tensor, records)
    except FormatError as error:
        raise FormatError(f"{one}: {error.message}", hint=error.hint) from None
    found = _found(source, one, (tensor.dtype, tensor.shape), _moved(lies, place.offset))
    if records.head and one.dtype:
        source.kinds[_kind(one)] = _ChunkKind(window.read(0, records.head), lies)
    return found


def _found(
    source: _ChunkFile, one: WantedChunk, there: tuple[str, tuple[int, ...]], lies: tuple[Extent, ...]
) -> StoredChunk:
    dtype, shape = there
    empty = 0 in one.chunk.sizes and 0 in shape  # of a tensor that is cut in two dims, the file's may be so in both
    if one.dtype not in ("", dtype) or (one.chunk.sizes != shape and not empty):
        said = f"{one.dtype or dtype}{list(one.chunk.sizes)}"
        raise FormatError(
            f"{one}: .metadata says {said}, the file has {dtype}{list(shape)}",
            hint="files of two saves lie together: copy the checkpoint again",
        )
    return StoredChunk(one.name, dtype, _shard(source, one, lies))


def _shard(source: _ChunkFile, one: WantedChunk, lies: tuple[Extent, ...]) -> Shard:
    return Shard(_box(one.chunk), (Held(source.number, lies),))


def _box(chunk: DcpChunk) -> Box:
    return Box(chunk.offsets, tuple(a + n for a, n in zip(chunk.offsets, chunk.sizes, strict=True)))


def _moved(lies: tuple[Extent, ...], by: int) -> tuple[Extent, ...]:
    return tuple([Extent(extent.offset + by, extent.nbytes, extent.coded) for extent in lies])
