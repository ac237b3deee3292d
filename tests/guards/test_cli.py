"""Every command explains itself with an example that exists, and help is quick."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
import typer.main
from click.testing import CliRunner

from making import counted, write_file, write_strategy
from reshard.cli.commands import app_for, every_command
from reshard.layout.tensor import Sharding

PROGRAM = typer.main.get_command(app_for())
ALL = dict(every_command(PROGRAM))


@cache
def help_of(path: tuple[str, ...], called: tuple[str, ...] | None = None) -> str:
    """What is said of a command among all, or in the program that has what ``called`` needs."""
    program = typer.main.get_command(app_for(called)) if called else PROGRAM
    result = CliRunner().invoke(program, [*path, "--help"], prog_name="reshard", env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_shows_an_example(path: tuple[str, ...]) -> None:
    examples = re.findall(rf"^ +(reshard {' '.join(path)} .*)$", help_of(path), re.MULTILINE)
    assert examples


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_a_command_alone_is_what_it_is_among_all(path: tuple[str, ...]) -> None:
    assert help_of(path, path) == help_of(path)


def test_an_unknown_command_is_looked_for_among_all() -> None:
    assert help_of((), ("konvert", "--help")) == help_of(())


PASSED_ON = {path for path, command in ALL.items() if command.context_settings.get("ignore_unknown_options")}
"""Commands that hand their words to a parser of their own."""


@pytest.mark.parametrize("path", [p for p in ALL if p not in PASSED_ON], ids=" ".join)
def test_options_of_examples_exist(path: tuple[str, ...]) -> None:
    known = {o for p in ALL[path].params for o in (*p.opts, *p.secondary_opts)}
    examples = re.findall(r"^ +(reshard .*)$", help_of(path), re.MULTILINE)
    assert set(re.findall(r"(?<= )--[a-z_-]+", " ".join(examples))) <= known


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    assert [p.name for p in ALL[path].params if p.param_type_name == "option" and not p.help] == []


IN_EVERY_START = frozenset({
    "reshard", "_distutils_hack", "annotated_doc", "click", "shellingham", "typer", "typing_extensions", "msgspec",
})  # fmt: skip
"""All that is not Python's own, and setuptools' hook where it is installed. NumPy and rich would cost each start as
much as the rest of it.
"""


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("--help", set()),
        ("--version", set()),
        ("convert --help", set()),
        ("strategy show CUT", set()),
        ("plan SRC DST --dst-strategy CUT", {"xxhash"}),
        ("inspect SRC", {"xxhash", "yaml", "_yaml", "_cython_*", "cython_runtime"}),
    ],
)
def test_what_moves_nothing_waits_for_few_imports(words: str, more: set[str], tmp_path: Path) -> None:
    source = write_file(tmp_path / "full.safetensors", {"w": counted(8, 4)})
    cut = write_strategy(tmp_path / "cut", [{"w": Sharding((8,), ((0,), ()))}])
    places = {"SRC": str(source), "DST": str(tmp_path / "out"), "CUT": str(cut)}
    code = (
        "import sys; from reshard.cli.main import main\n"
        f"try: main({[places.get(word, word) for word in words.split()]!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*{m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names - {'__main__'})\n"
        "print('importlib.metadata' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    *_, others, of_python = said.splitlines()
    assert [m for m in others.split() if not any(fnmatch(m, known) for known in IN_EVERY_START | more)] == []
    assert of_python == "False"


def test_a_command_does_not_wait_for_others() -> None:
    code = (
        "import sys; from reshard.cli.main import main\n"
        "try: main(['plan', '--help'])\n"
        "except SystemExit: print(sorted(m for m in sys.modules if m.startswith('reshard.cli.')))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'reshard.cli.plan'" in said
    assert not {"auto", "compat", "lora", "strategy", "unify"} & set(re.findall(r"reshard\.cli\.(\w+)", said))
