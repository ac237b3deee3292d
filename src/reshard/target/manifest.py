"""The manifest of a target: every file, every tensor's place in it, and an xxh3-128 of every byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import closing
from itertools import chain
from typing import TypeVar

import msgspec
import xxhash
from msgspec import Struct
from msgspec.structs import replace

from reshard import __version__
from reshard.errors import CheckpointError, FormatError, InputError, RunError, located
from reshard.planning.identity import hash_of_file
from reshard.planning.misfits import ShardMisfits
from reshard.planning.plan import FileResult, Plan, PlannedFile, Run, SmallFile, check_runs
from reshard.storage.storage import ReadFile, Storage, join
from reshard.target.manifest_file import ManifestFile, Natural, ShardForm, TensorPlaces
from reshard.target.target_paths import Place

MANIFEST = "manifest.json"
SCHEMA = 3
_BLOCK_NBYTES = 8 << 20
_NAMED = 3
_LOOKS = 5
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, FormatError)
_NONE = msgspec.Raw(b"{}")
T = TypeVar("T")


class _KnownOfFile(Struct, frozen=True):
    """The little of it that is asked of thousands of files."""

    path: str
    rank: Natural
    nbytes: Natural
    runs: tuple[Run, ...]
    misfits: tuple[ShardMisfits, ...] = ()


_Noted = TypeVar("_Noted", ManifestFile, _KnownOfFile)


class Manifest(Struct, frozen=True):
    """``complete`` is False where only some ranks were asked for; ``made_of`` says what ``plan`` stands for.

    ``stages``: pipeline stages of the ``world`` ranks. ``xxh3``: of the manifest itself.
    """

    plan: str
    world: int
    complete: bool
    files: tuple[ManifestFile, ...]
    made_of: dict[str, str]
    stages: int
    reshard: str
    xxh3: str


class Table(Struct, frozen=True):
    """Where tensors lie in files, counted as the manifest does, that hold all at the same places."""

    files: tuple[Natural, ...]
    tensors: msgspec.Raw


class Published(Struct, frozen=True):
    """A manifest as it lies on disk, its files and tables not yet looked into."""

    plan: str
    world: int
    complete: bool
    files: tuple[msgspec.Raw, ...]
    tables: tuple[Table, ...] = ()
    made_of: dict[str, str] = {}
    stages: int = 1
    reshard: str = __version__
    schema: int = SCHEMA


class FileRecord(Struct, frozen=True):
    """What is noted of a file that is whole, while others are not: what the manifest will say."""

    file: msgspec.Raw
    tensors: msgspec.Raw = _NONE


class Whole(Struct, frozen=True):
    """A file that is whole, and all that was noted of it."""

    path: str
    rank: int
    nbytes: int
    record: FileRecord
    misfits: tuple[ShardMisfits, ...] = ()


class Noting:
    """Says what is to be known of files of a plan that are whole."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._last: tuple[int, dict[tuple[str, int], int], msgspec.Raw] = (-1, {}, _NONE)

    def note(self, file: PlannedFile, result: FileResult) -> bytes:
        """A record, encoded."""
        numbers, tensors = self._places(file.form)
        forms = []
        for dtype, number in numbers:
            layout = self._plan.layouts[number]
            cut = layout.shard_shape != layout.shape
            where = (layout.box(file.local_rank).start, layout.shard_shape) if cut else ()
            forms.append(ShardForm(dtype, layout.shape, *where))
        form = self._plan.forms[file.form]
        all_else = ManifestFile(
            file.path,
            file.rank,
            result.nbytes,
            result.runs,
            tuple(forms),
            texts=form.texts,
            notes=form.notes,
            misfits=result.misfits,
            shared_nbytes=result.shared_nbytes,
        )
        return msgspec.json.encode(FileRecord(msgspec.Raw(msgspec.json.encode(all_else)), tensors))

    def _places(self, form: int) -> tuple[dict[tuple[str, int], int], msgspec.Raw]:
        """The number of each kind of shard, by dtype and layout; and where each tensor lies, encoded: the same in all
        files of a form, which become whole one after the other.
        """
        known, numbers, encoded = self._last
        if known != form:
            numbers, tensors = {}, {}
            for slot in self._plan.forms[form].slots:
                tensor = self._plan.tensors[slot.tensor]
                number = numbers.setdefault((tensor.spec.dtype, slot.layout), len(numbers))
                extents = slot.extents
                one = len(extents) == 1
                places = (extents[0].offset,) if one else chain(*((e.offset, e.nbytes) for e in extents))
                tensors[tensor.name] = (number, *places)
            encoded = msgspec.Raw(msgspec.json.encode(tensors))
            self._last = form, numbers, encoded
        return numbers, encoded


def small_file(small: SmallFile) -> Whole:
    """What is to be known of a small file that closes a target."""
    nbytes, xxh3 = len(small.content), xxhash.xxh3_128_hexdigest(small.content)
    file = msgspec.json.encode(ManifestFile(small.path, 0, nbytes, (Run(0, nbytes, xxh3),)))
    return _whole(FileRecord(msgspec.Raw(file)))


