"""One read group: its files written beside their names, hashed on the way, and named when whole."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from reshard.moving.any_order import AnyOrder
from reshard.moving.mover import Mover, Span, in_lots
from reshard.moving.ordered_write import InOrder
from reshard.moving.scratch import Scratch
from reshard.moving.task_inputs import Sources
from reshard.planning.misfits import ShardMisfits
from reshard.planning.plan import FileResult, Move, Task, check_runs
from reshard.planning.shared import COPIED, SharedMove, shared_of, with_same_bytes, without_shared
from reshard.storage.storage import NewFile, SharedBytes, Storage, join
from reshard.storage.storages import storage_of

_CREATORS = 8
_LOTS = 128  # of a task, at least, where it is as large
_REMOTE_MOVES = 4  # of a lot: each waits for an answer or more
OnBytes = Callable[[int], None]
T = TypeVar("T")


class Settings(Struct, frozen=True):
    """How tasks are carried out, wherever they run.

    Attributes:
        folder: what file names are relative to.
        upload_nbytes: what the new files of a task may keep in memory together, where they are uploaded.
        shared_block_nbytes: of a file system that lets files share blocks; 0 where all is copied.
    """

    folder: str
    block_nbytes: int = 8 << 20
    fsync: bool = True
    checksum: bool = True
    upload_nbytes: int = 0
    shared_block_nbytes: int = 0


def _several_at_once(do: Callable[[T], None], some: Collection[T]) -> None:
    """To start threads for one alone takes longer than a small file."""
    if len(some) == 1:
        do(*some)
        return
    with ThreadPoolExecutor(_CREATORS) as pool:
        for done in [pool.submit(do, each) for each in some]:
            done.result()


class TaskRun:
    """A task under way. ``carry_out`` may be called from any thread; then ``commit`` or ``abandon`` from one."""

    def __init__(self, task: Task, storage: Storage, settings: Settings, on_bytes: OnBytes) -> None:
        self._task = task
        self._storage = storage
        self._settings = settings
        self._sources = Sources(task.sources, front_to_back=storage.front_to_back)
        self._scratch = Scratch()
        self._misfits: dict[tuple[int, str], ShardMisfits] = {}
        self._lock = threading.Lock()
        self._files: dict[int, NewFile] = {}
        block_nbytes = settings.shared_block_nbytes
        self._copied = block_nbytes == COPIED
        lying = with_same_bytes(task.moves) if block_nbytes else []
        self._shared = shared_of(lying, block_nbytes)
        try:
            # to take the space of a file costs time on some file systems, and a round trip on others
            _several_at_once(self._create, range(len(task.files)))
            new = [self._files[number] for number in range(len(task.files))]
            kind = InOrder if storage.front_to_back else AnyOrder
            self._writer = kind(task.files, new, on_bytes, checksum=settings.checksum)
            self._moves = self._left_to_do(lying)
        except BaseException:
            self.abandon()
            raise

    def _left_to_do(self, lying: list[SharedMove]) -> tuple[Move, ...]:
        """Nothing has to be read of what files share, unless it is hashed."""
        shared = {n: new.shared for n, new in self._files.items() if new.shared and not self._task.files[n].checksums}
        if self._settings.checksum or not shared or not isinstance(self._writer, AnyOrder):
            return self._task.moves
        rest = without_shared(lying, shared)
        for file, start, stop in rest.held:
            self._writer.held(file, start, stop)
        return rest.moves

    def _create(self, number: int) -> None:
        file = self._task.files[number]
        buffer_nbytes = self._settings.upload_nbytes // len(self._task.files)
        path, fsync = join(self._settings.folder, file.path), self._settings.fsync
        share = [
            SharedBytes(s.offset, s.nbytes, self._sources.opened(s.source), s.source_offset, copied=self._copied)
            for s in self._shared.get(number, ())
        ]
        self._files[number] = self._storage.create(
            path, file.nbytes, fsync=fsync, buffer_nbytes=buffer_nbytes, share=share
        )

    def lots(self) -> tuple[Iterator[list[Span]], ...]:
        """All the work: what takes its time to compute, and what is only copied, if they may come in any order. Threads
        that begin with one or the other seldom write at once: of those that write to one file, all but one wait.
        """
        groups = self._writer.ordered(self._moves, self._settings.block_nbytes)
        if self._storage.front_to_back:
            return (self._lots_of(groups),)
        kinds: tuple[list[tuple[Move, ...]], ...] = ([], [])
        for moves in groups:
            kinds[not any(move.computes for move in moves)].append(moves)
        return tuple(map(self._lots_of, kinds))

    def _lots_of(self, groups: Iterable[tuple[Move, ...]]) -> Iterator[list[Span]]:
        """A large tensor in several lots, many small ones in one. There are enough of them that threads end at about
        the same time. Where reading waits, lots have few moves, so that many threads wait at once.
        """
        block_nbytes = self._settings.block_nbytes
        fair_nbytes = sum(file.nbytes for file in self._task.files) // _LOTS
        remote = any(storage_of(source.path).remote for source in self._task.sources)
        lot_nbytes = self._writer.lot_nbytes(fair_nbytes, block_nbytes)
        for lot in in_lots(map(self._work, groups), lot_nbytes, _REMOTE_MOVES if remote else sys.maxsize):
            yield [Span(*part) for part in lot]

    def _work(self, moves: tuple[Move, ...]) -> tuple[tuple[Mover, ...], int, int]:
        """The movers of moves that read the same, how many blocks each has, and the bytes of all."""
        block_nbytes = self._settings.block_nbytes
        movers = tuple(Mover(move, self._sources, self._scratch, block_nbytes, self._note) for move in moves)
        nbytes = sum(mover.blocks.hull.size * mover.blocks.source_itemsize for mover in movers)
        return movers, len(movers[0].blocks), nbytes

    def carry_out(self, lot: list[Span], stopped: threading.Event) -> None:
        """Carry out one lot; gives up early when ``stopped`` is set."""
        self._writer.carry_out(lot, stopped)

    def commit(self) -> list[FileResult]:
        """Check that every byte was written once, then name the files. Raises RunError."""
        results = []
        for i, file in enumerate(self._task.files):
            runs = tuple(sorted(self._writer.finish(i), key=lambda r: (r.offset, r.nbytes)))
            read = self._sources.read_nbytes if i == 0 else 0
            misfits = tuple(found for (at, _), found in sorted(self._misfits.items()) if at == i)
            shared = 0 if self._copied else sum(stop - start for start, stop in self._files[i].shared)
            results.append(FileResult(file.path, file.nbytes, runs, read, misfits=misfits, shared_nbytes=shared))
            check_runs(results[-1])
        self._sources.check_unchanged()
        self._sources.close()
        # each waits for a disk, which takes several at once, or a store
        _several_at_once(lambda new: new.commit(), self._files.values())
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

    def _note(self, file: int, found: ShardMisfits) -> None:
        """A file holds one shard of a tensor, whose blocks come one by one."""
        key = (file, found.counts.tensor)
        with self._lock:
            if key in self._misfits:
                found = replace(found, counts=self._misfits[key].counts + found.counts)
            self._misfits[key] = found
