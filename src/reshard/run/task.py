"""One read group: its files written beside their names, hashed on the way, and named when whole."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from reshard.dtypes import ITEMSIZE
from reshard.errors import RunError
from reshard.index import Seal
from reshard.planning.blocks import Access
from reshard.planning.plan import FileResult, Run, Task, check_runs
from reshard.run.mover import Mover, Scratch, Sources
from reshard.run.storage import NewFile, Storage

_JOB_NBYTES = 64 << 20
OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How tasks are carried out, wherever they run. ``folder`` is what file names are relative to."""

    folder: str
    block_nbytes: int = 8 << 20
    fsync: bool = True
    checksum: bool = True


@dataclass(frozen=True, slots=True)
class Job:
    """Consecutive blocks of one move, done by one thread in order."""

    move: int
    start: int
    stop: int


class TaskRun:
    """A task under way. ``job`` may be called from any thread; then ``commit`` or ``abandon`` from one."""

    def __init__(self, task: Task, storage: Storage, settings: Settings, on_bytes: OnBytes) -> None:
        self._task = task
        self._storage = storage
        self._settings = settings
        self._on_bytes = on_bytes
        self._sources = Sources(storage, task.sources)
        scratch = Scratch()
        self._movers = [Mover(m, self._sources, scratch, settings.block_nbytes) for m in task.moves]
        self._runs: list[list[Run]] = [[] for _ in task.files]
        self._lock = threading.Lock()
        self._files: list[NewFile] = []
        try:
            for file in task.files:
                path = str(Path(settings.folder, file.path))
                self._files.append(storage.create(path, file.nbytes))
                for offset, piece in file.header:
                    self._write(len(self._files) - 1, offset, memoryview(piece))
        except BaseException:
            self.abandon()
            raise

    def jobs(self) -> Iterator[list[Job]]:
        """All the work, in lots of about 64 MiB: a large tensor in several, many small ones in one."""
        lot: list[Job] = []
        room = _JOB_NBYTES
        for number, mover in enumerate(self._movers):
            blocks = len(mover.blocks)
            block_nbytes = max(mover.blocks.hull.size * ITEMSIZE[mover.blocks.move.source_dtype] // max(blocks, 1), 1)
            start = 0
            while start < blocks:
                stop = min(start + max(room // block_nbytes, 1), blocks)
                lot.append(Job(number, start, stop))
                room -= (stop - start) * block_nbytes
                start = stop
                if room < block_nbytes:
                    yield lot
                    lot, room = [], _JOB_NBYTES
        if lot:
            yield lot

    def job(self, lot: list[Job], stopped: threading.Event) -> None:
        """Carry out one lot; gives up early when ``stopped`` is set."""
        for job in lot:
            sink = _HashingSink(self)
            for number in range(job.start, job.stop):
                if stopped.is_set():
                    return
                self._movers[job.move].run((number,), sink)
            sink.close()

    def commit(self) -> list[FileResult]:
        """Check that every byte was written once, then name the files. Raises RunError."""
        results = []
        for i, file in enumerate(self._task.files):
            if file.seal:
                self._write_seal(i, file.seal)
            read = self._sources.read_nbytes if i == 0 else 0
            runs = tuple(sorted(self._runs[i], key=lambda r: (r.offset, r.nbytes)))
            results.append(FileResult(file.path, file.nbytes, runs, read))
            check_runs(results[-1])
        self._sources.check_unchanged()
        self._sources.close()
        for new in self._files:
            new.commit(fsync=self._settings.fsync)
        return [*results, *self._link_twins(results)]

    def _link_twins(self, results: list[FileResult]) -> Iterator[FileResult]:
        """Give every file's twins its content, now that it has its name."""
        for file, result in zip(self._task.files, results, strict=True):
            for twin in file.twins:
                paths = (str(Path(self._settings.folder, p)) for p in (file.path, twin))
                kind = self._storage.link(*paths, fsync=self._settings.fsync)
                yield replace(result, path=twin, read_nbytes=0, link=kind)

    def abandon(self) -> None:
        """Remove what was begun."""
        self._sources.close()
        for file in self._files:
            file.abandon()

    def _write_seal(self, number: int, seal: Seal) -> None:
        """Read back what the file holds by now and vouch for it."""
        content = self._task.files[number].nbytes - seal.nbytes
        buffer = memoryview(bytearray(min(self._settings.block_nbytes, max(content, 1))))
        crc = 0
        for at in range(0, content, len(buffer)):
            part = buffer[: min(len(buffer), content - at)]
            self._files[number].read_into(at, part)
            crc = zlib.crc32(part, crc)
        self._write(number, content, memoryview(seal.bytes_for(crc)))

    def _write(self, file: int, offset: int, data: memoryview) -> None:
        self._files[file].write(offset, data)
        self.record(file, [Run(offset, len(data), xxhash.xxh3_128_hexdigest(data))])

    def record(self, file: int, runs: list[Run]) -> None:
        with self._lock:
            self._runs[file] += runs

    def put(self, access: Access, data: memoryview) -> None:
        at = 0
        for extent in access.ranges:
            self._files[access.file].write(extent.offset, data[at : at + extent.nbytes])
            at += extent.nbytes
        if at != len(data):
            raise RunError(f"{len(data)} bytes for a place of {at}", self._task.files[access.file].path)
        self._on_bytes(at)

    @property
    def hashes(self) -> bool:
        return self._settings.checksum


class _HashingSink:
    """Writes what it is given; bytes that follow one another in a file make one run with one hash."""

    def __init__(self, run: TaskRun) -> None:
        self._run = run
        self._open: dict[int, tuple[int, int, int, xxhash.xxh3_128]] = {}

    def __call__(self, access: Access, data: memoryview) -> None:
        self._run.put(access, data)
        at = 0
        for extent in access.ranges:
            self._add(access.piece, access.file, extent.offset, data[at : at + extent.nbytes])
            at += extent.nbytes

    def _add(self, piece: int, file: int, offset: int, data: memoryview) -> None:
        known = self._open.get(piece)
        if known is not None and known[1] + known[2] != offset:
            self._close(known)
            known = None
        if known is None:
            known = (file, offset, 0, xxhash.xxh3_128())
        if self._run.hashes:
            known[3].update(data)
        self._open[piece] = (file, known[1], known[2] + len(data), known[3])

    def _close(self, known: tuple[int, int, int, xxhash.xxh3_128]) -> None:
        file, offset, nbytes, digest = known
        self._run.record(file, [Run(offset, nbytes, digest.hexdigest() if self._run.hashes else "")])

    def close(self) -> None:
        for known in self._open.values():
            self._close(known)
