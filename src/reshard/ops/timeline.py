"""The time line of a job: which worker did how many bytes when, as its observer hears it."""

from __future__ import annotations

import threading
import time

from msgspec import Struct

from reshard.ops.observer import Observer

_MAX_SLICES = 240
_FIRST_SLICE_S = 0.001


class WorkStretch(Struct):
    """One phase of the job, times in seconds since the time line began. ``workers``: bytes by slice of time."""

    what: str
    start_s: float
    stop_s: float
    slice_s: float = _FIRST_SLICE_S
    workers: dict[int, dict[int, int]] = {}
    _told: dict[int, float] = {}

    def add(self, worker: int, at_s: float, nbytes: int) -> None:
        """Count bytes that are done at ``at_s``; the worker has been at them since it told of its last.

        Slices grow with time, so that there are never many.
        """
        self._reach(at_s)
        slices = self.workers.setdefault(worker, {})
        first, last = (self._slice(t) for t in (self._told.get(worker, self.start_s), at_s))
        self._told[worker] = at_s
        share, rest = divmod(nbytes, last - first + 1)
        for i in range(first, last + 1):
            slices[i] = slices.get(i, 0) + share + (rest if i == last else 0)

    def stop(self, at_s: float) -> None:
        """Nothing more will be done. This may be long after the last bytes, where a disk is slow to keep them."""
        self._reach(at_s)
        self.stop_s = at_s

    def _reach(self, at_s: float) -> None:
        while at_s - self.start_s >= self.slice_s * _MAX_SLICES:
            self._halve()

    def _slice(self, at_s: float) -> int:
        return max(int((at_s - self.start_s) / self.slice_s), 0)

    def _halve(self) -> None:
        self.slice_s *= 2
        for worker, slices in self.workers.items():
            fewer: dict[int, int] = {}
            for at, nbytes in slices.items():
                fewer[at // 2] = fewer.get(at // 2, 0) + nbytes
            self.workers[worker] = fewer

    def rows(self) -> tuple[tuple[int, ...], ...]:
        """For each worker the bytes of every slice up to the end; workers in the order of their first bytes."""
        count = self._slice(self.stop_s) + 1
        return tuple(tuple(slices.get(i, 0) for i in range(count)) for slices in self.workers.values())


class Timeline(Observer):
    """Notes what it hears, and passes it on."""

    def __init__(self, listener: Observer) -> None:
        self._listener = listener
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self.stretches: list[WorkStretch] = []

    def start(self, what: str, nbytes: int) -> None:
        now = time.monotonic() - self._began
        self.stretches.append(WorkStretch(what, now, now))
        self._listener.start(what, nbytes)

    def advance(self, nbytes: int) -> None:
        if nbytes:
            now = time.monotonic() - self._began
            with self._lock:
                self.stretches[-1].add(threading.get_ident(), now, nbytes)
        self._listener.advance(nbytes)

    def start_files(self, count: int) -> None:
        self._listener.start_files(count)

    def finish_files(self, count: int) -> None:
        self._listener.finish_files(count)

    def end(self) -> None:
        self.stretches[-1].stop(time.monotonic() - self._began)
        self._listener.end()
