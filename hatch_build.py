"""What a wheel has besides the package: the documentation, and the manual page, made of the help texts when it is
built; that is installed as share/man/man1/reshard.1.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Documentation(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":  # a tree under work has its documentation beside it
            return
        sys.path.insert(0, str(Path(self.root) / "src"))
        made = Path(self.directory) / "reshard.1"
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(manual_page(self.metadata.version), "utf-8")
        build_data["shared_data"][str(made)] = "share/man/man1/reshard.1"
        build_data["force_include"][str(Path(self.root) / "docs")] = "reshard/docs"  # what errors lead to


def manual_page(version: str) -> str:
    """In roff."""
    import typer.main

    from reshard.cli.commands import app_for, every_command
    from reshard.cli.guide import GUIDE

    program: Any = typer.main.get_command(app_for())
    lines = [
        f'.TH RESHARD 1 "" "reshard {version}" "User Commands"',
        ".SH NAME",
        "reshard \\- any checkpoint of a large model to any other",
        ".SH SYNOPSIS",
        ".B reshard",
        "COMMAND [OPTIONS] [ARGUMENTS]",
        ".SH DESCRIPTION",
        *_block(GUIDE),
        ".SH COMMANDS",
    ]
    for words, command in every_command(program):
        lines += [f".SS reshard {' '.join(words)}", *_told(command), *_options(command)]
    return "\n".join([*lines, ".SH EXIT STATUS", _escaped(program.epilog), ""])


def _told(command: Any) -> list[str]:
    """The paragraphs of a docstring; what follows \\b stays as it is laid out."""
    lines = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        kept = paragraph.startswith("\b\n")
        lines += _block(paragraph[2:]) if kept else [".PP", _escaped(" ".join(paragraph.split()))]
    return lines


def _options(command: Any) -> Iterator[str]:
    for parameter in command.params:
        names = ", ".join((*parameter.opts, *parameter.secondary_opts)) if parameter.param_type_name == "option" else ""
        value = parameter.metavar or ("" if getattr(parameter, "is_flag", False) else parameter.human_readable_name)
        yield ".TP"
        yield f".B {_escaped(f'{names} {value}'.strip())}"
        yield _escaped(getattr(parameter, "help", "") or "")


def _block(text: str) -> list[str]:
    return [".PP", ".nf", *map(_escaped, text.splitlines()), ".fi"]


def _escaped(text: str) -> str:
    """Text that roff takes as it is, dashes as those of options."""
    escaped = re.sub(r"-", r"\\-", text.replace("\\", "\\e"))
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
