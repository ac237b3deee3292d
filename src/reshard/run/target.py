"""The target folder: refused when it holds anything, locked while it is filled, its journal and at last its manifest.

``DST/.reshard/`` holds ``lock``, ``journal.jsonl`` (what is whole so far) and ``manifest.json`` (written last: with
it, the target is complete). For a target that is one file they lie in ``.reshard/<file name>/`` beside it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from reshard.errors import StorageError, UsageError
from reshard.plan.plan import FileResult, Plan
from reshard.run.manifest import MANIFEST, Manifest, joined, read_manifest
from reshard.run.source import is_inside
from reshard.run.storage import reported, write_whole

META = ".reshard"
JOURNAL = "journal.jsonl"


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

    def occupied(self) -> bool:
        with reported(self.path):
            if self.single:
                return self.path.exists()
            return self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir()))


class Filling:
    """A target being filled: holds its lock; ``record`` what is whole; ``publish`` at the end."""

    def __init__(self, place: Place, plan: Plan, *, resume: bool) -> None:
        self._place = place
        self._hash = plan.identity
        with reported(place.meta):
            place.meta.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(place.meta / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UsageError(
                "another conversion is writing here",
                str(place.path),
                "wait for it to end, or choose another target",
            ) from None
        try:
            self.done = self._read_journal() if resume else {}
            self._journal = self._open_journal(fresh=not self.done)
        except BaseException:
            os.close(self._lock)
            raise

    def _read_journal(self) -> dict[str, FileResult]:
        """Files that an earlier run of the same plan finished and that are still as long. Raises UsageError for
        another plan.
        """
        path = self._place.meta / JOURNAL
        if not path.exists():
            return {}
        with reported(path):
            lines = path.read_bytes().split(b"\n")
        if lines[0].decode("ascii", "replace") != self._hash:
            raise UsageError(
                "the target was begun from other sources, strategies or options",
                str(self._place.path),
                "give the same command again to resume it, or --overwrite to start anew",
            )
        done = {}
        for line in lines[1:]:
            try:
                result = msgspec.json.decode(line, type=FileResult)
            except msgspec.MsgspecError:
                continue  # a line cut short by a crash: its file is made again
            file = self._place.folder / result.path
            if file.is_file() and file.stat().st_size == result.nbytes:
                done[result.path] = result
        return done

    def _open_journal(self, *, fresh: bool) -> int:
        path = self._place.meta / JOURNAL
        with reported(path):
            if fresh:
                write_whole(path, self._hash.encode() + b"\n")
            journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            if not fresh:
                os.write(journal, b"\n")
            return journal

    def record(self, results: Iterable[FileResult], *, fsync: bool) -> None:
        """Note files that are whole and named."""
        with reported(self._place.meta / JOURNAL):
            for result in results:
                self.done[result.path] = result
                os.write(self._journal, msgspec.json.encode(result) + b"\n")
            if fsync:
                os.fsync(self._journal)

    def publish(self, manifest: Manifest, *, fsync: bool) -> Manifest:
        """Write the manifest, joined with that of an earlier run that made other ranks. A complete one ends the job."""
        if (self._place.meta / MANIFEST).exists():
            earlier = read_manifest(self._place.meta)
            if earlier.plan == manifest.plan:
                manifest = joined(manifest, earlier)
        write_whole(self._place.meta / MANIFEST, manifest.to_json(), fsync=fsync)
        if manifest.complete:
            with reported(self._place.meta):
                (self._place.meta / JOURNAL).unlink()
        return manifest

    def close(self) -> None:
        os.close(self._journal)
        with reported(self._place.meta):
            (self._place.meta / "lock").unlink(missing_ok=True)
        os.close(self._lock)


def free_nbytes(place: Place) -> int:
    """Bytes free where the target goes."""
    folder = _existing(place.folder)
    with reported(folder):
        status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def check_room(place: Place, nbytes: int) -> None:
    """Raises StorageError before anything is written when the disk cannot hold ``nbytes`` more or may not be
    written.
    """
    free = free_nbytes(place)
    if free < nbytes:
        raise StorageError(
            f"the target needs {nbytes:,} bytes, {free:,} are free",
            str(place.path),
            "free some space, or choose another disk",
        )
    folder = _existing(place.folder)
    if not folder.is_dir():
        raise StorageError("a file stands where a folder should be", str(folder), "choose another target")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError("not allowed to write here", str(folder), "check owner and mode of the folder")


def refuse_occupied(place: Place) -> None:
    if place.occupied():
        raise UsageError("the target is not empty", str(place.path), "choose another, or give --overwrite or --resume")


class Replacement:
    """``--overwrite``: the new target is built beside the old one and takes its place by rename when it is complete."""

    def __init__(self, place: Place, sources: Iterable[str]) -> None:
        self._old = place.path
        for source in sources:
            if is_inside(source, place.path):
                raise UsageError("the source lies inside the target", str(place.path), "choose another target")
        self._new = self._beside("new")
        self.place = Place.of(self._new, single=False)

    def _beside(self, what: str) -> Path:
        return self._old.parent / f".{self._old.name}.reshard-{what}-{os.getpid()}"

    def swap(self) -> None:
        with reported(self._old):
            aside = self._beside("old")
            os.rename(self._old, aside)
            try:
                os.rename(self._new, self._old)
            except OSError:
                os.rename(aside, self._old)
                raise
            shutil.rmtree(aside)

    def abandon(self) -> None:
        shutil.rmtree(self._new, ignore_errors=True)
