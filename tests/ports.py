"""Ports for servers that a test starts."""

from __future__ import annotations

import socket
from contextlib import suppress
from random import SystemRandom


def free_port() -> int:
    """A port that nobody listens on. It is none of those that the kernel gives to whoever asks for any: other tests run
    meanwhile, and one of their connections could have it before the server does.
    """
    while True:
        port = SystemRandom().randrange(20_000, 32_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
