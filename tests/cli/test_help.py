"""What --help shows: nothing is cut off, every argument is explained."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from forks import forks
from reshard.cli.commands import app_for


def groups(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    below = {k: v for name, c in getattr(command, "commands", {}).items() for k, v in groups(c, (*path, name)).items()}
    return {path: command, **below}


ALL = groups(typer.main.get_command(app_for()))


def help_of(path: tuple[str, ...]) -> str:
    return forks().run(*path, "--help").out


@pytest.mark.parametrize("path", [p for p, c in ALL.items() if hasattr(c, "commands")], ids=" ".join)
def test_no_line_of_a_list_of_commands_is_cut(path: tuple[str, ...]) -> None:
    assert "..." not in help_of(path).partition("Commands:")[2]


@pytest.mark.parametrize("path", [("convert",), ("verify",), ("inspect",), ("strategy", "merge")], ids=" ".join)
def test_every_argument_is_explained(path: tuple[str, ...]) -> None:
    told = re.split(r"Arguments:|Options:", help_of(path))[1].strip()
    assert not re.search(r"^ *\S+  \[required\]", told, re.MULTILINE), told
    assert re.search(r"  [A-Z]\w+ ", told)


def test_the_list_of_commands_needs_none_of_them() -> None:
    """It is what the whole program says of itself."""
    whole, listed = (CliRunner().invoke(app, ["--help"]).stdout for app in (app_for(), app_for(["--help"])))
    assert listed == whole
    assert "convert" in listed
    assert not typer.main.get_command(app_for(["--help"])).commands["convert"].params  # type: ignore[attr-defined]
