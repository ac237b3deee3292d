"""The environment that the program was started in, apart from what it sets for itself."""

from __future__ import annotations

import os

_THREADS = "OPENBLAS_NUM_THREADS"
_set: list[str] = []


def suit_workers() -> None:
    """One thread for linear algebra: workers are threads already, and those would fight over the cores."""
    if _THREADS not in os.environ:
        os.environ[_THREADS] = "1"
        _set.append(_THREADS)


def original() -> dict[str, str]:
    """For a program that is started in our place."""
    return {name: value for name, value in os.environ.items() if name not in _set}