def encode_manifest(plan: Plan, files: Iterable[Whole], *, complete: bool) -> bytes:
    """The manifest as it is written, from files as they were noted: a target of thousands need not be taken apart."""
    raw: list[msgspec.Raw] = []
    numbers: dict[bytes, list[int]] = {}
    for number, file in enumerate(files):
        raw.append(file.record.file)
        if file.record.tensors != _NONE:
            numbers.setdefault(bytes(file.record.tensors), []).append(number)
    tables = tuple(Table(tuple(of), msgspec.Raw(tensors)) for tensors, of in numbers.items())
    made = Published(plan.identity, plan.world, complete, tuple(raw), tables, plan.made_of, plan.stages)
    return msgspec.json.encode(made)


def decode_published(content: bytes, where: str) -> Published:
    """Raises InputError for what is no manifest of this schema."""
    try:
        found = msgspec.json.decode(content, type=Published)
    except _UNREADABLE as error:
        raise InputError(f"not a manifest: {error}", where) from None
    if found.schema != SCHEMA:
        raise InputError(f"manifest of schema {found.schema}, this release reads {SCHEMA}", where)
    return found


def whole_files(of: Published) -> list[Whole]:
    """The files of a manifest. Raises InputError where it is damaged."""
    tensors = {number: table.tensors for table in of.tables for number in table.files}
    return [_whole(FileRecord(raw, tensors.get(number, _NONE))) for number, raw in enumerate(of.files)]


def whole_file(record: bytes) -> Whole:
    """What was noted of a file, its tensors not looked into. Raises InputError where it is damaged."""
    return _whole(_decoded(record, FileRecord))


def _whole(record: FileRecord) -> Whole:
    file = _checked(record.file, _KnownOfFile)
    return Whole(file.path, file.rank, file.nbytes, record, file.misfits)


def _decoded(raw: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except _UNREADABLE as error:
        raise InputError(f"not a manifest: {error}") from None


def _checked(raw: msgspec.Raw, kind: type[_Noted]) -> _Noted:
    file = _decoded(raw, kind)
    try:
        check_runs(FileResult(file.path, file.nbytes, file.runs))
    except RunError as error:
        raise InputError(f"the manifest is damaged: of {file.path}, {error.message}") from None
    if file.path.startswith("/") or ".." in file.path.split("/"):
        raise InputError(f"the manifest is damaged: {file.path!r} leaves the target")
    return file


def read_manifest(place: Place) -> Manifest:
    """Raises CheckpointError where there is none, InputError for one that we cannot read."""
    path = join(place.meta, MANIFEST)
    content = read_whole(place.storage, path)
    if content is None:
        raise CheckpointError(
            "no manifest: not made by reshard, or not finished",
            place.path,
            "compare with the source instead: reshard verify SRC DST",
        )
    found = decode_published(content, path)
    with located(path):
        files = tuple(_files(found))
    return Manifest(
        found.plan,
        found.world,
        found.complete,
        files,
        found.made_of,
        found.stages,
        found.reshard,
        hash_of_file(content),
    )


def _files(of: Published) -> list[ManifestFile]:
    """The files of a manifest, with their tensors. Raises InputError where it is damaged."""
    files = [_checked(raw, ManifestFile) for raw in of.files]
    told = Counter(number for table in of.tables for number in table.files)
    if odd := [number for number, times in told.items() if times > 1 or number >= len(files)]:
        raise InputError(f"the manifest is damaged: its tables tell of file {odd[0]} of {len(files)}, or twice")
    for table in of.tables:
        tensors = _decoded(table.tensors, TensorPlaces)
        for number in table.files:
            files[number] = replace(files[number], tensors=tensors)
    return files


def read_whole(storage: Storage, path: str) -> bytes | None:
    """The content of a small file; None where there is none. In a store others may replace or remove it meanwhile."""
    looks = _LOOKS if storage.remote else 1
    while True:
        looks -= 1
        try:
            file = storage.open(path)
        except CheckpointError:
            return None
        with closing(file):
            try:
                return file.read(0, file.nbytes)
            except CheckpointError:
                if not looks:
                    raise


def file_faults(place: Place, file: ManifestFile, pool: Executor, on_bytes: Callable[[int], None]) -> list[str]:
    """Read a file again, runs of it at once, and compare with its manifest; ``on_bytes`` hears of what was read."""
    path = join(place.folder, file.path)
    there = place.storage.entry(path)
    if there is None or there.folder:
        return [f"{file.path}: missing"]
    with closing(place.storage.open(path)) as source:
        if source.nbytes != file.nbytes:
            return [f"{file.path}: {source.nbytes} bytes, the manifest has {file.nbytes}"]
        digests = pool.map(lambda run: _digest(source, run, on_bytes), file.runs)
        return [f"{file.path}: bytes {run.offset} to {run.offset + run.nbytes} changed{_whose(file, run)}"
                for run, digest in zip(file.runs, digests, strict=True) if digest != run.xxh3]  # fmt: skip


def _whose(file: ManifestFile, run: Run) -> str:
    names = [
        name
        for name, shard in file.shards().items()
        if any(e.offset < run.offset + run.nbytes and run.offset < e.end for e in shard.extents)
    ]
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f" ({', '.join(names[:_NAMED])}{more})" if names else " (header)"


def _digest(source: ReadFile, run: Run, on_bytes: Callable[[int], None]) -> str:
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(_BLOCK_NBYTES, run.nbytes)))
    for at in range(0, run.nbytes, _BLOCK_NBYTES):
        part = buffer[: min(_BLOCK_NBYTES, run.nbytes - at)]
        source.read_into(run.offset + at, part)
        digest.update(part)
        on_bytes(len(part))
    return digest.hexdigest()
