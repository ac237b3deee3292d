"""The local disk, and whatever is mounted as such."""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from reshard.errors import CheckpointError, StorageError, reported, translated
from reshard.plain_files import open_plain
from reshard.planning.plan import LinkKind
from reshard.storage.clones import clone_file, clone_range, copy_range
from reshard.storage.machine import filesystem
from reshard.storage.storage import PART, Entry, NewFile, ReadFile, SharedBytes, own_name

if TYPE_CHECKING:
    import ctypes

_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_IOV_MAX_NBYTES = 1 << 30  # Linux moves at most 2 GiB a call
_WRITE_NBYTES = 1 << 20  # a call: ext4 looks for as much memory in one piece, and on a busy machine long for more
_SYNCED_NBYTES = 4 << 20
_IN_MEMORY = ("tmpfs", "ramfs")  # to take space there is to fill it with zeros, which costs as much as to write it
_ACCESS_LISTS = ("system.posix_acl_access", "system.posix_acl_default")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class DiskFile:
    """A local file, open to read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd, status = open_plain(path)
        self.nbytes = status.st_size
        self.mtime_ns = status.st_mtime_ns

    def read(self, offset: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        read_all(self._fd, self.path, offset, buffer)

    def shared_with(self, fd: int, share: SharedBytes) -> bool:
        """Give another file some bytes of this one; False where the file system cannot. Raises OSError."""
        give = copy_range if share.copied else clone_range
        return give(fd, share.offset, self._fd, share.source_offset, share.nbytes)

    def changed(self) -> bool:
        with reported(self.path):
            status = os.fstat(self._fd)
        return (status.st_size, status.st_mtime_ns) != (self.nbytes, self.mtime_ns)

    def close(self) -> None:
        os.close(self._fd)


def read_all(fd: int, path: str, offset: int, buffer: memoryview) -> None:
    """Fill the buffer from a file descriptor. Raises StorageError."""
    done = 0
    while done < len(buffer):
        try:  # no context: of small reads it would take as long as the reading
            n = os.preadv(fd, [buffer[done : done + _IOV_MAX_NBYTES]], offset + done)
        except OSError as error:
            raise translated(error, path) from error
        if n == 0:
            raise StorageError(
                f"the file ends at byte {offset + done}, {len(buffer) - done} more were expected",
                path,
                "it is cut short, or changed while it was read: copy it again",
            )
        done += n


class DiskNewFile:
    """A local file that lies at ``path.part`` until it is whole. Its space is taken at once, so a full disk shows
    early, but in memory. Where another process begins the same file, the first one cannot give it its name any more.

    One that is to be synchronised goes to the disk while it is written, or all of it would wait for the end.

    What it can share with other files it holds from the beginning: of what is written there it takes nothing.
    """

    def __init__(self, path: str, nbytes: int, *, fsync: bool, share: Sequence[SharedBytes] = ()) -> None:
        self.path = path
        self._fsync = fsync
        self._unsynced_nbytes = 0
        self._part = path + PART
        self._named = False
        with reported(self._part):
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            Path(self._part).unlink(missing_ok=True)
            self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            self._status = os.fstat(self._fd)
            keep_access(self._part, path)
        self.shared: Sequence[tuple[int, int]] = ()
        try:
            with reported(self._part):
                os.truncate(self._fd, nbytes)
                self.shared = _given(self._fd, share)
                if self.shared or filesystem(os.path.realpath(self._part)) not in _IN_MEMORY:
                    for start, stop in self._own(0, nbytes):
                        _allocate(self._fd, start, stop - start)
        except BaseException:
            self.abandon()
            raise

    def _own(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """What of some bytes is not shared."""
        first = bisect_right(self.shared, start, key=itemgetter(1))
        last = bisect_left(self.shared, stop, key=itemgetter(0))
        for shared_start, shared_stop in self.shared[first:last]:
            if start < shared_start:
                yield start, shared_start
            start = shared_stop
        if start < stop:
            yield start, stop

    def write(self, offset: int, data: memoryview) -> None:
        if not self.shared:
            self._write(offset, data)
            return
        for start, stop in self._own(offset, offset + len(data)):
            self._write(start, data[start - offset : stop - offset])

    def _write(self, offset: int, data: memoryview) -> None:
        done = 0
        with reported(self._part):
            while done < len(data):
                done += os.pwrite(self._fd, data[done : done + _WRITE_NBYTES], offset + done)
        self._unsynced_nbytes += done
        if self._fsync and self._unsynced_nbytes >= _SYNCED_NBYTES:
            self._unsynced_nbytes = 0
            start_writing(self._fd)

    def commit(self) -> None:
        with reported(self.path):
            if self._fsync:
                os.fsync(self._fd)
            if not self._has_its_part():
                raise StorageError(
                    "it was removed, or another process writes it too", self.path, "run one of them alone"
                )
            self._close()
            os.rename(self._part, self.path)
            self._named = True
            if self._fsync:
                sync_folder(os.path.dirname(self.path) or ".")

    def abandon(self) -> None:
        with suppress(OSError):  # what made us give up is to be told, not that its traces stay
            self._close()
        with suppress(OSError):
            if not self._named and self._has_its_part():
                os.unlink(self._part)

    def _has_its_part(self) -> bool:
        """Whether the file beside the name is still the one that is being written."""
        try:
            return os.path.samestat(self._status, os.stat(self._part))
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _allocate(fd: int, offset: int, nbytes: int) -> None:
    try:
        os.posix_fallocate(fd, offset, nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _given(fd: int, share: Sequence[SharedBytes]) -> list[tuple[int, int]]:
    """What of it the system could share or copy, in order. Raises OSError."""
    done = []
    for part in sorted(share, key=attrgetter("offset")):
        if isinstance(part.source, DiskFile) and part.source.shared_with(fd, part):
            done.append((part.offset, part.offset + part.nbytes))
    return done


@cache
def _libc() -> ctypes.CDLL:
    import ctypes  # planning does without

    return ctypes.CDLL(None, use_errno=True)


def start_writing(fd: int) -> None:
    """Let the disk begin with what a file has in memory, and seldom wait for it. What fails, ``fsync`` tells."""
    call = getattr(_libc(), "sync_file_range", None)
    if call is not None:
        import ctypes

        call(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def keep_access(new: str, old: str) -> None:
    """Let a new file or folder open to those alone whom the old one does whose place it takes, if there is one."""
    try:
        before = os.stat(old)
    except FileNotFoundError:
        return
    for owner in (before.st_uid, -1):
        with suppress(PermissionError):  # not ours to give, or a file system without owners
            os.chown(new, owner, before.st_gid)
            break
    for access_list in _ACCESS_LISTS:  # where there is one, the mode says less alone
        with suppress(OSError):
            os.setxattr(new, access_list, os.getxattr(old, access_list))
    with suppress(PermissionError):
        os.chmod(new, stat.S_IMODE(before.st_mode))


def sync_folder(path: str) -> None:
    """Make the names in a folder survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exchange(a: str, b: str) -> bool:
    """Let two names of one folder change places in one step; False where the system cannot."""
    import ctypes

    call = getattr(_libc(), "renameat2", None)
    if call is None or call(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return call is not None
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), a)


