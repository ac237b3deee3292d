"""The program: commands, exit codes, and errors without tracebacks."""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

import typer

from reshard.cli.commands import called, program_for
from reshard.cli.environment import allow_many_files, suit_workers
from reshard.cli.output import Complaint, all_said, complain, complaint_of, on_terminal
from reshard.cli.usage import CommandLineError, in_words_of, leave_with_help, refuse_dashes, wrong_words
from reshard.errors import ReshardError, as_ours
from reshard.interruption import interrupted, interruptible, leave
from reshard.streams import make_safe

_INTERRUPTED = 130
_COLLECT_AFTER = 50_000  # new objects: most that a command makes live as long as it, and are looked at in vain


def main(argv: list[str] | None = None) -> None:
    """Run the program and leave with its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    make_safe(sys.stdout, sys.stderr)
    stderr = sys.stderr  # a bar that is drawn puts itself in its place
    gc.set_threshold(_COLLECT_AFTER)
    try:
        _main(words)
    except KeyboardInterrupt:
        cursor = "\r\x1b[K\x1b[?25h" if on_terminal() else ""  # the bar has hidden it
        leave(stderr, f"{cursor}interrupted: {_left_behind(words)}\n", _INTERRUPTED)
        sys.exit(_INTERRUPTED)
    finally:
        gc.freeze()


def _left_behind(words: list[str]) -> str:
    command, whole = called(words), "no file under its final name is partial"
    if command == "auto":
        return f"{whole}; the next start goes on"
    if command not in ("convert", "merge", "split", "unify", "lora"):
        return whole
    if "--overwrite" in words:
        return f"{whole}; the old target stays, or the new one is whole in its place"
    return f"{whole}; --resume goes on"


def _main(args: list[str]) -> None:
    suit_workers()
    if called(args) != "doctor":  # which tells of the limits that it was given
        allow_many_files()
    ours = args.index("--") if "--" in args else len(args)  # what comes after is another program's
    debug, json = "--debug" in args[:ours], "--json" in args[:ours]
    args = [a for i, a in enumerate(args) if i >= ours or a != "--debug"]
    try:
        refuse_dashes(args[:ours])
        code = _carried_out(args)
        all_said()
    except typer.Abort:  # what typer makes of an interruption, in some releases
        raise KeyboardInterrupt from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        told = _complaint(error, args[:ours], debug=debug)
        complain(told, json=json)
        sys.exit(told.exit_code)
    if code == _INTERRUPTED:  # what it makes of one in others
        raise KeyboardInterrupt
    sys.exit(code)


def _complaint(error: BaseException, words: list[str], *, debug: bool) -> Complaint:
    """What is told of an error; with ``debug`` the error itself, unless it is in the words of the command."""
    if isinstance(error, CommandLineError):
        leave_with_help(error)
        return wrong_words(error)
    if debug:
        raise error
    return complaint_of(in_words_of(words, error) if isinstance(error, ReshardError) else as_ours(error))


def _carried_out(args: list[str]) -> Any:
    """The exit code of a command; unless the process becomes another program."""
    code = interruptible(lambda: program_for(args)(args, prog_name="reshard", standalone_mode=False))
    if callable(code):  # what the process becomes
        if interrupted():
            raise KeyboardInterrupt
        code()
    return code
