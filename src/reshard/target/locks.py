"""Locks of a target's files, so that processes and machines that fill it together never write the same file."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reshard.errors import reported

_PRESENT = 1 << 40
_PUBLISHING = _PRESENT + 1
_FLOCK = "hhqqi"  # struct flock: type, whence, start, length, process
_HELD = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Locks:
    """One file, of which byte k stands for file k of the whole target; also seen over NFS.

    The kernel gives locks back when their process ends, however it ends. ``real`` is False where the file system has
    none.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.real = True
        folder = os.path.dirname(path)
        while True:
            with reported(path):
                os.makedirs(folder, exist_ok=True)
                try:
                    self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                except FileNotFoundError:
                    if os.path.isdir(folder):
                        raise
                    continue  # removed meanwhile, as the file below may be
            self._set(fcntl.F_RDLCK, _PRESENT, wait=True)
            if self._is_the_file():  # one who found himself alone may have removed it meanwhile
                return
            self.close()

    def _is_the_file(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), Path(self._path).stat())
        except FileNotFoundError:
            return False

    def _set(self, kind: int, start: int, nbytes: int = 1, *, wait: bool = False) -> bool:
        request = struct.pack(_FLOCK, kind, os.SEEK_SET, start, nbytes, 0)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno in _HELD:
                return False
            if error.errno not in _NO_LOCKS:
                with reported(self._path):
                    raise
            self.real = False
        return True

    def take(self, numbers: Iterable[int]) -> int | None:
        """Lock these files, or give the number of one that another is writing."""
        for start, stop in _ranges(numbers):
            if not self._set(fcntl.F_WRLCK, start, stop - start):
                return self._held_in(start, stop)
        return None

    def take_all(self) -> bool:
        """Lock the whole target, whatever files it has; False where another is writing one."""
        return self._set(fcntl.F_WRLCK, 0, _PRESENT)

    def _held_in(self, start: int, stop: int) -> int:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, stop - start, 0)
        kind, _, at, _, _ = struct.unpack(_FLOCK, fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, asked))
        return start if kind == fcntl.F_UNLCK else max(start, int(at))

    def alone(self) -> bool:
        """Whether nobody else is filling the target; nobody begins to before ``close``."""
        return self.real and self._set(fcntl.F_WRLCK, _PRESENT)

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """One at a time."""
        self._set(fcntl.F_WRLCK, _PUBLISHING, wait=True)
        try:
            yield
        finally:
            self._set(fcntl.F_UNLCK, _PUBLISHING)

    def close(self) -> None:
        os.close(self._fd)


def _ranges(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """
    >>> list(_ranges([3, 1, 2, 7]))
    [(1, 4), (7, 8)]
    """
    start = stop = -1
    for number in sorted(numbers):
        if number != stop:
            if stop > start:
                yield start, stop
            start = number
        stop = number + 1
    if stop > start:
        yield start, stop
