"""The ranks of a job as real processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from forks import Ended, Running, forks

PLAIN = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "LANG", "TMPDIR") if name in os.environ}


class Ranks:
    """Starts ranks of jobs."""

    def start(self, *args: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> Running:
        """``reshard auto ARGS`` in an environment that has nothing of a launcher but ``env``."""
        return forks().start("auto", *args, cwd=cwd, env={**PLAIN, **(env or {})})

    def job(self, world: int, *args: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> list[Running]:
        """All ranks of a job, as torchrun would start them."""
        return [
            self.start(*args, cwd=cwd, env={"RANK": str(rank), "WORLD_SIZE": str(world), **(env or {})})
            for rank in range(world)
        ]

    def run(self, world: int, *args: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> list[Ended]:
        return [rank.ended() for rank in self.job(world, *args, cwd=cwd, env=env)]
