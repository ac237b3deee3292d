"""The local executor: threads over the jobs of read groups, the next group begun while the last one is named."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from itertools import chain
from typing import Protocol

from msgspec import Struct, field

from reshard.moving.task import OnBytes, Settings, TaskRun
from reshard.planning.plan import FileResult, Task
from reshard.storage.disk import Disk
from reshard.storage.storage import Storage

TASKS_AT_ONCE = 2


class Executor(Protocol):
    """A parallel map over tasks, and nothing else."""

    def run(self, tasks: Iterable[Task]) -> Generator[list[FileResult], None, None]:
        """Give the results of each task when its files are whole, in any order. The first error stops all and is
        raised.
        """
        ...


def _ignore(nbytes: int) -> None:
    pass


class _UnderWay:
    """A task whose lots threads take: no more of them exist than are in hand."""

    def __init__(self, run: TaskRun, pool: ThreadPoolExecutor, stopped: threading.Event) -> None:
        self.run = run
        self.calls: list[Future[None]] = []
        self._pool = pool
        self._stopped = stopped
        self._lots = run.lots()
        self._lock = threading.Lock()

    def engage(self, threads: int) -> None:
        """Let so many threads in all work for it, each as soon as it is free."""
        self.calls += [self._pool.submit(self._work, number) for number in range(len(self.calls), threads)]

    def _work(self, number: int) -> None:
        """The first thread begins with the first kind of work, the second with the last, and so on."""
        lots = chain(*(self._lots[::-1] if number % 2 else self._lots))
        while not self._stopped.is_set():
            with self._lock:
                lot = next(lots, None)
            if lot is None:
                return
            self.run.carry_out(lot, self._stopped)


class LocalExecutor(Struct, frozen=True):
    settings: Settings
    workers: int = 2
    on_bytes: OnBytes = _ignore
    storage: Storage = field(default_factory=Disk)

    def run(self, tasks: Iterable[Task]) -> Generator[list[FileResult], None, None]:
        """Tasks of few files go side by side, each with its part of the threads: several that write to one file wait
        for the lock that the kernel has on it.
        """
        stopped = threading.Event()
        under_way: deque[_UnderWay] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="reshard")
        try:
            for task in tasks:  # each made while those before it are under way
                done = [self._finish(under_way)] if len(under_way) == TASKS_AT_ONCE else []
                try:
                    run = TaskRun(task, self.storage, self.settings, self.on_bytes)
                    under_way.append(_UnderWay(run, pool, stopped))
                    some = -(-self.workers // TASKS_AT_ONCE)
                    under_way[-1].engage(some if len(task.files) < self.workers else self.workers)
                finally:
                    yield from done
            while under_way:
                yield self._finish(under_way)
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for each in under_way:
                each.run.abandon()

    def _finish(self, under_way: deque[_UnderWay]) -> list[FileResult]:
        """Of the oldest; whoever has nothing else to do helps."""
        oldest = under_way[0]
        oldest.engage(self.workers)
        done, _ = wait(oldest.calls, return_when=FIRST_EXCEPTION)
        for call in done:
            call.result()
        results = oldest.run.commit()
        under_way.popleft()
        return results
