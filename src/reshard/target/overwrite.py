"""``--overwrite``: a target built beside the old one, whose place it takes when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from reshard.errors import StorageError, UsageError, reported
from reshard.storage.disk import exchange, keep_access, sync_folder
from reshard.target.locks import Locks
from reshard.target.target_paths import Place

_NEW, _OLD = "new", "old"


def beside(folder: Path, what: str) -> Path:
    """A hidden place on the disk where a folder is, links followed."""
    real = folder.resolve()
    return real.parent / f".{real.name}.reshard-{what}"


def new_beside(folder: Path, what: str) -> Path:
    """As ``beside``, where nothing is yet; ``forget`` knows it by the same word."""
    return beside(folder, f"{what}-{os.urandom(4).hex()}")


def left_beside(folder: Path, *whats: str) -> list[Path]:
    """What runs made beside a folder, and did not remove yet; nothing where nobody may look."""
    first = beside(folder, "")
    begins = tuple(f"{first.name}{what}-" for what in whats)
    try:
        return sorted(path for path in first.parent.iterdir() if path.name.startswith(begins))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def forget(folder: Path, what: str, kept: Path | None = None) -> None:
    """Remove what earlier runs left beside a folder, but for one."""
    _remove(old for old in left_beside(folder, what) if old != kept)


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def forget_replacements(folder: Path) -> None:
    """Remove what runs that were killed left of ``Replacement``; for one who has locked the target."""
    _remove(left_of_replacements(folder))


def left_of_replacements(folder: Path) -> list[Path]:
    """What ``forget_replacements`` would remove."""
    return left_beside(folder, _NEW, _OLD)


class Replacement:
    """The new target, and the lock of the old one: who fills that just now must not lose it.

    ``swap`` or ``abandon`` it, then ``close``. What an earlier one left when it was killed is removed first.
    """

    def __init__(self, place: Place) -> None:
        if not place.local:
            raise UsageError("object storage has no rename", place.path, "remove it first, or choose another target")
        self._old = Path(place.path).resolve()  # a link to the target stays, what it leads to is replaced
        with suppress(FileNotFoundError):  # the current folder may be gone itself
            if Path.cwd().is_relative_to(self._old):
                raise UsageError(
                    "the current folder lies in the target, which is to be replaced", place.path, "leave it: cd .."
                )
        self._meta = Path(Place.of(self._old, single=False).meta)
        self._made_meta = not self._meta.exists()
        self._locks = Locks(str(self._meta / "lock"))
        if not self._locks.take_all():
            self._locks.close()
            raise UsageError(
                "another conversion is writing here", place.path, "wait for it to end, or choose another target"
            )
        if self._locks.real:
            forget_replacements(self._old)
        self._new = new_beside(self._old, _NEW)
        with reported(self._new):
            self._new.mkdir(0o700)
            keep_access(str(self._new), str(self._old))
        self.place = Place.of(self._new, single=False)

    def swap(self) -> None:
        """The old one is removed once the new one has its name; where the system can, names change in one step."""
        with reported(self._old):
            aside = new_beside(self._old, _OLD)
            if exchange(str(self._new), str(self._old)):
                os.rename(self._new, aside)
            else:
                os.rename(self._old, aside)
                try:
                    os.rename(self._new, self._old)
                except OSError:
                    os.rename(aside, self._old)
                    raise
            self._made_meta = False  # what has this name now is the new one's
            sync_folder(str(self._old.parent))
        try:
            shutil.rmtree(aside)
        except FileNotFoundError:
            return  # the next run has begun to remove it, too
        except OSError as error:
            raise StorageError(
                f"the new target is in its place; the old one could not be removed: {error.strerror}",
                str(aside),
                "remove it by hand",
            ) from error

    def abandon(self) -> None:
        """Leave the old one as it was."""
        shutil.rmtree(self._new, ignore_errors=True)
        if self._made_meta and self._locks.alone():
            with suppress(OSError):
                (self._meta / "lock").unlink()
                self._meta.rmdir()

    def close(self) -> None:
        self._locks.close()
