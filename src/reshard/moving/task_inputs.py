"""The files that a task reads."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from operator import itemgetter

from reshard.errors import CheckpointError, RunError
from reshard.index import ZEROS, Coding, cut_extents
from reshard.layout.box import Box
from reshard.planning.blocks import Access, EvenRuns
from reshard.planning.catalog import Catalog, Held
from reshard.planning.plan import SourceFile
from reshard.storage.storage import ReadFile
from reshard.storage.storages import storage_of

_STILL = "start again when nothing writes it"
_GAP_NBYTES = 4 << 10
_REMOTE_GAP_NBYTES = 64 << 10
_AT_ONCE_NBYTES = 1 << 20

_FilePart = tuple[int, int, memoryview, Coding | None]
"""Where bytes of a file begin and end, where they go, and how they are coded."""


def _read_parts(file: ReadFile, parts: list[_FilePart], gap_nbytes: int) -> None:
    for near in _worth_one_read(parts, gap_nbytes):
        start, stop = near[0][0], max([part[1] for part in near])
        if len(near) == 1:
            file.read_into(start, near[0][2])
        else:
            held = memoryview(file.read(start, stop - start))
            for first, end, part, _ in near:
                part[:] = held[first - start : end - start]
        for _, _, part, coded in near:
            if coded is not None:
                part[:] = coded.decoded(bytes(part))


def _worth_one_read(parts: list[_FilePart], gap_nbytes: int) -> Iterator[list[_FilePart]]:
    """The parts in the order of the file, those together that are worth one read."""
    parts.sort(key=itemgetter(0))
    near: list[_FilePart] = []
    for part in parts:
        if near and (part[0] - near[-1][1] > gap_nbytes or part[1] - near[0][0] > _AT_ONCE_NBYTES):
            yield near
            near = []
        near.append(part)
    if near:
        yield near


SourceFiles = tuple[SourceFile, ...]


def files_of(source: Catalog) -> SourceFiles:
    """The files of a checkpoint, to be read."""
    return tuple(SourceFile(f.path, f.nbytes, f.mtime_ns) for f in source.files)


class Sources:
    """The source files of a task, each opened when first read, and checked to be the file that was planned.

    ``front_to_back``: files take their bytes so; what is made of a tensor's other parts reads them for itself then.
    """

    def __init__(self, files: SourceFiles, *, front_to_back: bool = False) -> None:
        self._files = files
        self.front_to_back = front_to_back
        self._open: dict[int, ReadFile] = {}
        self._lock = threading.Lock()
        self._one_by_one = threading.Lock()
        self.read_nbytes = 0

    def read_into(self, access: Access, buffer: memoryview) -> None:
        """Fill the buffer, with zeros where no file holds them."""
        self.read([(access, buffer)])

    def read(self, wanted: Iterable[tuple[Access, memoryview]]) -> None:
        """Fill the buffers, with zeros where no file holds them. What lies close together in a file is read at once."""
        by_file: dict[int, list[_FilePart]] = {}
        for access, buffer in wanted:
            if access.file == ZEROS:
                buffer[:] = bytes(len(buffer))
                continue
            parts, at = by_file.setdefault(access.file, []), 0
            for extent in access.ranges:
                parts.append((extent.offset, extent.end, buffer[at : at + extent.nbytes], extent.coded))
                at += extent.nbytes
            for rows in access.rows:
                nbytes = rows.count * rows.nbytes
                parts += self._rows(access.file, rows, buffer[at : at + nbytes])
                at += nbytes
            if at != len(buffer):
                raise RunError(f"{at} bytes for {len(buffer)} that are wanted", self._files[access.file].path)
        for number, parts in by_file.items():
            _read_parts(self.opened(number), parts, _REMOTE_GAP_NBYTES if self._remote(number) else _GAP_NBYTES)

    def _rows(self, file: int, rows: EvenRuns, buffer: memoryview) -> list[_FilePart]:
        """Read them one by one, where each takes a microsecond; elsewhere they are parts, to be read with others."""
        nbytes = rows.nbytes
        offsets = range(rows.offset, rows.offset + rows.count * rows.step, rows.step)
        places = zip(offsets, range(0, len(buffer), nbytes), strict=True)
        if self._remote(file):
            return [(offset, offset + nbytes, buffer[at : at + nbytes], None) for offset, at in places]
        read_into = self.opened(file).read_into
        with self._one_by_one:  # two threads would but hand each other Python's lock, at each of these small reads
            for offset, at in places:
                read_into(offset, buffer[at : at + nbytes])
        return []

    def _remote(self, file: int) -> bool:
        return storage_of(self._files[file].path).remote

    def count(self, file: int, nbytes: int) -> None:
        """Note how many of the bytes that were read count: none of those between that cost less to read than to skip,
        or that are read for others.
        """
        if file > ZEROS:
            with self._lock:
                self.read_nbytes += nbytes

    def shard_bytes(self, held: Held, box: Box, itemsize: int, start: int, nbytes: int) -> bytearray:
        """Bytes of a shard as its elements are meant, row-major: ``nbytes`` from ``start``, fewer where it ends."""
        buffer = bytearray(max(min(nbytes, box.size * itemsize - start), 0))
        extents = cut_extents(held.extents_of(box, itemsize), start, len(buffer))
        self.read_into(Access(0, held.file, box, extents), memoryview(buffer))
        return buffer

    def opened(self, number: int) -> ReadFile:
        """Raises CheckpointError where it is not the file that was planned."""
        with self._lock:
            file = self._open.get(number)
        if file is not None:
            return file
        planned = self._files[number]
        file = storage_of(planned.path).open(planned.path)  # not under the lock: a store is far away
        with self._lock:
            kept = self._open.setdefault(number, file)
        if kept is not file:
            file.close()
        if (kept.nbytes, kept.mtime_ns) != (planned.nbytes, planned.mtime_ns):
            raise CheckpointError("the file changed after it was planned", planned.path, _STILL)
        return kept

    def check_unchanged(self) -> None:
        """Raises CheckpointError where a file was written to while it was read."""
        with self._lock:
            for number, file in self._open.items():
                if file.changed():
                    raise CheckpointError("the file changed while it was read", self._files[number].path, _STILL)

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()
