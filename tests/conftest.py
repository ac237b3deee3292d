"""What all tests share: the options that let the oracle and the browser take part."""

from __future__ import annotations

import signal

import pytest

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
