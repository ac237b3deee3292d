"""What all tests share: the option that names MindSpore's interpreter."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mindspore", metavar="PYTHON", help="interpreter that has MindSpore; runs the oracle tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--mindspore`` the oracle has no voice."""
    if config.getoption("--mindspore"):
        return
    silent = pytest.mark.skip(reason="no --mindspore PYTHON was given; make test-oracle gives it")
    for item in items:
        if item.get_closest_marker("oracle"):
            item.add_marker(silent)
