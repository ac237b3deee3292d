"""Targets that several processes fill, or that keep what is there: made in a hidden folder beside, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reshard.errors import UsageError, reported
from reshard.target.target_paths import META


@contextmanager
def staged(target: Path, who: str) -> Iterator[Path]:
    """A hidden folder beside ``target``, of this process alone and gone afterwards; its parent is made.

    Args:
        who: tells the folder from those of others that fill the same target; what a killed run left there is removed.
    """
    folder = target.absolute().parent / f".{target.name}.reshard-{who}"
    with reported(folder):
        remove(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def placed(target: str | Path, sources: Iterable[str] = (), *, alone: bool = True) -> Iterator[Path]:
    """The folder to write to: ``target`` where nothing is there yet, else one whose files take their places below
    ``target`` when all is well. Other files there stay.

    Args:
        alone: no other process fills ``target`` at the same time.
    """
    target = Path(target)
    if alone and (not target.exists() or (target.is_dir() and not any(target.iterdir()))):
        yield target
        return
    with staged(target, str(os.getpid())) as folder:
        yield folder
        place_files(folder, target, sources=sources)


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
