"""``--overwrite``: a target built beside the old one, whose place it takes when it is whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from reshard.errors import UsageError
from reshard.run.disk import exchange, sync_folder
from reshard.run.place import Place
from reshard.run.storage import reported


class Replacement:
    """``--overwrite``: the new target is built beside the old one and takes its place by rename when it is complete."""

    def __init__(self, place: Place) -> None:
        if not place.local:
            raise UsageError("object storage has no rename", place.path, "remove it first, or choose another target")
        if Path(place.path).is_file():
            raise UsageError("a file stands where a folder should go", place.path, "choose another target")
        self._old = Path(place.path).resolve()  # a link to the target stays, what it leads to is replaced
        self._new = self._beside("new")
        self.place = Place.of(self._new, single=False)

    def _beside(self, what: str) -> Path:
        return self._old.parent / f".{self._old.name}.reshard-{what}-{os.getpid()}"

    def swap(self) -> None:
        """The old one is removed once the new one has its name; where the system can, names change in one step."""
        with reported(self._old):
            aside = self._beside("old")
            if exchange(str(self._new), str(self._old)):
                os.rename(self._new, aside)
            else:
                os.rename(self._old, aside)
                try:
                    os.rename(self._new, self._old)
                except OSError:
                    os.rename(aside, self._old)
                    raise
            sync_folder(str(self._old.parent))
            shutil.rmtree(aside)

    def abandon(self) -> None:
        shutil.rmtree(self._new, ignore_errors=True)
