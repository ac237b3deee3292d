"""Which storage a path lies on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reshard.errors import located, reported
from reshard.storage.disk import Disk
from reshard.storage.storage import ReadFile, Storage, is_url


def storage_of(path: str) -> Storage:
    """Raises UsageError for a URL of an unknown kind, StorageError where the environment lacks what it takes."""
    if is_url(path):
        from reshard.storage.object_store import object_store_of

        return object_store_of(path)
    return Disk()


@contextmanager
def opened(path: str) -> Iterator[ReadFile]:
    """A file to be read. Raises CheckpointError where there is none; what is wrong with it is told with its path."""
    file = storage_of(path).open(path)
    try:
        with located(path):
            yield file
    finally:
        file.close()


def content_of(path: str) -> bytes:
    """A small file, whole. Raises CheckpointError where there is none."""
    with opened(path) as file:
        return bytes(file.read(0, file.nbytes))


def text_of(path: str) -> str:
    """What a small file says, as a tracker of iterations does; white space around it does not count."""
    return content_of(path).decode("utf-8-sig", "replace").strip()


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Whether a path lies in a folder or is the folder: links followed, and one that is mounted twice is one."""
    if is_url(str(path)) or is_url(str(folder)):
        return f"{str(path).rstrip('/')}/".startswith(f"{str(folder).rstrip('/')}/")
    with reported(path):
        resolved, outer = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return any(_are_one(place, outer) for place in (resolved, *resolved.parents))


def _are_one(place: Path, other: Path) -> bool:
    """Whether two paths without links are of one place. Hard links of a file are two."""
    if place == other:
        return True
    try:
        if other.is_dir():
            return place.samefile(other)
        return place.name == other.name and place.parent.samefile(other.parent)
    except OSError:  # one of them is not there, or nobody may ask
        return False
