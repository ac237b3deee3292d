"""What shells complete: the program is asked as each shell's own script asks it; bash, where it is, for real."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

import pytest
from terminal import PROGRAM

from forks import forks

COMMANDS = {"convert", "merge", "split", "plan", "inspect", "verify", "diff", "doctor", "strategy", "lora", "compat"}


def asked(shell: str, words: Sequence[str]) -> str:
    line = " ".join(words)
    env = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    return said(f"complete_{shell}", env)


def said(wish: str, env: Mapping[str, str]) -> str:
    ended = forks().run(env={**os.environ, "_RESHARD_COMPLETE": wish, **env})
    assert (ended.code, ended.err) == (0, "")
    return ended.out


def answers(shell: str, words: Sequence[str]) -> set[str]:
    """The words that a shell is given, without its own dressing."""
    if shell == "zsh":
        found = asked(shell, words).removeprefix("_arguments '*: :((").removesuffix("))'\n")
        return {line.split('"')[1] for line in found.splitlines() if '"' in line}
    return {line.split("\t")[0] for line in asked(shell, words).splitlines() if line}


SHELLS = ("bash", "zsh", "fish")


@pytest.mark.parametrize("shell", SHELLS)
def test_commands(shell: str) -> None:
    assert answers(shell, ["reshard", ""]) >= COMMANDS
    assert answers(shell, ["reshard", "con"]) == {"convert"}
    assert answers(shell, ["reshard", "strategy", "m"]) == {"merge", "make"}


@pytest.mark.parametrize("shell", SHELLS)
def test_options(shell: str) -> None:
    assert answers(shell, ["reshard", "convert", "--src-st"]) == {"--src-strategy"}


VALUES = {
    "--select": {"natural", "name", "mtime", "step"}, "--format": {"ckpt", "safetensors", "torch"},
    "--missing": {"error", "drop"}, "--checksum": {"xxh3", "off"}, "--replicas": {"copy", "link"},
    "--dtype": {"bfloat16", "float16", "float32", "float64"},
}  # fmt: skip


@pytest.mark.parametrize("option", VALUES)
def test_values_of_options_that_take_one_of_a_few(option: str) -> None:
    assert answers("bash", ["reshard", "convert", option, ""]) == VALUES[option]


@pytest.mark.parametrize("shell", SHELLS)
def test_paths_are_left_to_the_shell(shell: str) -> None:
    assert answers(shell, ["reshard", "convert", "some"]) == set()


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_its_script(shell: str) -> None:
    assert f"_RESHARD_COMPLETE=complete_{shell}" in said(f"source_{shell}", {})


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not there")
def test_bash_itself_completes() -> None:
    script = f"""
    export PATH="{PROGRAM.parent}:$PATH"
    eval "$(_RESHARD_COMPLETE=source_bash reshard)"
    COMP_WORDS=(reshard convert --src-st); COMP_CWORD=2
    _reshard_completion reshard
    echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--src-strategy"]
