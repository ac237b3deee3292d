"""What all tests share: the options that let the oracle and the browser take part."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.store import object_store

collect_ignore_glob = ["conftest.py", "*/conftest.py", "oracle/auto_worker.py", "fuzz/guided.py"]
"""Modules without tests that cannot be imported here: of one name, for MindSpore's environment, for atheris."""


def pytest_configure() -> None:
    """Interruptions are tested, and what a shell ignores for its background jobs stays ignored in their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mindspore", metavar="PYTHON", help="interpreter that has MindSpore; runs the oracle tests")
    parser.addoption("--browser", action="store_true", help="chromium and chromedriver are there; runs their tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--mindspore`` the oracle has no voice, without ``--browser`` nothing is looked at."""
    reasons = {
        "oracle": ""
        if config.getoption("--mindspore")
        else "no --mindspore PYTHON was given; make test-oracle gives it",
        "browser": "" if config.getoption("--browser") else "no --browser was given; make test-browser gives it",
    }
    for item in items:
        for name, reason in reasons.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that all its workers have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def s3_server(shared_folder: Path) -> Iterator[int]:
    with object_store(shared_folder) as port:
        yield port
