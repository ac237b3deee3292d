"""A target being filled, by one process or by several on many machines; its notes, and at last its manifest.

``DST/.reshard/`` holds ``begun.json`` (what is made, and of what), ``done/k.json`` (file k of the target is whole),
``lock`` and ``manifest.json`` (written last: with it, the target is complete). For a target that is one file they
lie in ``.reshard/<file name>/`` beside it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from itertools import compress
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from reshard.digits import number_in
from reshard.errors import InputError, UsageError, reported
from reshard.planning.identity import NOTES
from reshard.planning.misfits import ShardMisfits
from reshard.planning.plan import FileResult, Plan
from reshard.storage.disk import sync_folder
from reshard.storage.storage import join
from reshard.target.locks import Locks
from reshard.target.manifest import (
    MANIFEST,
    Noting,
    Published,
    Whole,
    decode_published,
    encode_manifest,
    read_whole,
    small_file,
    whole_file,
    whole_files,
)
from reshard.target.overwrite import forget_replacements
from reshard.target.target_paths import Place

T = TypeVar("T")
U = TypeVar("U")

BEGUN = "begun.json"
DONE = "done"
LOCK = "lock"
_SHORT = 24  # hashes are longer


def is_being_filled(place: Place) -> bool:
    """Whether a conversion into it has begun, and has not ended."""
    return place.storage.entry(join(place.meta, BEGUN)) is not None


class Begun(Struct, frozen=True):
    """The identity of the plan that a target is filled by, and what it stands for."""

    plan: str
    made_of: dict[str, str] = {}

    def changes_from(self, earlier: Begun) -> list[str]:
        """The parts that differ, with their values where these are short.

        >>> Begun("", {"dtype": "float16"}).changes_from(Begun("", {"dtype": ""}))
        ["dtype ('' then, 'float16' now)"]
        """
        changed = []
        for part in dict.fromkeys((*self.made_of, *earlier.made_of)):
            then, now = earlier.made_of.get(part, ""), self.made_of.get(part, "")
            if then != now:
                short = max(len(then), len(now)) <= _SHORT
                changed.append(f"{part} ({then!r} then, {now!r} now)" if short else part)
        return changed


class Filling:
    """A target being filled: ``record`` what is whole; ``publish`` at the end; ``close`` in any case.

    ``done`` are those of the plan's files that were whole already. Where nothing was, ``close`` leaves nothing behind.
    ``misfits`` are, once published, those of all files that are whole, whoever made them.

    Args:
        join: go on with what others of the same identity began or are making just now. Raises UsageError for another
            identity. Without it, notes of earlier runs count for nothing; in object storage, where nobody knows
            whether they still run, for one file alone, and if it shall ``overwrite``.
    """

    def __init__(self, place: Place, plan: Plan, *, join: bool, overwrite: bool = False) -> None:
        self._place = place
        self._storage = place.storage
        self._plan = plan
        self._noting = Noting(plan)
        self._begun = Begun(plan.identity, plan.made_of)
        self._numbers = {file.path: number for number, file in enumerate(plan.files)}
        self._closing = frozenset(small.path for small in plan.closing)
        self._recorded = False
        self._made_folders = _absent_parents(place, plan) if place.local else []
        made_meta = Path(place.meta) in self._made_folders
        self._locks = Locks(self._path(LOCK)) if place.local else None
        self.done: frozenset[str] = frozenset()
        self.misfits: tuple[ShardMisfits, ...] = ()
        try:
            self._take_files(join=join)
            if self._locks and self._locks.real and not place.single:
                forget_replacements(Path(place.folder))
            self._begin(anew=not join and (place.local or (overwrite and place.single)))
            if join:
                self.done = frozenset(self._whole_files())
        except BaseException:
            if self._locks:
                if made_meta and self._locks.alone():
                    self._remove_meta()
                self._locks.close()
            raise

    def _path(self, *names: str) -> str:
        return join(self._place.meta, *names)

    def _take_files(self, *, join: bool) -> None:
        """Those of the plan; all of the target when it is begun anew."""
        numbers = [f.number for f in self._plan.files] if join else range(self._plan.total)
        held = self._locks.take(numbers) if self._locks else None
        if held is not None:
            what = next((f.path for f in self._plan.files if f.number == held), "other files")
            raise UsageError(
                f"another conversion is writing here: {what}",
                self._place.path,
                "wait for it to end, or choose another target",
            )

    def _begin(self, *, anew: bool) -> None:
        content = msgspec.json.encode(self._begun)
        if anew:  # whoever began before is gone, where there are locks: we hold them all
            self._forget_all()
            self._storage.write_whole(self._path(BEGUN), content, fsync=True)
            return
        earlier = self._earlier()
        if earlier is None and not self._storage.create_whole(self._path(BEGUN), content, fsync=True):
            earlier = _decoded(read_whole(self._storage, self._path(BEGUN)) or b"")
        if earlier is not None and earlier.plan != self._begun.plan:
            self._refuse(earlier)

    def _earlier(self) -> Begun | None:
        """What was begun here, or is complete. Raises UsageError where others put their files."""
        occupied = (
            self._place.occupied_by_others()
        )  # asked first: one who begins just now has noted it before his files
        content = read_whole(self._storage, self._path(BEGUN))
        if content is not None:
            return _decoded(content)
        manifest = self._manifest()
        if manifest is not None:
            return Begun(manifest.plan, manifest.made_of)
        if occupied:
            raise UsageError(
                "the target is not empty, and this conversion did not begin it",
                self._place.path,
                "choose another, or give --overwrite",
            )
        return None

    def _refuse(self, earlier: Begun) -> None:
        then, now = (begun.made_of.get(NOTES, "1") for begun in (earlier, self._begun))
        if then != now:
            raise UsageError(
                f"the target was begun by another release: its notes are of schema {then}, ours of {now}",
                self._place.path,
                "let the release that began it finish it, or give --overwrite to start anew",
            )
        changed = self._begun.changes_from(earlier)
        raise UsageError(
            "the target was begun from other sources, strategies or options"
            + (f"; what differs: {', '.join(changed)}" if changed else ""),
            self._place.path,
            "give the same command again to resume it, or --overwrite to start anew"
            + ("; copies of the sources must have their times (cp -p, rsync -a)" if "sources" in changed else ""),
        )

    def _manifest(self) -> Published | None:
        content = read_whole(self._storage, self._path(MANIFEST))
        return None if content is None else decode_published(content, self._path(MANIFEST))

    def _records(self) -> list[str]:
        """The names of the records that are there."""
        names = [entry.name for entry in self._storage.entries(self._path(DONE))]
        numbers = {name: number for name in names if (number := number_in(name.removesuffix(".json"))) is not None}
        return sorted(numbers, key=numbers.__getitem__)

    def _files(self, records: Iterable[str]) -> list[Whole]:
        """Files that are whole, in order of their ranks, as a manifest of this plan and these records tell.

        The manifest of one file that is being replaced tells of the old one, which stays till then.
        """
        replaced = self._place.single and is_being_filled(self._place)
        manifest = None if replaced else self._manifest()
        told = whole_files(manifest) if manifest and manifest.plan == self._begun.plan else []
        files = {file.path: file for file in (*told, *self._recorded_in(records))}
        return sorted(files.values(), key=lambda file: file.rank)

    def _recorded_in(self, records: Iterable[str]) -> Iterator[Whole]:
        """One that a power cut spoilt counts for none."""
        paths = [self._path(DONE, name) for name in records]
        for content in self._each(lambda path: read_whole(self._storage, path), paths):
            with suppress(InputError):
                yield whole_file(content or b"")

    def _whole_files(self) -> Iterator[str]:
        """Files of the plan that are noted and still there."""
        for file in self._files(self._records()):
            if file.path in self._numbers and self._is_there(file):
                yield file.path

    def _is_there(self, file: Whole) -> bool:
        """Whether a file is still as long as was noted."""
        there = self._storage.entry(join(self._place.folder, file.path))
        return there is not None and not there.folder and there.nbytes == file.nbytes

    def _still_whole(self, files: Sequence[Whole]) -> list[Whole]:
        """Those that are still there: of other runs' files that is not known."""
        there = self._each(lambda file: file.path in self._numbers or self._is_there(file), files)
        return list(compress(files, there))

    def record(self, results: Iterable[FileResult]) -> None:
        """Note files that are whole and named. A note lost in a power cut costs making its file again, no more."""
        for _ in self._each(self._note, results):
            self._recorded = True

    def _note(self, result: FileResult) -> None:
        file = self._plan.files[self._numbers[result.path]]
        content = self._noting.note(file, result)
        self._storage.write_whole(self._path(DONE, f"{file.number}.json"), content, fsync=False)

    def _each(self, do: Callable[[T], U], of: Iterable[T]) -> Iterator[U]:
        """What is done with each, in order; far away with several at once, for each is a round trip."""
        if not self._storage.remote:
            yield from map(do, of)
            return
        with ThreadPoolExecutor(self._storage.at_once) as pool:
            yield from pool.map(do, of)

    def publish(self, *, partial: bool, fsync: bool) -> int:
        """Write the manifest if all files of the target are whole, whoever made them. Gives the number still missing.

        Args:
            partial: also write one when files are missing, of those that are there. Object storage cannot keep two
                such writers apart: there it is the complete one or none.
        """
        with self._locks.publishing() if self._locks else nullcontext():
            records = self._records()
            noted = [file for file in self._files(records) if file.path not in self._closing]
            files = self._still_whole(noted)
            missing = self._plan.total - len(files)
            self.misfits = _misfits(files)
            if missing and not (partial and self._locks):
                ended = self._manifest()  # on object storage by another, that removed the records while we read
                if files != noted or not (ended and ended.complete and ended.plan == self._begun.plan):
                    return missing
                self.misfits = _misfits(whole_files(ended))
                return 0
            if not missing:
                files = sorted((*files, *self._closed(fsync=fsync)), key=lambda file: file.rank)
                self._set_modes(file.path for file in files)
            if fsync:
                self._sync_folders()
            manifest = encode_manifest(self._plan, files, complete=not missing)
            self._storage.write_whole(self._path(MANIFEST), manifest, fsync=fsync)
            self._recorded = True
            if missing:
                self._forget(records)  # not those that others wrote meanwhile, or are writing
            else:
                self._forget_all()
                self._storage.remove(self._path(BEGUN))
            return missing

    def _closed(self, *, fsync: bool) -> Iterator[Whole]:
        """Write the small files that tell of all others, which are whole by now."""
        for small in self._plan.closing:
            self._storage.write_whole(join(self._place.folder, small.path), small.content, fsync=fsync)
            yield small_file(small)

    def _set_modes(self, paths: Iterable[str]) -> None:
        """As the program gives them that writes such targets. A file of another user's share keeps its mode."""
        if not self._plan.modes or not self._place.local:
            return
        weights, small, folders = self._plan.modes
        for path in paths:
            place = Path(self._place.folder, path)
            with reported(place), suppress(PermissionError):
                place.chmod(small if path in self._closing else weights)
                place.parent.chmod(folders)

    def _forget(self, records: Iterable[str]) -> None:
        for _ in self._each(lambda name: self._storage.remove(self._path(DONE, name)), records):
            pass

    def _forget_all(self) -> None:
        """With what a note that was not ended left."""
        self._forget(entry.name for entry in self._storage.entries(self._path(DONE)))

    def _sync_folders(self) -> None:
        """Files are durable in their folders; so must the folders be in theirs, those too that an earlier run made."""
        if self._place.local:
            top = Path(self._place.folder).absolute()
            made = {folder.parent for folder in self._made_folders if folder.exists()}
            above = {top.parent} if os.access(top.parent, os.R_OK) else set()
            for folder in {top, *above, *made}:
                with reported(folder):
                    sync_folder(str(folder))

    def close(self) -> None:
        if not self._locks:
            return
        if not self._recorded and self._locks.alone():
            _remove_empty(self._made_folders)
            if not self._place.occupied_by_others() and not self._files(self._records()):
                self._remove_meta()
        self._locks.close()

    def _remove_meta(self) -> None:
        shutil.rmtree(self._place.meta, ignore_errors=True)
        _remove_empty(self._made_folders)


def _misfits(files: Iterable[Whole]) -> tuple[ShardMisfits, ...]:
    """Of all files, replicas once."""
    return tuple(dict.fromkeys(found for file in files for found in file.misfits))


def _decoded(content: bytes) -> Begun:
    """Of no plan where it cannot be read."""
    try:
        return msgspec.json.decode(content, type=Begun)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Begun("")


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # one that is not empty, or was never made, stays as it is
            folder.rmdir()


def _absent_parents(place: Place, plan: Plan) -> list[Path]:
    """Folders that this run will make, innermost first."""
    paths = (*(file.path for file in plan.files), *(small.path for small in plan.closing))
    folders = {Path(place.folder, path).parent for path in paths} | {Path(place.meta)}
    absent = {up for folder in folders for up in (folder, *folder.parents) if not up.exists()}
    return sorted(absent, key=lambda folder: len(folder.parts), reverse=True)
