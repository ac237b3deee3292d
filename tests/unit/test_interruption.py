"""An interruption ends a program's work between two steps, in a bounded time."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from reshard import interruption, waits
from reshard.interruption import clears_up, interrupted, interruptible, leave, proceed

SOON_S, LONG_S = 0.2, 60.0
HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def nothing_under_way() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "reshard":
            thread.join()
    interruption._interruption.interrupted = interruption._interruption.goes_on = False


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def interrupt(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def steps() -> None:
    while True:
        proceed()
        time.sleep(0.01)


def end(work: Callable[[], object]) -> None:
    """As a program's main does after an interruption."""
    with pytest.raises(KeyboardInterrupt):
        interruptible(work)
    leave(sys.stderr, "", 130)


def test_work_gives_what_it_gives_and_raises_what_it_raises(exits: list[int]) -> None:
    def fail() -> None:
        raise LookupError("no such thing")

    assert interruptible(lambda: threading.current_thread() is threading.main_thread()) is False
    with pytest.raises(LookupError, match="no such thing"):
        interruptible(fail)
    leave(sys.stderr, "", 130)
    assert exits == []


@pytest.mark.parametrize("number", HEARD)
def test_a_step_is_ended_before_the_work_is(number: int, exits: list[int]) -> None:
    done: list[str] = []

    def work() -> None:
        with clears_up():
            interrupt(number)
            time.sleep(SOON_S)
            done.append("the step")
            steps()

    end(work)
    assert (done, exits) == (["the step"], [])


def test_work_that_ended_meanwhile_is_done(exits: list[int]) -> None:
    def work() -> str:
        interrupt()
        return "done"

    assert not interrupted()
    assert interruptible(work) == "done"
    assert interrupted()
    leave(sys.stderr, "", 130)
    assert exits == []


def test_where_nobody_reads_any_more(exits: list[int]) -> None:
    receive, send = os.pipe()
    os.close(receive)
    stream = os.fdopen(send, "w")
    leave(stream, "interrupted", 130)
    assert exits == [130]
    with suppress(BrokenPipeError):
        stream.close()


def test_what_a_shell_ignores_for_its_background_jobs_is_ignored(exits: list[int]) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert interruptible(interrupt) is None
        assert not interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_nothing_stays_behind(exits: list[int]) -> None:
    before = [signal.getsignal(number) for number in HEARD]
    interruptible(interrupt)
    assert [signal.getsignal(number) for number in HEARD] == before
    proceed()
    assert interruptible(lambda: "next") == "next"


def test_idle_work_is_not_waited_for(exits: list[int]) -> None:
    over = threading.Event()

    def work() -> None:
        interrupt()
        over.wait(LONG_S)

    end(work)
    assert not over.is_set()
    over.set()
    assert exits == [130]


def test_work_that_clears_up_is_not_waited_for_without_end(shorten: Callable[..., None], exits: list[int]) -> None:
    shorten(busy_s=waits.now.idle_s + 1)
    said: list[str] = []
    over = threading.Event()

    def work() -> None:
        with clears_up():
            interrupt()
            time.sleep(waits.now.idle_s + SOON_S)
            said.append("still waited for")
            over.wait(LONG_S)

    end(work)
    over.set()
    assert (said, exits) == (["still waited for"], [130])


def test_a_second_interruption_leaves_at_once_but_not_one_that_was_passed_on(exits: list[int]) -> None:
    said: list[str] = []
    over = threading.Event()

    def work() -> None:
        with clears_up():
            interrupt()
            interrupt(signal.SIGTERM)
            time.sleep(waits.now.again_s + SOON_S)
            said.append("still waited for")
            interrupt()
            over.wait(LONG_S)

    end(work)
    over.set()
    assert (said, exits) == (["still waited for"], [130])
