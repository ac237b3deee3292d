"""An interruption (Ctrl-C, SIGTERM, SIGHUP) ends a program's work between two of its steps.

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
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from types import FrameType
from typing import NoReturn, TextIO, TypeVar

from reshard import waits

T = TypeVar("T")
Ending = Callable[[], T]
"""Gives what work gave, or raises what it raised."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: its terminal is gone


class _Interruption:
    """What this process does; one state, as signals are the process's."""

    interrupted = False
    clearing_up = 0
    goes_on = False


_interruption = _Interruption()


def proceed() -> None:
    """Asked before each step of interruptible work. Raises KeyboardInterrupt after an interruption."""
    if _interruption.interrupted and _interruption.goes_on:
        raise KeyboardInterrupt


def interrupted() -> bool:
    """Whether an interruption came since the last interruptible work began; it may have ended well all the same."""
    return _interruption.interrupted


@contextmanager
def clears_up() -> Iterator[None]:
    """What is done meanwhile asks at its steps and clears up behind itself: an interruption gives it time for that."""
    _interruption.clearing_up += 1
    try:
        yield
    finally:
        _interruption.clearing_up -= 1


def interruptible(work: Callable[[], T]) -> T:
    """Let a thread of its own do a program's work; gives or raises what the work does. For the main thread.

    After an interruption the work raises KeyboardInterrupt at its next step; so do we when it takes too long to end, or
    at the next interruption. Then the caller shall ``leave``. Signals that were ignored stay so.
    """
    told: SimpleQueue[Ending[T] | None] = SimpleQueue()

    def interrupt(number: int, frame: FrameType | None) -> None:
        _interruption.interrupted = True
        told.put(None)

    _interruption.interrupted, _interruption.clearing_up, _interruption.goes_on = False, 0, False
    heard = [number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        threading.Thread(target=lambda: told.put(_outcome(work)), name="reshard", daemon=True).start()
        _interruption.goes_on = True
        outcome = told.get() or _after_interruption(told)
        _interruption.goes_on = False
        return outcome()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(work: Callable[[], T]) -> Ending[T]:
    try:
        result = work()
    except BaseException as error:
        return partial(_fail, error)
    return lambda: result


def _fail(error: BaseException) -> NoReturn:
    raise error


def _after_interruption(told: SimpleQueue[Ending[T] | None]) -> Ending[T]:
    """How the work ended. Raises KeyboardInterrupt where it goes on."""
    began = time.monotonic()
    while (
        left := began + (waits.now.busy_s if _interruption.clearing_up else waits.now.idle_s) - time.monotonic()
    ) > 0:
        with suppress(Empty):
            outcome = told.get(timeout=min(left, waits.now.idle_s))
            if outcome is not None:
                return outcome
            if time.monotonic() - began > waits.now.again_s:
                break
    raise KeyboardInterrupt


def leave(stream: TextIO, said: str, code: int) -> None:
    """Say that the work was interrupted, and end the process as it stands where the work goes on."""
    try:
        stream.write(said)
        stream.flush()
    except OSError:  # who read it was interrupted too: Python would make 120 of the code
        os._exit(code)
    if _interruption.goes_on:
        os._exit(code)  # without another flush: the work may hold the stream, and its reader have paused
