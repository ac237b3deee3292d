"""What is wrong with the words of a command, said as all other errors are."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import typer

from reshard.cli.commands import app_for, every_command
from reshard.cli.output import Complaint
from reshard.closest import closest, did_you_mean
from reshard.errors import ReshardError, UsageError, docs_page
from reshard.hints import suited

# typer before 0.26 takes click's classes, later releases carry their own: so by what they are, not by name
CommandLineError: type[Exception] = next(c for c in reversed(typer.BadParameter.__mro__) if hasattr(c, "show"))
_DOCS = docs_page("reference/cli")
_FEW = 3
_DASHES = "‐‑‒–—―−－"


def refuse_dashes(words: list[str]) -> None:
    """Raises UsageError for an option that begins with what an editor or a Chinese keyboard makes of two hyphens: it
    would pass for a path.
    """
    for word in words:
        meant = word.lstrip(_DASHES)
        if meant != word:
            raise UsageError(f"{word!r} begins with a dash that is no hyphen", hint=f"--{meant}; a path: ./{word}")


def leave_with_help(error: Any) -> None:
    """Where a group was called alone: no error is told then."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(error.exit_code)


def wrong_words(error: Any) -> Complaint:
    """An error in the words of a command."""
    context = getattr(error, "ctx", None)
    message = re.split(r" \(?(?:Did you mean|Possible options)", error.format_message())[0].rstrip(".")
    hints = _hints(error, context, message) if context else ["--help after the command lists all"]
    docs = _docs(context) if context else _DOCS
    return Complaint(_lowered(message), tuple(hint for hint in hints if hint), docs, int(error.exit_code))


def in_words_of(words: list[str], error: ReshardError) -> ReshardError:
    """The error, whose hint names options of the command that was called."""
    command: Any = typer.main.get_command(app_for(words))
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known = {said: [option for option in spellings if option in options] for said, spellings in _SPELLINGS.items()}
    named = {said: " or ".join(found) for said, found in known.items() if found}
    named |= _OF_AUTO if command.name == "auto" else {}
    hint = suited(error.hint, options, named)
    if not hint and error.hint and command.name in ("merge", "split"):
        hint = f"reshard convert has the option: {error.hint}"
    return type(error)(error.message, error.where, hint)


_SPELLINGS = {
    "--src-strategy": ("--src-strategy", "--strategy", "--a-strategy", "--b-strategy"),
    "--from": ("--from", "--dst-from", "--a-from", "--b-from"),
    "--iteration": ("--iteration", "--a-iteration", "--b-iteration"),
}
"""What commands call options that hints are written with."""

_OF_AUTO = {
    "--src-strategy": "src_strategy_path_or_dir",
    "--suffix": "resume_training",
    "--format": "load_ckpt_format",
    "--transform": "--transform",
}
"""Keys of the YAML, some of which are options of other commands."""


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]


def _docs(context: Any) -> str:
    words = context.command_path.split()[1:]
    return f"{_DOCS}#{'-'.join(words)}" if words and not hasattr(context.command, "commands") else _DOCS


def _hints(error: Any, context: Any, message: str) -> Iterator[str]:
    unknown = re.match(r"No such command '(.*)'", message)
    if unknown:
        asked = f"--{unknown[1]}"
        yield did_you_mean([asked] if asked in ("--help", "--version") else _commands_like(unknown[1], context))
    elif hasattr(error, "possibilities"):
        others = _commands_with(error.option_name)
        options = [word for p in context.command.params for word in (*p.opts, *p.secondary_opts)]
        yield did_you_mean(closest(error.option_name, options, likeness=0.8 if others else 0.6))
        yield f"it is an option of {' and '.join(others)}" if others else ""
    else:
        yield _usage(context)
    yield f"{context.command_path} --help lists all"


def _commands_with(option: str) -> list[str]:
    """Commands that have an option which the one that was called has not; of many the first."""
    whole: Any = typer.main.get_command(app_for())
    found = [
        f"reshard {' '.join(path)}"
        for path, command in every_command(whole)
        if any(option in (*p.opts, *p.secondary_opts) for p in command.params)
    ]
    return found if len(found) <= _FEW else found[:1]


def _commands_like(word: str, context: Any) -> list[str]:
    """Commands of this group called nearly so; else those of its subgroups, with the words that lead to them."""
    whole: Any = context.command if context.parent else typer.main.get_command(app_for())
    commands = whole.commands
    below = {name: f"{group} {name}" for group, c in commands.items() if hasattr(c, "commands") for name in c.commands}
    return closest(word, commands) or [below[name] for name in closest(word, below)]


def _usage(context: Any) -> str:
    arguments = [p for p in context.command.params if p.param_type_name == "argument"]
    words = (p.metavar or p.name.upper() for p in arguments)
    return f"{context.command_path} {' '.join(words)} [options]" if arguments else ""
