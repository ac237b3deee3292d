"""Which storage a path lies on."""

from __future__ import annotations

from reshard.storage.disk import Disk
from reshard.storage.storage import Storage, is_url


def storage_of(path: str) -> Storage:
    """Raises UsageError for a URL of an unknown kind, StorageError where the environment lacks what it takes."""
    if is_url(path):
        from reshard.storage.object_store import object_store_of

        return object_store_of(path)
    return Disk()


def content_of(path: str) -> bytes:
    """A small file, whole. Raises CheckpointError where there is none."""
    file = storage_of(path).open(path)
    try:
        return file.read(0, file.nbytes)
    finally:
        file.close()
