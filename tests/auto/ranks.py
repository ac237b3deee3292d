"""The ranks of a job as real processes, children of one that has everything imported: a start costs milliseconds.

As a program: a line is a JSON request. ``start`` forks and tells the child's process id, ``wait`` waits for one and
tells how it went. ``Ranks`` is the other end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLAIN = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "LANG", "TMPDIR") if name in os.environ}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: exit code, negative for a signal, and what it said."""

    code: int
    said: str


@dataclass(frozen=True, slots=True)
class Running:
    """A rank that runs."""

    pid: int
    log: Path
    ranks: Ranks

    def ended(self) -> Ended:
        """Waits for it, if it runs still."""
        return Ended(self.ranks.told({"wait": self.pid}), self.log.read_text(errors="replace"))


class Ranks:
    """Starts ranks of jobs below a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=PLAIN
        )

    def start(self, *args: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> Running:
        """``reshard auto ARGS`` in an environment that has nothing of a launcher but ``env``."""
        self._started += 1
        log = self._folder / f"log_{self._started}"
        request = {"args": ["auto", *map(str, args)], "cwd": str(cwd), "env": {**PLAIN, **(env or {})}, "log": str(log)}
        return Running(self.told({"start": request}), log, self)

    def job(self, world: int, *args: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> list[Running]:
        """All ranks of a job, as torchrun would start them."""
        return [
            self.start(*args, cwd=cwd, env={"RANK": str(rank), "WORLD_SIZE": str(world), **(env or {})})
            for rank in range(world)
        ]

    def run(self, world: int, *args: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> list[Ended]:
        return [rank.ended() for rank in self.job(world, *args, cwd=cwd, env=env)]

    def told(self, request: Mapping[str, Any]) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def _child(request: Mapping[str, Any]) -> None:
    from reshard.cli.main import main

    code = 99
    try:
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        main(request["args"])
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _serve() -> None:
    import ml_dtypes  # noqa: F401

    import reshard.auto
    from reshard.cli import main  # noqa: F401

    for name in reshard.auto.__all__:
        getattr(reshard.auto, name)
    codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if not pid:
                _child(request["start"])
            codes.pop(pid, None)  # a number may be given again
            print(pid, flush=True)
        else:
            pid = request["wait"]
            if pid not in codes:
                codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print(codes[pid], flush=True)


if __name__ == "__main__":
    _serve()
