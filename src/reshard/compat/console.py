"""What the command lines print: the log and progress lines that scripts look for, warnings, errors and exit codes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from reshard.errors import ReshardError, as_ours
from reshard.hints import suited
from reshard.interruption import clears_up, interruptible, leave, proceed
from reshard.ops.observer import Observer
from reshard.streams import make_safe, put, shown

_WIDTH = 50
_INTERRUPTED = 130


def log(text: str) -> None:
    """A line on standard output, at once: these go to log files that people watch."""
    put("stdout", f"{text}\n", flush=True)


def banner(text: str) -> None:
    """The line that marks a step of the reference tool, dots around the words: scripts look for it."""
    log(f".........{text}.........")


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        put("stderr", f"warning: {shown(warning)}\n", flush=True)


def progress_line(prefix: str, percent: int) -> str:
    """
    >>> progress_line("Transforming checkpoint", 4)
    'Transforming checkpoint: |▮▮                                                |4%'
    """
    return f"{prefix}: |{'▮' * (_WIDTH * percent // 100):<{_WIDTH}}|{percent}%"


class Progress(Observer):
    """A progress line at every tenth part. It ends the job after an interruption."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lock = threading.Lock()

    def start(self, what: str, nbytes: int) -> None:
        self._total, self._done, self._said = nbytes, 0, 0
        log(progress_line(self._prefix, 0))

    def advance(self, nbytes: int) -> None:
        proceed()
        with self._lock:
            self._done += nbytes
            percent = 100 * self._done // self._total if self._total else 100
            if percent // 10 == self._said // 10 or percent >= 100:
                return
            self._said = percent
            log(progress_line(self._prefix, percent))

    def finish(self) -> None:
        """All is in its place: the last line."""
        log(progress_line(self._prefix, 100))


def program(run: Callable[[Sequence[str]], None], called: Mapping[str, str]) -> Callable[[Sequence[str] | None], int]:
    """A command line of a tool: arguments without the program's name (None: the process's) → exit code.

    Args:
        called: the tool's names of options of ``convert``, for hints.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        alone = threading.current_thread() is threading.main_thread()  # not for reshard compat, which waits there

        @clears_up()
        def work() -> None:
            run(sys.argv[1:] if argv is None else argv)

        make_safe(sys.stdout, sys.stderr)
        try:
            interruptible(work) if alone else work()
        except ReshardError as error:
            return _told(error, called)
        except KeyboardInterrupt:
            if not alone:
                raise
            leave(sys.stderr, "interrupted: no file under its final name is partial\n", _INTERRUPTED)
            return _INTERRUPTED
        except SystemExit:  # of argparse, which has said why
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            if not alone:
                raise
            return _told(as_ours(error), called)
        return 0

    return main


def _told(error: ReshardError, called: Mapping[str, str]) -> int:
    """Say it, once. Gives the exit code."""
    where = f"{error.where}: " if error.where else ""
    advice = suited(error.hint, (), called)
    hint = f"\n  hint: {advice}" if advice else ""
    put("stderr", shown(f"error: {where}{error.message}{hint}\n  docs: {error.docs}") + "\n", flush=True)
    return error.exit_code
