from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from job import Run, Work

from reshard.cli.main import main


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process, so that system calls can be made to fail."""

    def run(*args: str | Path) -> tuple[int, str]:
        capfd.readouterr()
        code: Any = 0
        try:
            main([str(a) for a in args])
        except SystemExit as stop:
            code = stop.code or 0
        return code, capfd.readouterr().err

    return run
