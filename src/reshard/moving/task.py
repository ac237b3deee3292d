"""One read group: its files written beside their names, hashed on the way, and named when whole."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import xxhash
from msgspec import Struct
from msgspec.structs import replace

from reshard.dtypes import ITEMSIZE
from reshard.errors import RunError
from reshard.moving.checksums import Sums
from reshard.moving.mover import Mover
from reshard.moving.ordered_write import Turns, in_file_order
from reshard.moving.scratch import Scratch
from reshard.moving.task_inputs import Sources
from reshard.planning.blocks import Access
from reshard.planning.misfits import ShardMisfits
from reshard.planning.plan import FileResult, Run, Task, check_runs
from reshard.storage.storage import NewFile, Storage, join
from reshard.storage.storages import storage_of

_LOT_NBYTES = 64 << 20
_CREATORS = 8
_LOTS = 128  # of a task, at least, where it is as large
_REMOTE_JOBS = 4  # of a lot: each waits for an answer or more
_MANY = 1 << 62
OnBytes = Callable[[int], None]


class Settings(Struct, frozen=True):
    """How tasks are carried out, wherever they run.

    Attributes:
        folder: what file names are relative to.
        upload_nbytes: what the new files of a task may keep in memory together, where they are uploaded.
    """

    folder: str
    block_nbytes: int = 8 << 20
    fsync: bool = True
    checksum: bool = True
    upload_nbytes: int = 0


class Job(Struct, frozen=True):
    """Consecutive blocks of one move, done by one thread in order."""

    mover: Mover
    start: int
    stop: int


class TaskRun:
    """A task under way. ``job`` may be called from any thread; then ``commit`` or ``abandon`` from one."""

    def __init__(self, task: Task, storage: Storage, settings: Settings, on_bytes: OnBytes) -> None:
        self._task = task
        self._storage = storage
        self._settings = settings
        self._on_bytes = on_bytes
        self._sources = Sources(task.sources)
        self._scratch = Scratch()
        self._runs: list[list[Run]] = [[] for _ in task.files]
        self._misfits: dict[tuple[int, str], ShardMisfits] = {}
        self._lock = threading.Lock()
        self._files: dict[int, NewFile] = {}
        self._turns: dict[int, Turns] = {}
        self._sums = {number: Sums(file.checksums) for number, file in enumerate(task.files) if file.checksums}
        try:
            self._create_files()
        except BaseException:
            self.abandon()
            raise

    def _create_files(self) -> None:
        """Several at once: to take the space of a file costs time on some file systems, and a round trip on others."""
        with ThreadPoolExecutor(_CREATORS) as pool:
            for made in [pool.submit(self._create, number) for number in range(len(self._task.files))]:
                made.result()

    def _create(self, number: int) -> None:
        file = self._task.files[number]
        buffer_nbytes = self._settings.upload_nbytes // len(self._task.files)
        path, fsync = join(self._settings.folder, file.path), self._settings.fsync
        new = self._storage.create(path, file.nbytes, fsync=fsync, buffer_nbytes=buffer_nbytes)
        self._files[number] = new
        if self._storage.front_to_back:
            self._turns[number] = Turns(file, new, checksum=self._settings.checksum)

    def write_headers(self) -> None:
        """Raises StorageError. May go on while jobs do; files that are written front to back have theirs already."""
        if not self._storage.front_to_back:
            for number, file in enumerate(self._task.files):
                self._write(number, [piece for piece in file.header if not self._waits(number, piece)])

    def jobs(self) -> Iterator[list[Job]]:
        """All the work, in lots of at most 64 MiB: a large tensor in several, many small ones in one. There are enough
        of them that threads end at about the same time.

        Of files that are written front to back a lot is a block, so that many threads read for what is written next.
        Where reading waits, lots have few jobs, so that many threads wait at once.
        """
        lot: list[Job] = []
        fair = sum(file.nbytes for file in self._task.files) // _LOTS
        lot_nbytes = min(max(fair, self._settings.block_nbytes), _LOT_NBYTES)
        most_jobs = _REMOTE_JOBS if any(storage_of(source.path).remote for source in self._task.sources) else _MANY
        if self._storage.front_to_back:
            lot_nbytes = self._settings.block_nbytes
        room = lot_nbytes
        for move in in_file_order(self._task.moves) if self._storage.front_to_back else self._task.moves:
            mover = Mover(move, self._sources, self._scratch, self._settings.block_nbytes, self._note)
            blocks = len(mover.blocks)
            block_nbytes = max(mover.blocks.hull.size * ITEMSIZE[move.step.base.dtype] // max(blocks, 1), 1)
            start = 0
            while start < blocks:
                stop = min(start + max(room // block_nbytes, 1), blocks)
                lot.append(Job(mover, start, stop))
                room -= (stop - start) * block_nbytes
                start = stop
                if room < block_nbytes or len(lot) >= most_jobs:
                    yield lot
                    lot, room = [], lot_nbytes
        if lot:
            yield lot

    def job(self, lot: list[Job], stopped: threading.Event) -> None:
        """Carry out one lot; gives up early when ``stopped`` is set."""
        if self._storage.front_to_back:
            self._job_in_turn(lot, stopped)
            return
        for job in lot:
            sink = _HashingSink(self)
            for number in range(job.start, job.stop):
                if stopped.is_set():
                    return
                job.mover.run((number,), sink)
            sink.close()

    def _job_in_turn(self, lot: list[Job], stopped: threading.Event) -> None:
        """Several blocks are all read before the first waits for its turn: else each would be read in its turn only."""
        blocks = [(job.mover, number) for job in lot for number in range(job.start, job.stop)]
        if len(blocks) == 1:
            mover, number = blocks[0]
            mover.run((number,), lambda access, data: self.put(access, data, stopped))
            return
        held: list[tuple[Access, bytes]] = []
        for mover, number in blocks:
            if stopped.is_set():
                return
            mover.run((number,), lambda access, data: held.append((access, bytes(data))))
        for access, data in held:
            self.put(access, memoryview(data), stopped)

    def commit(self) -> list[FileResult]:
        """Check that every byte was written once, then name the files. Raises RunError."""
        results = []
        for i, file in enumerate(self._task.files):
            if i in self._turns:
                self._turns[i].finish()
                self._runs[i] = self._turns[i].runs
            elif i in self._sums:
                self._write(i, (piece for piece in file.header if self._waits(i, piece)))
            read = self._sources.read_nbytes if i == 0 else 0
            runs = tuple(sorted(self._runs[i], key=lambda r: (r.offset, r.nbytes)))
            misfits = tuple(found for (at, _), found in sorted(self._misfits.items()) if at == i)
            results.append(FileResult(file.path, file.nbytes, runs, read, misfits=misfits))
            check_runs(results[-1])
        self._sources.check_unchanged()
        self._sources.close()
        with ThreadPoolExecutor(_CREATORS if self._storage.front_to_back else 1) as pool:
            for done in [pool.submit(new.commit) for new in self._files.values()]:
                done.result()
        return [*results, *self._link_twins(results)]

    def _link_twins(self, results: list[FileResult]) -> Iterator[FileResult]:
        """Give every file's twins its content, now that it has its name."""
        for file, result in zip(self._task.files, results, strict=True):
            for twin in file.twins:
                paths = (join(self._settings.folder, p) for p in (file.path, twin))
                kind = self._storage.link(*paths, fsync=self._settings.fsync)
                yield replace(result, path=twin, read_nbytes=0, link=kind)

    def abandon(self) -> None:
        """Remove what was begun."""
        self._sources.close()
        for file in self._files.values():
            file.abandon()

    def _waits(self, file: int, piece: tuple[int, bytes]) -> bool:
        """Whether a header piece states the CRC-32 of what has to be written first."""
        return file in self._sums and self._sums[file].awaited(piece[0], len(piece[1]))

    def _write(self, file: int, pieces: Iterable[tuple[int, bytes]]) -> None:
        """What is no tensor's."""
        sums = self._sums.get(file)
        for offset, piece in pieces:
            content = sums.stated(offset, piece) if sums else piece
            self._files[file].write(offset, memoryview(content))
            run = Run(offset, len(content), xxhash.xxh3_128_hexdigest(content))
            self.record(file, run, zlib.crc32(content) if sums else 0)

    def record(self, file: int, run: Run, crc: int) -> None:
        """Note what was written; its CRC-32 counts where the file states any."""
        with self._lock:
            self._runs[file].append(run)
            if file in self._sums:
                self._sums[file].add(run.offset, run.nbytes, crc)

    def sums(self, file: int) -> bool:
        return file in self._sums

    def _note(self, file: int, found: ShardMisfits) -> None:
        """A file holds one shard of a tensor, whose blocks come one by one."""
        key = (file, found.counts.tensor)
        with self._lock:
            if key in self._misfits:
                found = replace(found, counts=self._misfits[key].counts + found.counts)
            self._misfits[key] = found

    def put(self, access: Access, data: memoryview, stopped: threading.Event | None = None) -> None:
        """``stopped`` ends the wait for a turn, where there are turns."""
        at = 0
        for extent in access.ranges:
            part = data[at : at + extent.nbytes]
            if stopped:
                self._turns[access.file].put(extent.offset, part, stopped)
            else:
                self._files[access.file].write(extent.offset, part)
            at += extent.nbytes
        if at != len(data):
            raise RunError(f"{len(data)} bytes for a place of {at}", self._task.files[access.file].path)
        self._on_bytes(at)

    @property
    def hashes(self) -> bool:
        return self._settings.checksum


