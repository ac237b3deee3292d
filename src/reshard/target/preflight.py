"""Whether a target may go where it should, asked before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from reshard.errors import InputError, StorageError, UsageError, counted, reported
from reshard.planning.plan import Plan
from reshard.storage.machine import is_mount_point
from reshard.storage.storage import join
from reshard.storage.storages import is_inside
from reshard.target.manifest import MANIFEST, decode_published, read_whole, whole_files
from reshard.target.target_paths import Place


def free_nbytes(place: Place) -> int | None:
    """Bytes free where the target goes; None where nothing tells."""
    if not place.local:
        return None
    folder = _existing(Path(place.folder))
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
    if free is None:
        return
    if free < nbytes:
        raise StorageError(
            f"the target needs {nbytes:,} bytes, {free:,} are free",
            place.path,
            "free some space, or choose another disk",
        )
    folder = _existing(Path(place.folder))
    if not folder.is_dir():
        raise StorageError("a file stands where a folder should be", str(folder), "choose another target")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError("not allowed to write here", str(folder), "check owner and mode of the folder")


def refuse_replacing(place: Place, plan: Plan, besides: Iterable[str]) -> None:
    """Raises UsageError for a target whose place nothing new can take, or where a source, or what is read besides,
    would be lost with it.
    """
    _refuse_file(place)
    if place.local and is_mount_point(place.path):
        raise UsageError(
            "a file system is mounted here, which cannot be replaced",
            place.path,
            "choose a target in it; or remove what it holds, and leave --overwrite out",
        )
    for source in plan.sources:
        if is_inside(source.path, place.path):
            raise UsageError("the source lies inside the target", place.path, "choose another target")
    for path in besides:
        if is_inside(path, place.path):
            said = f"{path} lies inside the target, which is to be replaced"
            raise UsageError(said, place.path, "move it away first")
    _refuse_losing(place, plan)


def _refuse_losing(place: Place, plan: Plan) -> None:
    """Raises UsageError where some ranks would take the place of others that the same conversion made."""
    if plan.part != "ranks":
        return
    path = join(place.meta, MANIFEST)
    content = read_whole(place.storage, path)
    if content is None:
        return
    others: set[str] = set()
    with suppress(InputError):  # what is damaged may be replaced
        manifest = decode_published(content, path)
        if manifest.plan == plan.identity:
            made = {*(file.path for file in plan.files), *(small.path for small in plan.closing)}
            others = {file.path for file in whole_files(manifest)} - made
    if others:
        raise UsageError(
            f"--overwrite would lose {counted(len(others), 'file')} of other ranks, which this conversion made",
            place.path,
            "leave --overwrite out: what lacks is made; what is to be made again, remove first",
        )


def refuse_within(place: Place, sources: Iterable[str]) -> None:
    """Raises UsageError where the target would lie in what is read: who reads that again would find both."""
    for source in sources:
        if is_inside(place.path, source) and not is_inside(source, place.path):
            raise UsageError(f"the target lies inside the source {source}", place.path, "choose one beside it")


def _refuse_file(place: Place) -> None:
    there = place.storage.entry(place.path)
    if there is not None and not (place.single or there.folder):
        raise UsageError("a file stands where a folder should go", place.path, "choose another target")


def refuse_occupied(place: Place) -> None:
    _refuse_file(place)
    if place.occupied():
        raise UsageError("the target is not empty", place.path, "choose another, or give --overwrite or --resume")
