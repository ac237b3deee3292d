"""The seam of storages.

A storage gives ranges of bytes of files that exist and makes new files that appear under their name only when whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from reshard.errors import UsageError
from reshard.planning.plan import LinkKind

PART = ".part"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Entry(Struct, frozen=True):
    """A file or folder by its name in the folder that holds it; or, ``dangling``, a link that leads to nothing."""

    name: str
    folder: bool
    nbytes: int
    mtime_ns: int
    dangling: bool = False


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


class SharedBytes(Struct, frozen=True):
    """Bytes of a new file that another holds too, and where there: whole blocks of both; or ``copied``, any, by the
    server that holds both files.
    """

    offset: int
    nbytes: int
    source: ReadFile
    source_offset: int
    copied: bool


class NewFile(Protocol):
    """A file being written; nobody sees it under its name before ``commit``."""

    @property
    def shared(self) -> Sequence[tuple[int, int]]:
        """Where the bytes begin and end that it shares with other files, in order."""
        ...

    def write(self, offset: int, data: memoryview) -> None: ...

    def commit(self) -> None:
        """Give the file its name."""
        ...

    def abandon(self) -> None:
        """Leave nothing behind."""
        ...


class Storage(Protocol):
    """Files by path. What cannot be done raises StorageError, a missing file that is read CheckpointError."""

    @property
    def remote(self) -> bool:
        """Whether bytes are far away: each request is a round trip, and there are no folders, locks or free space."""
        ...

    @property
    def at_once(self) -> int:
        """How many small requests at once are sensible."""
        ...

    @property
    def front_to_back(self) -> bool:
        """Whether new files take their bytes in this order only."""
        ...

    def open(self, path: str) -> ReadFile: ...

    def create(
        self, path: str, nbytes: int, *, fsync: bool, buffer_nbytes: int = 0, share: Sequence[SharedBytes] = ()
    ) -> NewFile:
        """``fsync``: under its name it survives a power cut. ``buffer_nbytes`` is what it may keep in memory, where a
        storage must. ``share``: what it may have in common with other files; what it can, it does not take when it is
        written.
        """
        ...

    def link(self, path: str, twin: str, *, fsync: bool) -> LinkKind:
        """Make ``twin`` a file of the same content that shares its bytes; say how."""
        ...

    def entry(self, path: str) -> Entry | None:
        """What is there; None where nothing is."""
        ...

    def entries(self, folder: str) -> list[Entry]:
        """What a folder holds, by name; nothing where there is no such folder."""
        ...

    def write_whole(self, path: str, content: bytes, *, fsync: bool) -> None:
        """Make a small file, or replace it, in one step."""
        ...

    def create_whole(self, path: str, content: bytes, *, fsync: bool) -> bool:
        """Make a small file in one step, of several at once one; False, and nothing is done, where it exists."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file; it may be gone already."""
        ...


def is_url(path: str) -> bool:
    """
    >>> is_url("s3://bucket/ckpt"), is_url("/data/ckpt"), is_url("a:b")
    (True, False, False)
    """
    return _URL.match(path) is not None


def normal(path: str | Path) -> str:
    """A path or URL without what says nothing. Raises UsageError for an empty one, which is no word for this folder.

    >>> normal("s3://bucket/ckpt/"), normal("ckpt//rank_0/")
    ('s3://bucket/ckpt', 'ckpt/rank_0')
    """
    if path == "":
        raise UsageError("an empty path", hint="is a variable not set? this folder is .")
    return str(path).rstrip("/") if is_url(str(path)) else str(Path(path))


def own_name(path: str) -> str:
    """The last name of a path or URL; of ``.`` and ``..`` the folder's own, for some names tell what lies there.

    >>> own_name("s3://bucket/ckpt"), own_name("ckpt/iter_0000010/")
    ('ckpt', 'iter_0000010')
    """
    name = path.rstrip("/").rpartition("/")[2]
    return name if name.strip(".") else os.path.basename(os.path.realpath(path))


def absolute(path: str) -> str:
    """The path as it means the same in processes that began in other folders."""
    return path if is_url(path) else os.path.abspath(path)


def join(folder: str, *names: str) -> str:
    """A path below a folder or a URL.

    >>> join("s3://bucket/out/", "rank_0", "f.ckpt"), join("out", "rank_0/f.ckpt")
    ('s3://bucket/out/rank_0/f.ckpt', 'out/rank_0/f.ckpt')
    """
    return "/".join((folder.rstrip("/"), *names)) if is_url(folder) else os.path.join(folder, *names)
