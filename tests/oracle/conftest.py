"""MindSpore in a process of its own, asked by tests."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from select import select
from typing import Any

import pytest

SIDE = Path(__file__).with_name("mindspore_side.py")
PATIENCE_S = 300
Request = tuple[str, Mapping[str, Any]]
"""A question of mindspore_side.py and its arguments."""
Ask = Callable[[Sequence[Request]], list[Any]]


@pytest.fixture(scope="session")
def ask(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Put requests to MindSpore, to the one process that all tests ask; gives an answer to each."""
    python = pytestconfig.getoption("--mindspore")
    if not python:
        pytest.skip("no --mindspore PYTHON was given; make test-oracle gives it")
    if os.sep in python:  # it runs in another folder
        python = os.path.abspath(python)
    folder = tmp_path_factory.mktemp("mindspore")
    with (folder / "said").open("w") as said, subprocess.Popen(
        [python, str(SIDE)],
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "GLOG_v": "3"},
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
    ) as side:  # fmt: skip
        asked, told = side.stdin, side.stdout
        assert asked
        assert told

        def put(requests: Sequence[Request]) -> list[Any]:
            asked.write(json.dumps(list(requests)) + "\n")
            asked.flush()
            heard = told.readline() if select([told], [], [], PATIENCE_S)[0] else ""
            assert heard, (folder / "said").read_text()[-5000:]
            answers: list[Any] = json.loads(heard)
            return answers

        yield put
        asked.close()
        try:
            side.wait(10)
        except subprocess.TimeoutExpired:
            side.kill()
