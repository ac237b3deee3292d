"""The command line on a terminal: a pseudo terminal in place of a person's."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("reshard")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_PATIENCE_S = 60


@dataclass(frozen=True)
class Shown:
    code: int
    text: str

    @property
    def plain(self) -> str:
        """Without control sequences."""
        return _CONTROL.sub("", self.text)


def on_terminal(
    *args: str | Path,
    columns: int = 100,
    env: Mapping[str, str] | None = None,
    interrupt_at: str = "",
    close_at: str = "",
) -> Shown:
    """Run the command with all its streams on a terminal. ``interrupt_at``: press Ctrl-C once this is shown;
    ``close_at``: close the terminal, of which a command in the background hears by its streams alone.
    """
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [str(PROGRAM), *map(str, args)], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**clean, "TERM": "xterm-256color", **(env or {})},
    )  # fmt: skip
    os.close(theirs)
    text, until = b"", time.monotonic() + _PATIENCE_S
    try:
        while select.select([ours], [], [], max(until - time.monotonic(), 0))[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:  # what Linux gives when the last to write has gone
                break
            text += part
            if interrupt_at and interrupt_at.encode() in text:
                process.send_signal(signal.SIGINT)
                interrupt_at = ""
            if close_at and close_at.encode() in text:
                os.close(ours)
                ours = -1
                break
        return Shown(process.wait(_PATIENCE_S), text.decode())
    finally:
        process.kill()
        if ours >= 0:
            os.close(ours)
