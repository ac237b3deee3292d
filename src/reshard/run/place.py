"""Where a target and our own files beside it lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reshard.run.storage import reported

META = ".reshard"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the target goes. ``folder`` is what planned paths are relative to, ``meta`` where our own files go."""

    path: Path
    folder: Path
    meta: Path

    @staticmethod
    def of(path: str | Path, *, single: bool) -> Place:
        path = Path(path)
        if single:
            return Place(path, path.parent, path.parent / META / path.name)
        return Place(path, path, path / META)

    @property
    def single(self) -> bool:
        return self.folder != self.path

    def occupied_by_others(self) -> bool:
        """Whether anything but our own files is there."""
        with reported(self.path):
            return self.path.exists() if self.single else any(p.name != META for p in self.path.iterdir())

    def occupied(self) -> bool:
        with reported(self.path):
            if self.single:
                return self.path.exists()
            return self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir()))
