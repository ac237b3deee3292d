"""The ranks of a job as real processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from forks import Ended, Running, forks

PLAIN = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "LANG", "TMPDIR") if name in os.environ}

SHORT = {"longest_poll_s": 0.15, "look_s": 0.2, "awaited_s": 1.0, "hello_try_s": 0.1, "hello_look_s": 2.0}
"""What ranks wait for here lies on one disk: it is there, or never will be. Patience with others stays as it is."""


class Ranks:
    """Starts ranks of jobs."""

    def start(self, *args: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> Running:
        """``reshard auto ARGS`` in an environment that has nothing of a launcher but ``env``."""
        return forks().start("auto", *args, cwd=cwd, env={**PLAIN, **(env or {})}, waits=SHORT)

    def job(self, world: int, *args: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> list[Running]:
        """All ranks of a job, as torchrun would start them."""
        return [
            self.start(*args, cwd=cwd, env={"RANK": str(rank), "WORLD_SIZE": str(world), **(env or {})})
            for rank in range(world)
        ]

    def run(self, world: int, *args: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> list[Ended]:
        return [rank.ended() for rank in self.job(world, *args, cwd=cwd, env=env)]
