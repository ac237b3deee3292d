"""The seam of storages, and the local disk.

A storage gives ranges of bytes of files that exist and makes new files that appear under their name only when whole.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from reshard.errors import CheckpointError, ReshardError, StorageError
from reshard.planning.plan import Link

PART = ".part"
Buffer = bytearray | memoryview
_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h
_FICLONE = 0x40049409  # linux/fs.h
_IOV_MAX_NBYTES = 1 << 30  # Linux moves at most 2 GiB a call


class ReadFile(Protocol):
    """An open file to read, safe to use from several threads at once; size and time of change as when it was opened."""

    @property
    def nbytes(self) -> int: ...

    @property
    def mtime_ns(self) -> int: ...

    def read(self, offset: int, nbytes: int) -> bytes: ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer. Raises StorageError when the file ends before."""
        ...

    def changed(self) -> bool:
        """Whether it was written to since it was opened."""
        ...

    def close(self) -> None: ...


class NewFile(Protocol):
    """A file being written; nobody sees it under its name before ``commit``."""

    def write(self, offset: int, data: memoryview) -> None: ...

    def read_into(self, offset: int, buffer: memoryview) -> None: ...

    def commit(self, *, fsync: bool) -> None:
        """Give the file its name."""
        ...

    def abandon(self) -> None:
        """Leave nothing behind."""
        ...


class Storage(Protocol):
    def open(self, path: str) -> ReadFile: ...

    def create(self, path: str, nbytes: int) -> NewFile: ...

    def link(self, path: str, twin: str, *, fsync: bool) -> Link:
        """Make ``twin`` a file of the same content that shares its bytes; say how."""
        ...


@contextmanager
def reported(path: str | Path) -> Iterator[None]:
    """Turn the system's errors into ours, with the file and what to do."""
    try:
        yield
    except OSError as error:
        raise _translated(error, str(path)) from error


def _translated(error: OSError, path: str) -> ReshardError:
    said = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"no space: {said}", path, "free some space, then run again with --resume")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"not allowed: {said}", path, "check owner and mode of the file and its folder")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return CheckpointError("no such file or folder", path)
    return StorageError(said, path, "check the disk; run again with --resume")


class DiskFile:
    """A local file, open to read."""

    def __init__(self, path: str) -> None:
        self.path = path
        with reported(path):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self._fd)
        self.nbytes = status.st_size
        self.mtime_ns = status.st_mtime_ns

    def read(self, offset: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        read_all(self._fd, self.path, offset, buffer)

    def changed(self) -> bool:
        with reported(self.path):
            status = os.fstat(self._fd)
        return (status.st_size, status.st_mtime_ns) != (self.nbytes, self.mtime_ns)

    def close(self) -> None:
        os.close(self._fd)


def read_all(fd: int, path: str, offset: int, buffer: memoryview) -> None:
    """Fill the buffer from a file descriptor. Raises StorageError."""
    done = 0
    with reported(path):
        while done < len(buffer):
            n = os.preadv(fd, [buffer[done : done + _IOV_MAX_NBYTES]], offset + done)
            if n == 0:
                raise StorageError(
                    f"the file ends at byte {offset + done}, {len(buffer) - done} more were expected",
                    path,
                    "it is cut short, or changed while it was read: copy it again",
                )
            done += n


class DiskNewFile:
    """A local file that lies at ``path.part`` until it is whole. Its space is taken at once, so a full disk shows
    early.
    """

    def __init__(self, path: str, nbytes: int) -> None:
        self.path = path
        self._part = path + PART
        self._named = False
        with reported(self._part):
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            with reported(self._part):
                _allocate(self._fd, nbytes)
        except BaseException:
            self.abandon()
            raise

    def write(self, offset: int, data: memoryview) -> None:
        done = 0
        with reported(self._part):
            while done < len(data):
                done += os.pwrite(self._fd, data[done : done + _IOV_MAX_NBYTES], offset + done)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        read_all(self._fd, self._part, offset, buffer)

    def commit(self, *, fsync: bool) -> None:
        with reported(self.path):
            if fsync:
                os.fsync(self._fd)
            self._close()
            os.rename(self._part, self.path)
            self._named = True
            if fsync:
                sync_folder(os.path.dirname(self.path) or ".")

    def abandon(self) -> None:
        with suppress(OSError):  # what made us give up is to be told, not that its traces stay
            self._close()
        if not self._named:
            with suppress(OSError):
                os.unlink(self._part)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _allocate(fd: int, nbytes: int) -> None:
    if not nbytes:
        return
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.truncate(fd, nbytes)


def sync_folder(path: str) -> None:
    """Make the names in a folder survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exchange(a: str, b: str) -> bool:
    """Let two names of one folder change places in one step; False where the system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None or call(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return call is not None
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), a)


class Disk:
    """Local files and whatever is mounted as such."""

    def open(self, path: str) -> ReadFile:
        return DiskFile(path)

    def create(self, path: str, nbytes: int) -> NewFile:
        return DiskNewFile(path, nbytes)

    def link(self, path: str, twin: str, *, fsync: bool) -> Link:
        """A reflink where the file system has them: later changes of one do not reach the other. Else a hard link."""
        part = twin + PART
        with reported(twin):
            os.makedirs(os.path.dirname(twin) or ".", exist_ok=True)
            Path(part).unlink(missing_ok=True)
            kind: Link = "reflink" if _reflink(path, part) else "hardlink"
            if kind == "hardlink":
                os.link(path, part)
            os.rename(part, twin)
            if fsync:
                sync_folder(os.path.dirname(twin) or ".")
        return kind


def _reflink(path: str, clone: str) -> bool:
    """Clone a file's extents; False where the file system cannot."""
    with open(path, "rb") as source, open(clone, "xb") as target:
        try:
            fcntl.ioctl(target, _FICLONE, source.fileno())
            return True
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EXDEV):
                raise
    os.unlink(clone)
    return False


def write_whole(path: Path, content: bytes, *, fsync: bool = True) -> None:
    """Write a small file beside its name and rename it."""
    file = DiskNewFile(str(path), len(content))
    try:
        file.write(0, memoryview(content))
        file.commit(fsync=fsync)
    except BaseException:
        file.abandon()
        raise
