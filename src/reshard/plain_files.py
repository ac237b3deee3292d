"""Local files, opened to read: one that has no end, or that nobody writes to, is refused and not waited for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from reshard.errors import CheckpointError, reported


def open_plain(path: str) -> tuple[int, os.stat_result]:
    """The descriptor of a file or folder, and what it is. Raises CheckpointError for a pipe or a device."""
    with reported(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for a writer
        status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        return fd, status
    os.close(fd)
    raise CheckpointError("a pipe or a device, not a file", path, "write what comes out of it to a file, and give that")


def local_content(path: str | Path) -> bytes:
    """A small file, whole. Raises CheckpointError where there is none, StorageError."""
    fd, _ = open_plain(str(path))
    with reported(path), open(fd, "rb") as file:
        return file.read()
