"""Bytes that two files share: what file systems call reflinks or clones."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

_FICLONE = 0x40049409  # linux/fs.h
_FICLONERANGE = 0x4020940D  # linux/fs.h
_RANGE = "qQQQ"  # struct file_clone_range
_CANNOT = frozenset({
    errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EBADF,
    errno.ETXTBSY,
})  # fmt: skip
"""What systems say that cannot share these bytes; a full disk, say, is another matter."""


def clone_file(fd: int, source_fd: int) -> bool:
    """Let a new file share all bytes of another; False where the file system cannot. Raises OSError."""
    return _done(fd, _FICLONE, source_fd)


def clone_range(fd: int, offset: int, source_fd: int, source_offset: int, nbytes: int) -> bool:
    """Let a file share whole blocks of another; False where the file system cannot. Raises OSError."""
    return _done(fd, _FICLONERANGE, struct.pack(_RANGE, source_fd, source_offset, nbytes, offset))


def _done(fd: int, call: int, argument: int | bytes) -> bool:
    try:
        fcntl.ioctl(fd, call, argument)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def block_shared_by(source: str, folder: str) -> int:
    """The bytes of a block, where new files in a folder can share blocks of a file; 0 where they cannot.

    It is tried with a file that has no name. ``folder`` need not be there yet: what holds it counts.
    """
    there = Path(folder).absolute()
    there = next(path for path in (there, *there.parents) if path.is_dir())
    with suppress(OSError):
        fd = os.open(there, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            block_nbytes = os.fstatvfs(fd).f_frsize
            return block_nbytes if _shares(fd, source, block_nbytes) else 0
        finally:
            os.close(fd)
    return 0


def _shares(fd: int, source: str, block_nbytes: int) -> bool:
    source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        large_enough = os.fstat(source_fd).st_size >= block_nbytes
        return large_enough and clone_range(fd, 0, source_fd, 0, block_nbytes)
    finally:
        os.close(source_fd)
