"""Bytes that two files share, what file systems call reflinks or clones; and those that a server copies by itself."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

from reshard.planning.shared import COPIED
from reshard.storage.machine import has_server_copies

_FICLONE = 0x40049409  # linux/fs.h
_FICLONERANGE = 0x4020940D  # linux/fs.h
_RANGE = "qQQQ"  # struct file_clone_range
_CANNOT = frozenset({
    errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EBADF,
    errno.ETXTBSY,
})  # fmt: skip
"""What systems say that cannot share or copy these bytes; a full disk, say, is another matter."""
_COPY_NBYTES = 1 << 30  # a call
_PAGE_NBYTES = 4 << 10


def clone_file(fd: int, source_fd: int) -> bool:
    """Let a new file share all bytes of another; False where the file system cannot. Raises OSError."""
    return _done(fd, _FICLONE, source_fd)


def clone_range(fd: int, offset: int, source_fd: int, source_offset: int, nbytes: int) -> bool:
    """Let a file share whole blocks of another; False where the file system cannot. Raises OSError."""
    return _done(fd, _FICLONERANGE, struct.pack(_RANGE, source_fd, source_offset, nbytes, offset))


def copy_range(fd: int, offset: int, source_fd: int, source_offset: int, nbytes: int) -> bool:
    """Let the file system copy bytes of one file to another; False where it cannot copy all. Raises OSError."""
    done = 0
    try:
        while done < nbytes:
            some = min(nbytes - done, _COPY_NBYTES)
            copied = os.copy_file_range(source_fd, fd, some, source_offset + done, offset + done)
            if not copied:  # the source ends: whoever reads it tells
                return False
            done += copied
    except OSError as error:
        return _cannot(error)
    return True


def _done(fd: int, call: int, argument: int | bytes) -> bool:
    try:
        fcntl.ioctl(fd, call, argument)
    except OSError as error:
        return _cannot(error)
    return True


def _cannot(error: OSError) -> bool:
    """False for what the system cannot do. Raises all else."""
    if error.errno not in _CANNOT:
        raise error
    return False


def block_shared_by(source: str, folder: str) -> int:
    """The bytes of a block, where new files in a folder can share blocks of a file; 0 where they cannot, or COPIED
    where a server that holds both copies by itself.

    It is tried with a file that has no name. ``folder`` need not be there yet: what holds it counts.
    """
    there = Path(folder).absolute()
    there = next(path for path in (there, *there.parents) if path.is_dir())
    with suppress(OSError):
        source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            served = has_server_copies(there.resolve())
            near = os.fstat(source_fd).st_dev == os.stat(there).st_dev
            return _shared_block(there, source_fd, served=served) or (COPIED if served and near else 0)
        finally:
            os.close(source_fd)
    return 0


def _shared_block(folder: Path, source_fd: int, *, served: bool) -> int:
    """The least that can be shared; what a server calls a block is what it likes to send."""
    with suppress(OSError):
        fd = _nameless(folder, served=served)
        try:
            own, nbytes = os.fstatvfs(fd).f_frsize, os.fstat(source_fd).st_size
            sizes = sorted({own, _PAGE_NBYTES}) if served else [own]
            return next((n for n in sizes if n <= nbytes and clone_range(fd, 0, source_fd, 0, n)), 0)
        finally:
            os.close(fd)
    return 0


def _nameless(folder: Path, *, served: bool) -> int:
    """A new file; a server knows none without a name, so it has one for a moment."""
    if not served:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    path = folder / f".{os.urandom(4).hex()}.part"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    path.unlink()
    return fd
