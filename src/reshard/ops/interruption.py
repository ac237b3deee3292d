"""An interruption (Ctrl-C, SIGTERM) ends a program's work between two of its steps.

Python raises KeyboardInterrupt wherever the main thread stands: also where it holds a lock that its other threads wait
for, which then wait forever, or where it has begun a thread that it does not know of yet, which then goes on writing.
So the main thread of a program does nothing but wait; another one works, and asks here at each step.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

from msgspec import Struct

from reshard.ops.observer import Observer

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_IDLE_S = 0.5  # what leaves nothing behind is not waited for any longer
_BUSY_S = 10.0  # nor what clears up behind itself: to end it at any moment is safe, only not tidy
_AGAIN_S = 0.5  # launchers pass on what the terminal has sent already: those are one interruption


class _Work(Struct):
    """What the one process does, as signals are the process's."""

    interrupted: bool = False
    clearing_up: int = 0
    goes_on: bool = False


_work = _Work()


def proceed() -> None:
    """Asked before each step. Raises KeyboardInterrupt after an interruption."""
    if _work.interrupted:
        raise KeyboardInterrupt


@contextmanager
def clears_up() -> Iterator[None]:
    """What is done meanwhile asks at its steps and clears up behind itself: an interruption gives it time for that."""
    _work.clearing_up += 1
    try:
        yield
    finally:
        _work.clearing_up -= 1


class Interruptible(Observer):
    """Ends the job that it observes at the first step after an interruption; the rest is shown."""

    def __init__(self, shown: Observer) -> None:
        self._shown = shown
        self.start_files, self.finish_files = shown.start_files, shown.finish_files  # type: ignore[method-assign]

    def start(self, what: str, nbytes: int) -> None:
        _work.clearing_up += 1
        proceed()
        self._shown.start(what, nbytes)

    def advance(self, nbytes: int) -> None:
        proceed()
        self._shown.advance(nbytes)

    def end(self) -> None:
        _work.clearing_up -= 1
        self._shown.end()


def interruptible(work: Callable[[], T]) -> T:
    """Let a thread of its own do a program's work; gives or raises what the work does. For the main thread.

    Raises KeyboardInterrupt after an interruption: once the work has ended, or when it takes too long to end, or at
    the next interruption. The caller says so, then calls ``cut_off``.
    """
    told: SimpleQueue[_Outcome[T] | None] = SimpleQueue()

    def run() -> None:
        try:
            told.put(_Outcome(work()))
        except BaseException as error:
            told.put(_Outcome(error=error))

    for number in _SIGNALS:
        signal.signal(number, lambda *_: told.put(None))
    _work.interrupted, _work.goes_on = False, True
    threading.Thread(target=run, name="reshard", daemon=True).start()
    try:
        outcome = told.get() or _after_interruption(told)
        _work.goes_on = False
    finally:
        for number in _SIGNALS:  # what is left to do is to leave
            signal.signal(number, signal.SIG_DFL)
    if outcome.error is not None:
        raise outcome.error
    return cast("T", outcome.result)


class _Outcome(Struct, Generic[T], frozen=True):
    result: T | None = None
    error: BaseException | None = None


def _after_interruption(told: SimpleQueue[_Outcome[T] | None]) -> _Outcome[T]:
    _work.interrupted = True
    began = time.monotonic()
    while (left := began + (_BUSY_S if _work.clearing_up else _IDLE_S) - time.monotonic()) > 0:
        with suppress(Empty):
            outcome = told.get(timeout=min(left, _IDLE_S))
            if outcome is not None:
                return outcome
            if time.monotonic() - began > _AGAIN_S:
                break
    raise KeyboardInterrupt


def cut_off(code: int) -> None:
    """End the process as it stands where its work goes on after an interruption."""
    if _work.goes_on:
        os._exit(code)  # without a flush: the work may hold the stream, and its reader have paused
