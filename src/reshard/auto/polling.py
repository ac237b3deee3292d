"""When to look again for what others write."""

from __future__ import annotations

import time
from collections.abc import Iterator

from reshard.interruption import proceed

_FIRST_S = 0.05
_LONGEST_S = 1.0
_LONGER = 1.3


def pauses() -> Iterator[None]:
    """Pauses between looks, short at first."""
    pause = _FIRST_S
    while True:
        yield
        time.sleep(pause)
        pause = min(pause * _LONGER, _LONGEST_S)


def polls() -> Iterator[None]:
    """As ``pauses``. Raises KeyboardInterrupt after an interruption."""
    for _ in pauses():
        proceed()
        yield
