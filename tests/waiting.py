"""Waiting for what shall happen, on machines that have much else to do."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 100


def wait_until(true: Callable[[], object]) -> None:
    """Fails where it never comes true."""
    ends = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.005)
