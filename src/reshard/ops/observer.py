"""What a long job tells while it runs. The library never prints: a command line or notebook shows it."""

from __future__ import annotations


class Observer:
    """Hears of progress; this one ignores it. ``advance`` is called from several threads.

    What a method raises ends the job, which clears up behind itself.
    """

    def start(self, what: str, nbytes: int) -> None:
        """A job of ``nbytes`` begins."""

    def advance(self, nbytes: int) -> None:
        """So many more bytes are done; 0 where it is only asked whether to go on."""

    def start_files(self, count: int) -> None:
        """The job that began is of so many files."""

    def finish_files(self, count: int) -> None:
        """So many more of them are done."""

    def end(self) -> None:
        """The job is over, well or not."""
