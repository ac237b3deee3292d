"""Options that are given nothing, or a number that means nothing: they do not pass for options that were left out."""

from __future__ import annotations

from typing import Any

import pytest
import typer.main

from golden.cases import run_reshard
from reshard.cli.commands import app_for, every_command

COMMANDS = {path: command for path, command in every_command(typer.main.get_command(app_for())) if path[0] != "compat"}
FROM_0 = {"on_rank", "iteration", "dst_iteration", "a_iteration", "b_iteration", "rank", "hello_port"}


def options(path: tuple[str, ...], kind: str) -> list[Any]:
    """Those that take a value of this kind."""
    taken = (p for p in COMMANDS[path].params if p.param_type_name == "option" and not p.is_flag)
    return [option for option in taken if option.type.name.startswith(kind)]


def refused(path: tuple[str, ...], option: Any, value: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a command in which all else is given that it must have."""
    words = [option.opts[-1], value]
    for other in COMMANDS[path].params:
        if other.required and other is not option:
            words += [*([other.opts[-1]] if other.param_type_name == "option" else []), "x"]
    assert run_reshard([*path, *words]) == 2, (path, words)
    return capsys.readouterr().err


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_an_empty_value_is_refused(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for option in options(path, "text"):
        if option.name != "prefix":
            assert f"{option.opts[0]} is empty" in refused(path, option, "", capsys)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_number_that_means_nothing_is_refused(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for option in options(path, "integer"):
        value = "-1" if option.name in FROM_0 else "0"
        assert f"invalid value for '{option.opts[-1]}'" in refused(path, option, value, capsys)
