"""What all tests share: the options that let the oracle and the browser take part."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Generator, Iterator
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from reshard import waits

if TYPE_CHECKING:
    from cloud.servers import S3

LONGEST = (
    "cluster/test_ray.py",
    "fuzz/test_hostile.py",
    "cloud/test_store_faults.py",
    "families/test_far.py",
    "property/test_reshard.py",
    "auto/test_auto_jobs.py",
    "docs/test_docs.py",
    "reliability/test_kill.py",
    "auto/test_auto_failing.py",
    "families/test_table.py",
    "property/test_recipes.py",
    "reliability/test_faults.py",
    "golden_families/test_checkpoint2.py",
    "property/test_fingerprint.py",
    "cloud/test_memory.py",
    "cloud/test_writing.py",
    "cloud/test_reading.py",
    "auto/test_auto_command.py",
    "auto/test_auto_objects.py",
)
"""Files to begin with, so that at the end no worker is alone with one of them."""
EXAMPLE = re.compile(r"^ *>>> ", re.MULTILINE)
_BUCKETS = count(1)
JUDGES = {
    "torch": "torch",
    "hf": "transformers",
    "peft": "peft",
    "deepspeed": "deepspeed",
    "megatron": "megatron.core",
}
"""The module that each needs."""


def pytest_configure(config: pytest.Config) -> None:
    """Interruptions are tested, and what a shell ignores for its background jobs stays ignored in their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if judge := config.getoption("--judge"):
        import_module(JUDGES[judge])  # or all its tests would be skipped, and nothing judged


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mindspore", metavar="PYTHON", help="interpreter that has MindSpore; runs the oracle tests")
    parser.addoption("--browser", action="store_true", help="chromium and chromedriver are there; runs their tests")
    parser.addoption("--judge", choices=JUDGES, help="the program that this environment has; runs the tests with it")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """No module is looked through for examples that has none: some cannot even be imported here."""
    found = yield
    return [of for of in found if type(of) is pytest.Module or EXAMPLE.search(file_path.read_text("utf-8"))]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--mindspore`` the oracle has no voice, without ``--browser`` nothing is looked at; of the judges one is
    heard at a time.
    """
    unsteady = sorted({item.nodeid.partition("[")[0] for item in items if " at 0x" in item.nodeid})
    if unsteady:
        raise pytest.UsageError(f"names of tests differ from process to process; give ids= to {', '.join(unsteady)}")
    reasons = {
        "oracle": ""
        if config.getoption("--mindspore")
        else "no --mindspore PYTHON was given; make test-oracle gives it",
        "browser": "" if config.getoption("--browser") else "no --browser was given; make test-browser gives it",
        **{judge: f"judged in another environment: make test-{judge}" for judge in JUDGES},
        str(config.getoption("--judge")): "",
    }
    items.sort(key=lambda item: _turn(item.path))
    for item in items:
        for reason in {reasons.get(mark.name) for mark in item.iter_markers()} - {"", None}:
            item.add_marker(pytest.mark.skip(reason=reason))


def _turn(path: Path) -> int:
    """When a file's tests come: the longest first, all others in their own order."""
    name = f"{path.parent.name}/{path.name}"
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


@pytest.fixture
def shorten(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts other seconds in the place of some of ``reshard.waits``."""

    def shorten(**seconds: float) -> None:
        monkeypatch.setattr(waits, "now", replace(waits.now, **seconds))

    return shorten


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees those of whoever runs it."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "OBS_", "S3_", "ACCESS_KEY", "SECRET_ACCESS", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)


@pytest.fixture
def s3(no_credentials: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A bucket of the test's own, to which the environment leads. No two have one name: clients are kept by it."""
    from cloud.servers import ObjectServer

    server = ObjectServer()
    made = server.bucket(f"bucket-{os.getpid()}-{next(_BUCKETS)}")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    server.close()
