"""MindSpore in its own process, asked by tests."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

SIDE = Path(__file__).with_name("mindspore_side.py")
Request = tuple[str, Mapping[str, Any]]
"""A question of mindspore_side.py and its arguments."""
Ask = Callable[[Sequence[Request]], list[Any]]


@pytest.fixture
def ask(pytestconfig: pytest.Config, tmp_path: Path) -> Ask:
    """Put requests to MindSpore, in one process; gives an answer to each."""
    python = pytestconfig.getoption("--mindspore")
    if not python:
        pytest.skip("no --mindspore PYTHON was given; make test-oracle gives it")
    if os.sep in python:  # it runs in another folder
        python = os.path.abspath(python)

    def asked(requests: Sequence[Request]) -> list[Any]:
        request, answer = tmp_path / "request.json", tmp_path / "answer.json"
        request.write_text(json.dumps(list(requests)))
        answer.unlink(missing_ok=True)
        done = subprocess.run(
            [python, str(SIDE), str(request), str(answer)],
            env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "GLOG_v": "3"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert answer.exists(), done.stderr
        answers: list[Any] = json.loads(answer.read_text())
        return answers

    return asked
