"""``reshard`` alone says how to begin, in words that are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from golden.cases import run_reshard
from making import array, write_file
from reshard.cli.commands import app_for
from reshard.families.targets import kinds


def test_what_it_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_reshard([]) == 0
    said = capsys.readouterr().out
    commands = getattr(typer.main.get_command(app_for()), "commands", {})
    named = re.findall(r"reshard ([a-z]+)", said)
    assert {"inspect", "convert", "verify", "doctor"} <= set(named) <= set(commands)
    options = {option for p in commands["convert"].params for option in p.opts}
    wanted = [shlex.split(line)[1:] for line in re.findall(r"^  (\S+ --.*?)   ", said, re.MULTILINE)]
    assert len(wanted) >= 5
    assert {word for words in wanted for word in words if word.startswith("--")} <= options
    assert {words[words.index("--to") + 1] for words in wanted if "--to" in words} <= set(kinds())
    assert max(map(len, said.splitlines())) <= 110
    assert len(said.splitlines()) <= 24  # one look at a terminal


@pytest.mark.parametrize("name", ["out.zip", "out.tar.gz", "out.gguf", "model.safetensors.index.json", "out.CKPT"])
def test_a_target_named_as_an_archive_is_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    source = write_file(tmp_path / "m.safetensors", {"w": array((2,))})
    assert run_reshard(["convert", str(source), str(tmp_path / name)]) == 2
    assert "is named as a file that we do not write" in capsys.readouterr().err
    assert not (tmp_path / name).exists()
