"""When to look again for what others write."""

from __future__ import annotations

import time
from collections.abc import Iterator

from reshard import waits
from reshard.interruption import proceed

_LONGER = 1.3


def pauses() -> Iterator[None]:
    """Pauses between looks, short at first."""
    pause = waits.now.poll_s
    while True:
        yield
        time.sleep(pause)
        pause = min(pause * _LONGER, waits.now.longest_poll_s)


def polls() -> Iterator[None]:
    """As ``pauses``. Raises KeyboardInterrupt after an interruption."""
    for _ in pauses():
        proceed()
        yield
