"""A copy of the results at ``remote_save_url``: each rank sends its own folder, the first of a machine the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from msgspec import Struct

from reshard.auto.results import Results
from reshard.errors import reported
from reshard.storage.disk import DiskFile
from reshard.storage.storage import join
from reshard.storage.storages import storage_of
from reshard.storage.whole_file import copy_file
from reshard.target.target_paths import META

_BLOCK_NBYTES = 8 << 20


class Mirror(Struct, frozen=True):
    """What goes where. ``url`` may be a folder on a disk too. ``proceed`` is called after each block that was sent."""

    results: Results
    url: str
    proceed: Callable[[], None]

    def send_rank(self, rank: int) -> None:
        """The weights of one rank, below ``<url>/transformed_checkpoint/<name>``."""
        folder = self.results.root / self.results.name / f"rank_{rank}"
        if folder.is_dir():
            self._send(folder)

    def send_rest(self, folders: list[Path]) -> None:
        """Strategies, and the signs beside the rank folders that the conversion succeeded, which come last."""
        for folder in folders:
            self._send(folder)
        target = self.results.root / self.results.name
        with reported(target):
            signs = [p for p in sorted(target.iterdir()) if p.is_file()]
        for sign in signs:
            self._send_file(sign)

    def _send(self, folder: Path) -> None:
        with reported(folder):
            files = list(_files(folder))
        for path in files:
            self._send_file(path)

    def _send_file(self, path: Path) -> None:
        target = join(self.url, *path.relative_to(self.results.output).parts)
        with closing(DiskFile(str(path))) as file:
            copy_file(file, storage_of(target).create(target, file.nbytes, fsync=False), _BLOCK_NBYTES, self.proceed)


def _files(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != META)
        yield from (Path(where, name) for name in sorted(names))
