"""Progress on standard error: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import os
import sys
import threading
import time

from reshard.cli.text import shown_nbytes, shown_seconds
from reshard.ops.observer import Observer

_LINE_EVERY_S = 5.0


def observer(*, quiet: bool) -> Observer:
    """The observer that suits where standard error goes."""
    if quiet:
        return Observer()
    return _Bar() if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else _Lines()


class _Bar(Observer):
    def start(self, what: str, nbytes: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(what, total=nbytes)
        self._progress.start()

    def advance(self, nbytes: int) -> None:
        self._progress.advance(self._task, nbytes)

    def end(self) -> None:
        self._progress.stop()


class _Lines(Observer):
    """A line every few seconds, for logs."""

    def start(self, what: str, nbytes: int) -> None:
        self._what, self._total, self._done = what, nbytes, 0
        self._began = self._said = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            now = time.monotonic()
            if now - self._said < _LINE_EVERY_S:
                return
            self._said = now
            rate = self._done / (now - self._began)
            left = shown_seconds((self._total - self._done) / rate) if rate else "?"
            share = self._done / self._total if self._total else 1
        sys.stderr.write(
            f"{self._what}: {shown_nbytes(self._done)} of {shown_nbytes(self._total)} ({share:.0%}), "
            f"{shown_nbytes(rate)}/s, {left} left\n"
        )