class Disk:
    """Local files and whatever is mounted as such."""

    remote = False
    at_once = 16
    front_to_back = False

    def open(self, path: str) -> ReadFile:
        return DiskFile(path)

    def create(
        self, path: str, nbytes: int, *, fsync: bool, buffer_nbytes: int = 0, share: Sequence[SharedBytes] = ()
    ) -> NewFile:
        return DiskNewFile(path, nbytes, fsync=fsync, share=share)

    def link(self, path: str, twin: str, *, fsync: bool) -> LinkKind:
        """A reflink where the file system has them: later changes of one do not reach the other. Else a hard link."""
        part = twin + PART
        with reported(twin):
            os.makedirs(os.path.dirname(twin) or ".", exist_ok=True)
            Path(part).unlink(missing_ok=True)
            kind: LinkKind = "reflink" if _cloned_whole(path, part) else "hardlink"
            if kind == "hardlink":
                os.link(path, part)
            os.rename(part, twin)
            if fsync:
                sync_folder(os.path.dirname(twin) or ".")
        return kind

    def entry(self, path: str) -> Entry | None:
        try:
            with reported(path):
                status = os.stat(path)
        except CheckpointError:
            return None
        return Entry(own_name(path), stat.S_ISDIR(status.st_mode), status.st_size, status.st_mtime_ns)

    def entries(self, folder: str) -> list[Entry]:
        try:
            with reported(folder):
                names = sorted(os.listdir(folder))
        except CheckpointError:
            return []
        return [entry for name in names if (entry := self._listed(folder, name)) is not None]

    def _listed(self, folder: str, name: str) -> Entry | None:
        path = os.path.join(folder, name)
        gone = Entry(name, folder=False, nbytes=0, mtime_ns=0, dangling=True)
        return self.entry(path) or (gone if os.path.islink(path) else None)

    def write_whole(self, path: str, content: bytes, *, fsync: bool) -> None:
        with reported(path):
            beside = _written_beside(path, content, fsync=fsync)
            try:
                os.rename(beside, path)
            except OSError:  # a folder has the name
                os.unlink(beside)
                raise
            if fsync:
                sync_folder(os.path.dirname(path) or ".")

    def create_whole(self, path: str, content: bytes, *, fsync: bool) -> bool:
        with reported(path):
            beside = _written_beside(path, content, fsync=fsync)
            try:
                _link_new(beside, path, content)
            except FileExistsError:
                return False
            finally:
                os.unlink(beside)
            if fsync:
                sync_folder(os.path.dirname(path) or ".")
        return True

    def remove(self, path: str) -> None:
        with reported(path):
            Path(path).unlink(missing_ok=True)


def _written_beside(path: str, content: bytes, *, fsync: bool) -> str:
    """A small new file in the folder of ``path``, under a name that no other process uses."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    beside = f"{path}.{os.urandom(4).hex()}{PART}"
    try:
        _write_new(beside, content, fsync=fsync)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise
    return beside


def _write_new(path: str, content: bytes, *, fsync: bool) -> None:
    """Raises FileExistsError where the name is taken."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        done = 0
        while done < len(content):
            done += os.pwrite(fd, content[done:], done)
        if fsync:
            os.fsync(fd)
    finally:
        os.close(fd)


def _link_new(beside: str, path: str, content: bytes) -> None:
    """Give a file a second name; unlike a rename this fails where the name is taken. Raises FileExistsError."""
    try:
        os.link(beside, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _write_new(path, content, fsync=False)  # its file system has no links: exclusive all the same


def _cloned_whole(path: str, clone: str) -> bool:
    """Clone a file's extents; False where the file system cannot."""
    with open(path, "rb") as source, open(clone, "xb") as target:
        if clone_file(target.fileno(), source.fileno()):
            return True
    os.unlink(clone)
    return False
