"""Targets that several processes fill, or that keep what is there: made in a hidden folder inside, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msgspec.structs import replace

from reshard.errors import StorageError, UsageError, reported
from reshard.planning.catalog import Catalog
from reshard.storage.storages import storage_of
from reshard.target.locks import Locks
from reshard.target.preflight import refuse_within
from reshard.target.target_paths import META, Place

_HIDDEN = f"{META}-made-"
_LOCK = "lock"


def on_disk(target: str) -> Path:
    """A target that a user named. Raises UsageError for object storage, which cannot rename: it would become a folder
    of the URL's name here.
    """
    if storage_of(target).remote:
        raise UsageError(
            "this command or function writes to a disk", target, "reshard convert and unify write to object storage"
        )
    return Path(target)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A hidden folder in the folder ``target``, on its disk whatever it is, for this process alone and gone afterwards;
    the target goes, too, where it is made for it and nothing came to lie there.

    What killed runs left of theirs is removed first.
    """
    made = not target.exists()
    _forget_killed(target)
    folder = target / f"{_HIDDEN}{os.urandom(4).hex()}"
    locks = Locks(str(folder / _LOCK))
    try:
        yield folder / "files"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        locks.close()
        with suppress(OSError):
            if made:
                target.rmdir()


def is_staged(path: Path) -> bool:
    """Whether it is what ``staged`` gave to some process, or held it."""
    return path.name.startswith(_HIDDEN)


def _forget_killed(target: Path) -> None:
    """Remove the folders of processes that are gone: nobody has them locked."""
    for folder in target.glob(f"{_HIDDEN}*"):
        with suppress(StorageError):  # another user's: it is for him to remove
            locks = Locks(str(folder / _LOCK))
            if locks.alone():
                shutil.rmtree(folder, ignore_errors=True)
            locks.close()


@contextmanager
def placed(target: str | Path, sources: Iterable[str] = (), *, alone: bool = True) -> Iterator[Path]:
    """A folder to write to, whose files take their places below ``target`` when all is well. Other files there stay.

    Args:
        alone: no other process fills ``target`` at the same time. Where nothing else is there, our notes go with the
            files then, of which they tell.
    """
    target = on_disk(str(target))
    with staged(target) as folder:
        yield folder
        anew = alone and all(is_staged(path) for path in target.iterdir())
        place_files(folder, target, sources=sources)
        if anew:
            with reported(target):
                os.rename(folder / META, target / META)


def to_be_placed(source: Catalog, target: str) -> Catalog:
    """The source to plan with for the folder that ``placed`` gives, which may lie in it as the target itself may not.

    Raises UsageError where the target does.
    """
    refuse_within(Place.of(target, single=False), source.places)
    return replace(source, places=())


def place_files(
    made: Path,
    target: Path,
    renamed: Callable[[Path], Path] = lambda path: path,
    sources: Iterable[str] = (),
) -> None:
    """Rename every file of ``made`` to its place below ``target``; other files there stay. Our own notes are left out.

    Args:
        renamed: the place of a file, from its path below ``made``.
        sources: files that must not be replaced.
    """
    kept = {Path(s).resolve() for s in sources}
    files = sorted(p for p in made.rglob("*") if p.is_file() and META not in p.relative_to(made).parts)
    places = {path: target / renamed(path.relative_to(made)) for path in files}
    for place in places.values():
        if place.resolve() in kept:
            raise UsageError("the target would replace a source", str(place), "choose another target")
    remove(target / META)  # its manifest would be of other files
    for path, place in places.items():
        with reported(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)


def place_folders(made: Path, target: Path) -> None:
    """Rename every folder of ``made`` into ``target``; one of the same name that was there is removed."""
    for folder in sorted(p for p in made.iterdir() if p.is_dir() and p.name != META):
        place = target / folder.name
        aside = made / META / folder.name
        with reported(place):
            target.mkdir(parents=True, exist_ok=True)
            if place.exists():
                aside.parent.mkdir(exist_ok=True)
                os.rename(place, aside)
            os.rename(folder, place)


def remove(path: Path) -> None:
    """A file or folder of ours that may be there."""
    with reported(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
