"""Tensors within what a distributed checkpoint takes for no tensor: a tuple, or a dict that its planner did not open,
is one entry, a torch file of an object. They go by the entry's name and their path in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec.structs import replace

from reshard.errors import FormatError
from reshard.families.full import whole
from reshard.formats.dcp_metadata import DcpMetadata, DcpStretch
from reshard.formats.torch_file import contents
from reshard.formats.torch_records import read_torch_records
from reshard.formats.window import Window
from reshard.formats.zip_records import ZIP_MARK
from reshard.index import Extent
from reshard.interruption import proceed
from reshard.planning.catalog import IndexedFile, Tensor
from reshard.storage.storage import ReadFile
from reshard.storage.storages import opened, storage_of

_NUMBERS = b"/data/"  # in the name of each record that holds a storage
_SMALL_NBYTES = 1 << 20
_AHEAD_NBYTES = 1 << 18
_Placed = Sequence[tuple[str, DcpStretch]]


def tensors_of_objects(told: Mapping[str, DcpMetadata], files: Sequence[IndexedFile]) -> dict[str, tuple[Tensor, ...]]:
    """Those of each entry that holds any. Raises FormatError naming the entry."""
    placed: dict[str, list[tuple[str, DcpStretch]]] = {}
    for one in told.values():
        for name in one.others:
            place = one.places.get(name, {}).get(None)
            if place is not None and not place.transforms:
                placed.setdefault(place.path, []).append((name, place))
    wanted = [number for number, file in enumerate(files) if file.format == "torch" and file.name in placed]
    found: dict[str, tuple[Tensor, ...]] = {}
    if wanted:
        with ThreadPoolExecutor(storage_of(files[0].path).at_once) as pool:
            for of_file in pool.map(lambda n: _in_file(n, files[n], placed[files[n].name]), wanted):
                found |= of_file
    return found


def _in_file(number: int, file: IndexedFile, placed: _Placed) -> dict[str, tuple[Tensor, ...]]:
    proceed()
    found = {}
    with opened(file.path) as source:
        for name, place in _with_numbers(source, placed):
            window = Window(source, place.offset, place.length)
            if tensors := tuple(_of_object(name, number, window, place.offset)):
                found[name] = tensors
    return found


def _with_numbers(source: ReadFile, placed: _Placed) -> Iterator[tuple[str, DcpStretch]]:
    """Entries that may hold tensors, in the order of the file, so that what lies near is read in one go."""
    start, ahead = 0, b""
    for name, place in sorted(placed, key=lambda one: one[1].offset):
        stop = place.offset + place.length
        if not 0 <= place.offset <= stop <= source.nbytes:
            raise FormatError(f"{name}: bytes {place.offset:,} to {stop:,} of a file of {source.nbytes:,}")
        if place.length > _SMALL_NBYTES:
            yield name, place
            continue
        if not start <= place.offset <= stop <= start + len(ahead):
            start = place.offset
            ahead = source.read(start, min(max(place.length, _AHEAD_NBYTES), source.nbytes - start))
        if ahead.find(_NUMBERS, place.offset - start, stop - start) >= 0:
            yield name, place


def _of_object(name: str, number: int, window: Window, start: int) -> Iterator[Tensor]:
    if window.nbytes < len(ZIP_MARK) or window.read(0, len(ZIP_MARK)) != ZIP_MARK:
        return  # what was given as bytes is no torch file of ours to open
    try:
        found = contents(read_torch_records(window)).tensors
    except FormatError as error:
        raise FormatError(f"{name}: {error.message}", hint=error.hint) from None
    for path, stored in found.items():
        lies = tuple(Extent(extent.offset + start, extent.nbytes, extent.coded) for extent in stored.extents)
        full = f"{name}.{path}" if path else name
        yield whole(full, {0: (number, replace(stored, extents=lies))})
