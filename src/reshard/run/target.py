"""The target folder: refused when it holds anything, locked while it is filled, its journal and at last its manifest.

``DST/.reshard/`` holds ``lock``, ``journal.jsonl`` (what is whole so far) and ``manifest.json`` (written last: with
it, the target is complete). For a target that is one file they lie in ``.reshard/<file name>/`` beside it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from reshard.errors import InputError, StorageError, UsageError
from reshard.planning.plan import FileResult, Plan
from reshard.run.manifest import MANIFEST, Manifest, joined, read_manifest
from reshard.run.place import Place
from reshard.run.source import is_inside
from reshard.run.storage import exchange, reported, sync_folder, write_whole

JOURNAL = "journal.jsonl"
_SHORT = 24  # hashes are longer
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, InputError)


@dataclass(frozen=True, slots=True)
class Begun:
    """The first line of a journal: the identity of the plan and what it stands for."""

    plan: str
    made_of: dict[str, str] = field(default_factory=dict)

    def changes_from(self, earlier: Begun) -> list[str]:
        """The parts that differ, with their values where these are short.

        >>> Begun("", {"dtype": "float16"}).changes_from(Begun("", {"dtype": ""}))
        ["dtype ('' then, 'float16' now)"]
        """
        changed = []
        for part, now in self.made_of.items():
            then = earlier.made_of.get(part, now)
            if then != now:
                short = max(len(then), len(now)) <= _SHORT
                changed.append(f"{part} ({then!r} then, {now!r} now)" if short else part)
        if "tensors taken" in changed and "strategies" in changed:  # other tensors have other layouts
            changed.remove("strategies")
        return changed


class Filling:
    """A target being filled: holds its lock; ``record`` what is whole; ``publish`` at the end; ``close`` in any case.

    ``done`` are the files that are whole. Where nothing was, ``close`` leaves nothing behind.
    """

    def __init__(self, place: Place, plan: Plan, *, resume: bool) -> None:
        self._place = place
        self._begun = Begun(plan.identity, plan.made_of)
        self._made_folders = _absent_parents(place, plan)
        self._made_meta = not place.meta.exists()
        with reported(place.meta):
            place.meta.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(place.meta / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.done: dict[str, FileResult] = {}
        if not _locked(self._lock, place.meta / "lock"):
            os.close(self._lock)
            raise UsageError(
                "another conversion is writing here", str(place.path), "wait for it to end, or choose another target"
            )
        try:
            if resume:
                self.done = self._whole_files()
            self._journal = self._open_journal(fresh=not (place.meta / JOURNAL).exists() or not resume)
        except BaseException:
            os.close(self._lock)
            if self._made_meta:
                shutil.rmtree(place.meta, ignore_errors=True)
            raise

    def _whole_files(self) -> dict[str, FileResult]:
        """Files that earlier runs finished and that are still as long. Raises UsageError if their plan was another."""
        noted: list[FileResult] = []
        if (self._place.meta / MANIFEST).exists():
            manifest = read_manifest(self._place)
            self._check_begun(Begun(manifest.plan, manifest.made_of))
            noted += [FileResult(f.path, f.nbytes, f.runs) for f in manifest.files]
        path = self._place.meta / JOURNAL
        if path.exists():
            with reported(path):
                first, *lines = path.read_bytes().split(b"\n")
            self._check_begun(_begun(first))
            noted += [r for r in map(_result, lines) if r is not None]
        elif not noted and self._place.occupied_by_others():
            self._check_begun(Begun(""))
        return {r.path: r for r in noted if _length(self._place.folder / r.path) == r.nbytes}

    def _check_begun(self, earlier: Begun) -> None:
        if earlier.plan != self._begun.plan:
            changed = self._begun.changes_from(earlier)
            raise UsageError(
                "the target was begun from other sources, strategies or options"
                + (f"; what differs: {', '.join(changed)}" if changed else ""),
                str(self._place.path),
                "give the same command again to resume it, or --overwrite to start anew",
            )

    def _open_journal(self, *, fresh: bool) -> int:
        path = self._place.meta / JOURNAL
        with reported(path):
            if fresh:
                write_whole(path, msgspec.json.encode(self._begun) + b"\n")
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
            earlier = read_manifest(self._place)
            if earlier.plan == manifest.plan:
                manifest = joined(manifest, earlier)
        if fsync:
            self._sync_folders()
        write_whole(self._place.meta / MANIFEST, manifest.to_json(), fsync=fsync)
        if manifest.complete:
            with reported(self._place.meta):
                (self._place.meta / JOURNAL).unlink()
        return manifest

    def _sync_folders(self) -> None:
        """Files are durable in their folders; so must the folders be in theirs."""
        for folder in {self._place.folder, *(made.parent for made in self._made_folders if made.exists())}:
            with reported(folder):
                sync_folder(str(folder))

    def close(self) -> None:
        os.close(self._journal)
        if not self.done and self._made_meta:
            self._leave_nothing()
        os.close(self._lock)

    def _leave_nothing(self) -> None:
        """Remove what this run made, unless a file got its name that could not be noted any more."""
        _remove_empty(self._made_folders)
        if not self._place.occupied_by_others():
            shutil.rmtree(self._place.meta, ignore_errors=True)
            _remove_empty(self._made_folders)


def _locked(lock: int, path: Path) -> bool:
    """Take the lock, unless another holds it, or removed the file between our opening and our locking it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # one that is not empty, or was never made, stays as it is
            folder.rmdir()


def _begun(line: bytes) -> Begun:
    """The first line of a journal; of no plan where it cannot be read."""
    try:
        return msgspec.json.decode(line, type=Begun)
    except _UNREADABLE:
        return Begun("")


def _result(line: bytes) -> FileResult | None:
    """A line of the journal; None for one that a crash cut short: its file is made again."""
    try:
        return msgspec.json.decode(line, type=FileResult)
    except _UNREADABLE:
        return None


def _length(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else -1
    except OSError:  # as a name that is too long
        return -1


def _absent_parents(place: Place, plan: Plan) -> list[Path]:
    """Folders that this run will make, innermost first."""
    folders = {(place.folder / f.path).parent for f in plan.files} | {place.meta.parent}
    absent = {up for folder in folders for up in (folder, *folder.parents) if not up.exists()}
    return sorted(absent, key=lambda folder: len(folder.parts), reverse=True)


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


def refuse_source(place: Place, sources: Iterable[str]) -> None:
    """Raises UsageError where writing the target would replace a source."""
    for source in sources:
        if is_inside(source, place.path):
            raise UsageError("the source lies inside the target", str(place.path), "choose another target")


def refuse_occupied(place: Place) -> None:
    if place.occupied():
        raise UsageError("the target is not empty", str(place.path), "choose another, or give --overwrite or --resume")


class Replacement:
    """``--overwrite``: the new target is built beside the old one and takes its place by rename when it is complete."""

    def __init__(self, place: Place) -> None:
        if place.path.is_file():
            raise UsageError("a file stands where a folder should go", str(place.path), "choose another target")
        self._old = place.path.resolve()  # a link to the target stays, what it leads to is replaced
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
