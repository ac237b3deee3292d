"""The command line as a user meets it: another process, its exit code and what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from forks import forks

PROGRAM = Path(sys.executable).with_name("reshard")


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("warning:")]


def run(*args: str | Path, before: tuple[str, ...] = ()) -> Said:
    """``before``: a command that runs the command."""
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    if not before:
        ended = forks().run(*args, env=environment)
        return Said(ended.code, ended.out, ended.err)
    command = [*before, str(PROGRAM), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


def refused(code: int, *args: str | Path, target: Path | None = None, before: tuple[str, ...] = ()) -> str:
    """The one error of a command that must fail so and leave nothing in the target that looks finished."""
    held = _weight_files(target)
    said = run(*args, before=before)
    assert (said.code, len(said.errors)) == (code, 1), said
    assert "Traceback" not in said.err
    assert "a bug in reshard" not in said.err
    assert _weight_files(target) == held
    return said.err


def _weight_files(target: Path | None) -> dict[Path, bytes]:
    if target is None or not target.exists():
        return {}
    files = [target] if target.is_file() else [p for p in target.rglob("*") if p.is_file()]
    names = (".ckpt", ".safetensors", "manifest.json")
    return {p: p.read_bytes() for p in files if p.name.endswith(names)}
