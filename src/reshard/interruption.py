"""An interruption (Ctrl-C, SIGTERM) ends a program's work between two of its steps.

Python raises KeyboardInterrupt wherever the main thread stands: also where it holds a lock that its other threads wait
for, which then wait forever, or where it has begun a thread that it does not know of yet, which then goes on writing.
So the main thread of a program does nothing but wait, another one works, and asks here at each step.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TypeVar

from msgspec import Struct

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_IDLE_S = 0.5  # what leaves nothing behind is not waited for any longer
_BUSY_S = 10.0  # nor what clears up behind itself: to end it at any moment is safe, only not tidy
_AGAIN_S = 1.0  # launchers pass on what the terminal has sent already: those are one interruption


class _Work(Struct):
    """What this process does; one state, as signals are the process's."""

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


def interruptible(work: Callable[[], T]) -> T:
    """Let a thread of its own do a program's work; gives or raises what the work does. For the main thread.

    Raises KeyboardInterrupt after an interruption: once the work has ended, or when it takes too long to end, or at
    the next interruption. The caller says so, then calls ``cut_off``.
    """
    told: SimpleQueue[Future[T] | None] = SimpleQueue()

    def run() -> None:
        done: Future[T] = Future()
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)
        told.put(done)

    def interrupt(number: int, frame: FrameType | None) -> None:
        _work.interrupted = True
        told.put(None)

    _work.interrupted, _work.clearing_up, _work.goes_on = False, 0, False
    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        threading.Thread(target=run, name="reshard", daemon=True).start()
        _work.goes_on = True
        done = told.get() or _after_interruption(told)
        _work.goes_on = False
        result = done.result()
        proceed()
        return result
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _work.interrupted = _work.goes_on  # work that goes on is still to end


def _after_interruption(told: SimpleQueue[Future[T] | None]) -> Future[T]:
    """How the work ended. Raises KeyboardInterrupt where it goes on."""
    began = time.monotonic()
    while (left := began + (_BUSY_S if _work.clearing_up else _IDLE_S) - time.monotonic()) > 0:
        with suppress(Empty):
            done = told.get(timeout=min(left, _IDLE_S))
            if done is not None:
                return done
            if time.monotonic() - began > _AGAIN_S:
                break
    raise KeyboardInterrupt


def cut_off(code: int) -> None:
    """End the process as it stands where its work goes on after an interruption."""
    if _work.goes_on:
        os._exit(code)  # without a flush: the work may hold the stream, and its reader have paused
