"""The program: commands, exit codes, and errors without tracebacks."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from reshard.cli import (
    auto,
    compat,
    convert,
    diff,
    doctor,
    explain,
    fingerprint,
    inspect,
    lora,
    plan,
    strategy,
    unify,
    verify,
)
from reshard.cli.environment import suit_workers
from reshard.cli.output import complain, on_terminal, say, say_error
from reshard.cli.usage import CommandLineError, say_wrong_words
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


app.command(short_help="Re-cut a checkpoint: any N ranks to any M, either format.")(convert.convert)
app.command()(convert.merge)
app.command()(convert.split)
app.command(short_help="What a conversion would read, write and need.")(plan.plan)
app.command(short_help="What a checkpoint holds, from its headers.")(inspect.inspect)
app.command(short_help="Where a tensor lies, and how each slice is made.")(explain.explain)
app.command(short_help="Prove that DST is as written, or holds exactly SRC.")(verify.verify)
app.command(short_help="Compare two checkpoints tensor by tensor.")(diff.diff)
app.command(short_help="A number of the content, whatever the layout.")(fingerprint.fingerprint)
app.command(short_help="Merge rank folders into full safetensors parts.")(unify.unify)
app.command(
    cls=auto.AutoCommand,
    short_help="The start of a job: its weights in its layout.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(auto.auto)
app.command(short_help="Versions, file systems, limits: what may stand in the way.")(doctor.doctor)
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
    cursor = "\r\x1b[K\x1b[?25h" if on_terminal() else ""  # a bar that was drawn just now has hidden it
    sys.stderr.write(f"{cursor}interrupted: no file under its final name is partial; --resume goes on\n")


def _main(args: list[str]) -> None:
    suit_workers()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    ours = args.index("--") if "--" in args else len(args)  # what comes after is another program's
    debug = "--debug" in args[:ours]
    args = [a for i, a in enumerate(args) if i >= ours or a != "--debug"]
    try:
        code = app(args, prog_name="reshard", standalone_mode=False)
    except ReshardError as error:
        if debug:
            raise
        say_error(error)
        sys.exit(error.exit_code)
    except CommandLineError as error:
        sys.exit(say_wrong_words(error))
    except typer.Abort:  # what typer makes of an interruption, in some releases
        raise KeyboardInterrupt from None
    except Exception as error:
        if _signals:  # Python turns an interruption of some of its own steps into other errors
            raise KeyboardInterrupt from error
        if debug:
            raise
        complain(f"{type(error).__name__}: {error}", ["a bug in reshard; --debug shows where"], RunError("").docs)
        sys.exit(RunError.exit_code)
    if code == _INTERRUPTED:  # what it makes of one in others
        raise KeyboardInterrupt
    sys.exit(code)