class _Open:
    """A run under way."""

    def __init__(self, file: int, offset: int) -> None:
        self.file = file
        self.offset = offset
        self.end = offset
        self.digest = xxhash.xxh3_128()
        self.crc = 0


class _HashingSink:
    """Writes what it is given; bytes that follow one another in a file make one run with one hash."""

    def __init__(self, run: TaskRun) -> None:
        self._run = run
        self._open: dict[int, _Open] = {}

    def __call__(self, access: Access, data: memoryview) -> None:
        self._run.put(access, data)
        at = 0
        for extent in access.ranges:
            self._add(access.piece, access.file, extent.offset, data[at : at + extent.nbytes])
            at += extent.nbytes

    def _add(self, piece: int, file: int, offset: int, data: memoryview) -> None:
        known = self._open.get(piece)
        if known is not None and known.end != offset:
            self._close(known)
            known = None
        if known is None:
            known = self._open[piece] = _Open(file, offset)
        if self._run.hashes:
            known.digest.update(data)
        if self._run.sums(file):
            known.crc = zlib.crc32(data, known.crc)
        known.end += len(data)

    def _close(self, known: _Open) -> None:
        digest = known.digest.hexdigest() if self._run.hashes else ""
        self._run.record(known.file, Run(known.offset, known.end - known.offset, digest), known.crc)

    def close(self) -> None:
        for known in self._open.values():
            self._close(known)
