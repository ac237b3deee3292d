"""Where a target and our own files beside it lie."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

from reshard.storage.storage import Storage, join, normal
from reshard.storage.storages import storage_of

META = ".reshard"


class Place(Struct, frozen=True):
    """Where the target goes. ``folder`` is what planned paths are relative to, ``meta`` where our own files go."""

    path: str
    folder: str
    meta: str

    @staticmethod
    def of(path: str | Path, *, single: bool) -> Place:
        path = normal(path)
        # above a folder that is made only now something may lie
        if ".." in Path(path).parts and not storage_of(path).remote:
            path = str(Path(path).resolve())
        if single:
            folder, name = os.path.split(path)
            return Place(path, folder or ".", join(folder or ".", META, name))
        return Place(path, path, join(path, META))

    @property
    def single(self) -> bool:
        return self.folder != self.path

    @property
    def storage(self) -> Storage:
        return storage_of(self.path)

    @property
    def local(self) -> bool:
        """Whether it lies on a disk, which has folders, locks and free space."""
        return not self.storage.remote

    def occupied_by_others(self) -> bool:
        """Whether anything but our own files is there."""
        if self.single:
            return self.storage.entry(self.path) is not None
        return any(entry.name != META for entry in self.storage.entries(self.path))

    def occupied(self) -> bool:
        there = self.storage.entry(self.path)
        return there is not None and (self.single or not there.folder or bool(self.storage.entries(self.path)))
