"""What a long job tells while it runs. The library never prints: a command line or notebook shows it."""

from __future__ import annotations


class Observer:
    """Hears of progress; this one ignores it. ``advance`` is called from several threads."""

    def start(self, what: str, nbytes: int) -> None:
        """A job of ``nbytes`` begins."""

    def advance(self, nbytes: int) -> None:
        """So many more bytes are done."""

    def start_files(self, count: int) -> None:
        """The job that began is of so many files."""

    def finish_files(self, count: int) -> None:
        """So many more of them are done."""

    def end(self) -> None:
        """The job is over, well or not."""
