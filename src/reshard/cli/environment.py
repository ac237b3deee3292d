"""What the program was started with, apart from what it sets for itself. As a library it sets nothing."""

from __future__ import annotations

import os
import resource

_THREADS = "OPENBLAS_NUM_THREADS"
_MOST_FILES = 65536
_set: list[str] = []
_limits: list[tuple[int, int]] = []


def suit_workers() -> None:
    """One thread for linear algebra: workers are threads already, and those would fight over the cores."""
    if _THREADS not in os.environ:
        os.environ[_THREADS] = "1"
        _set.append(_THREADS)


def allow_many_files() -> None:
    """A merge of a thousand ranks has a thousand files open: use what the system allows this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, _MOST_FILES) if hard >= 0 else _MOST_FILES
    if 0 <= soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        _limits.append((soft, hard))


def original() -> dict[str, str]:
    """The environment for a program that is started in our place; its limits are as they were from now on."""
    if _limits:
        resource.setrlimit(resource.RLIMIT_NOFILE, _limits.pop())
    return {name: value for name, value in os.environ.items() if name not in _set}
