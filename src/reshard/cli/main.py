"""The program: commands, exit codes, and errors without tracebacks."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from reshard.cli import compat, convert, diff, fingerprint, inspect, lora, plan, strategy, unify, verify
from reshard.cli.output import say, say_error
from reshard.errors import ReshardError, RunError

_INTERRUPTED = 130

app = typer.Typer(
    name="reshard",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from reshard import __version__

        say(f"reshard {__version__}")
        raise typer.Exit


@app.callback(
    epilog="Exit codes: 0 done, 1 a difference was found, 2 usage, 3 input is wrong, 4 I/O, 5 a worker failed."
)
def _reshard(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Cut, merge and re-cut the weight files of large models between parallel layouts."""


app.command()(convert.convert)
app.command()(convert.merge)
app.command()(convert.split)
app.command()(plan.plan)
app.command()(inspect.inspect)
app.command()(verify.verify)
app.command()(diff.diff)
app.command()(fingerprint.fingerprint)
app.command()(unify.unify)
app.add_typer(lora.app, name="lora")
app.add_typer(strategy.app, name="strategy")
app.add_typer(compat.app, name="compat")


_signals: list[int] = []


def _interrupt(number: int, frame: FrameType | None) -> None:
    _signals.append(number)
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> None:
    """Run the program and leave with its exit code."""
    try:
        _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # where click does not see it
        _say_interrupted()
        sys.exit(_INTERRUPTED)


def _say_interrupted() -> None:
    sys.stderr.write("interrupted: no file under its final name is partial; --resume goes on\n")


def _main(args: list[str]) -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # workers are threads already; theirs would fight over the cores
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    try:
        app(args, prog_name="reshard")
    except ReshardError as error:
        if debug:
            raise
        say_error(error)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            _say_interrupted()
        raise
    except Exception as error:
        if _signals:  # Python turns an interruption of some of its own steps into other errors
            raise KeyboardInterrupt from error
        if debug:
            raise
        sys.stderr.write(f"error: {type(error).__name__}: {error}\n  hint: a bug in reshard; --debug shows where\n")
        sys.exit(RunError.exit_code)
