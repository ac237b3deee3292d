"""Progress on standard error: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from msgspec import Struct

from reshard.cli.output import on_terminal
from reshard.cli.text import shown_nbytes, shown_seconds
from reshard.interruption import proceed
from reshard.ops.observer import Observer
from reshard.streams import put

if TYPE_CHECKING:
    from rich.progress import Progress

_LINE_EVERY_S = 5.0
_PATIENCE_S = 1.0
_BAR, _WIDE, _NARROW = 20, 110, 80  # columns of the bar; of a terminal that has room for it; for words in full


def observer(*, quiet: bool) -> Observer:
    """The observer that suits where standard error goes. It ends the job after an interruption."""
    if quiet:
        return Interruptible(Observer())
    return Interruptible(_Bar() if on_terminal() else _Lines())


class Interruptible(Observer):
    """Ends the job that it observes at the first step after an interruption; the rest is shown."""

    def __init__(self, shown: Observer) -> None:
        self._shown = shown
        self.start_files, self.finish_files = shown.start_files, shown.finish_files  # type: ignore[method-assign]
        self.end = shown.end  # type: ignore[method-assign]

    def start(self, what: str, nbytes: int) -> None:
        proceed()
        self._shown.start(what, nbytes)

    def advance(self, nbytes: int) -> None:
        proceed()
        self._shown.advance(nbytes)


@contextmanager
def waiting(what: str, *, quiet: bool) -> Iterator[None]:
    """Say on a terminal what takes so long, where it does; the line is gone at the end."""
    if quiet or not on_terminal():
        yield
        return
    done = threading.Event()

    def tell() -> None:
        if not done.wait(_PATIENCE_S):
            sys.stderr.write(f"{what} …")
            sys.stderr.flush()
            done.wait()
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


class _State(Struct):
    """How far a job is."""

    what: str
    total_nbytes: int
    done_nbytes: int = 0
    total_files: int = 0
    done_files: int = 0

    @property
    def share(self) -> float:
        return self.done_nbytes / self.total_nbytes if self.total_nbytes else 1.0

    def said(self, rate: float | None) -> str:
        """The state in words; ``rate`` in bytes a second, None where it is not known yet."""
        files = f"{self.done_files:,} of {self.total_files:,} files, " if self.total_files else ""
        speed = f", {shown_nbytes(rate)}/s, {self.left(rate)}" if rate else ""
        amount = f"{shown_nbytes(self.done_nbytes)} of {shown_nbytes(self.total_nbytes)} ({self.share:.0%})"
        return files + amount + speed

    def left(self, rate: float) -> str:
        return f"{shown_seconds(max(self.total_nbytes - self.done_nbytes, 0) / rate)} left"


class _Bar(Observer):
    """One line that is drawn over and over, and gone at the end: the summary stays."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def start(self, what: str, nbytes: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
        from rich.text import Text

        state = self._state = _State(what, nbytes)
        console = Console(stderr=True)

        class Said(ProgressColumn):
            def render(self, task: Task) -> Text:
                rate = task.finished_speed or task.speed
                short = f"{state.share:.0%}" + (f", {state.left(rate)}" if rate else "")
                words = short if console.width < _NARROW else state.said(rate)
                return Text(words, no_wrap=True, overflow="ellipsis")

        bar = [BarColumn(_BAR)] if console.width >= _WIDE else []
        columns = (TextColumn("{task.description}"), *bar, Said())
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task(what, total=nbytes)
        with suppress(OSError):  # a terminal that is gone keeps no work from its end
            self._progress.start()

    def start_files(self, count: int) -> None:
        self._state.total_files = count

    def finish_files(self, count: int) -> None:
        self._state.done_files += count

    def advance(self, nbytes: int) -> None:
        assert self._progress is not None
        self._progress.advance(self._task, nbytes)
        self._state.done_nbytes = int(self._progress.tasks[0].completed)

    def end(self) -> None:
        if self._progress is not None:
            with suppress(OSError):
                self._progress.stop()


class _Lines(Observer):
    """A line every few seconds, for logs."""

    def start(self, what: str, nbytes: int) -> None:
        self._state = _State(what, nbytes)
        self._began = self._said = time.monotonic()
        self._lock = threading.Lock()

    def start_files(self, count: int) -> None:
        self._state.total_files = count

    def finish_files(self, count: int) -> None:
        self._state.done_files += count

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self._state.done_nbytes += nbytes
            now = time.monotonic()
            if now - self._said < _LINE_EVERY_S:
                return
            self._said = now
            line = self._state.said(self._state.done_nbytes / (now - self._began))
        put("stderr", f"{self._state.what}: {line}\n")
