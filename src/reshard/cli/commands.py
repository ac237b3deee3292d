"""The commands of the program, each imported when it is called."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Annotated, Any

import typer

from reshard.cli.output import say

_COMMANDS = {
    "convert": "Any checkpoint to any other: cut, merged, renamed.",
    "merge": "Merge the slices of all ranks into one full checkpoint.",
    "split": "Cut one full checkpoint into the slices of N ranks.",
    "plan": "What a conversion would read, write and need.",
    "inspect": "What a checkpoint holds, from its headers.",
    "names": "What each tensor becomes under other names, by which rule.",
    "explain": "Where a tensor lies, and how each slice is made.",
    "verify": "Prove that DST is as written, or holds exactly SRC.",
    "diff": "Compare two checkpoints tensor by tensor.",
    "fingerprint": "A number of the content, whatever the layout.",
    "unify": "Merge rank folders into full safetensors parts.",
    "auto": "The start of a job: its weights in its layout.",
    "doctor": "What is wrong with a checkpoint, or with this machine.",
    "lora": "Merge LoRA adapters into their base weights.",
    "strategy": "Look at, merge, compare and make strategy files.",
    "compat": "MindFormers' and DeepSpeed's tools, option by option.",
}
"""Name → its line in the list of commands."""

_COMPLETING = "_RESHARD_COMPLETE"
_MODULES = {"merge": "convert", "split": "convert"}


def _version(value: bool) -> None:
    if value:
        from reshard import __version__

        say(f"reshard {__version__}")
        raise typer.Exit


def _reshard(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """The weight files of large models from any family of checkpoint to any other."""
    if context.invoked_subcommand is None:
        from reshard.cli.guide import GUIDE

        say(GUIDE)


def app_for(words: Iterable[str] | None = None) -> typer.Typer:
    """The program as these words need it: with the command that they call, or with nothing but a list where they call
    none. Whole without words, and where a shell asks how they may go on.
    """
    app = typer.Typer(
        name="reshard",
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        add_completion=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(
        epilog="Exit codes: 0 done, 1 a difference was found, 2 usage, 3 input is wrong, 4 I/O, 5 a worker failed."
    )(_reshard)
    whole = words is None or _COMPLETING in os.environ
    name = called(words or ())
    for each in [name] if name in _COMMANDS else _COMMANDS:
        if whole or name in _COMMANDS:
            _add(app, each)
        else:
            app.command(each, short_help=_COMMANDS[each])(_listed)
    return app


def program_for(words: Iterable[str]) -> Any:
    """As ``app_for``, ready to be called: no option of it takes nothing for a value."""
    from reshard.cli.params import refuse_empty

    program = typer.main.get_command(app_for(words))
    for _, command in every_command(program):
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.callback is None:
                parameter.callback = refuse_empty
    return program


def every_command(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Those of a program or a group below it, by their words. Click's own types are not named: newer releases of typer
    carry click inside.
    """
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from every_command(command, (*path, name))
        else:
            yield (*path, name), command


def _listed() -> None:
    """A command of which no more is to be known than its line."""


def called(words: Iterable[str]) -> str:
    """The command that these words call, "" for none."""
    return next((word for word in words if not word.startswith("-")), "")


def _add(app: typer.Typer, name: str) -> None:
    module = import_module(f"reshard.cli.{_MODULES.get(name, name)}")
    if hasattr(module, "app"):
        app.add_typer(module.app, name=name)
    else:
        settings = getattr(module, "SETTINGS", {})
        app.command(short_help=_COMMANDS[name], **settings)(getattr(module, name))
