"""The manifest of a target: every file, every tensor's place in it, and an xxh3-128 of every byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import closing
from itertools import chain
from typing import Annotated, TypeVar

import msgspec
import xxhash
from msgspec import Meta, Struct

from reshard import __version__
from reshard.errors import CheckpointError, FormatError, InputError, RunError, located
from reshard.index import Extent, TensorSpec
from reshard.layout.box import Box
from reshard.planning.identity import hash_of_file
from reshard.planning.misfits import ShardMisfits
from reshard.planning.plan import FileResult, Plan, PlannedFile, Run, SmallFile, check_runs
from reshard.storage.storage import ReadFile, Storage, join
from reshard.target.target_paths import Place

MANIFEST = "manifest.json"
SCHEMA = 2
_BLOCK_NBYTES = 8 << 20
_NAMED = 3
_LOOKS = 5
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, FormatError)
_Natural = Annotated[int, Meta(ge=0)]


class ShardForm(Struct, frozen=True, omit_defaults=True):
    """What shards of a file have in common: ``shape`` elements from ``start`` of a tensor of ``full_shape``; all of it
    where neither is said.
    """

    dtype: str
    full_shape: tuple[int, ...]
    start: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None

    @property
    def box(self) -> Box:
        if self.start is None or self.shape is None:
            return Box.whole(self.full_shape)
        return Box(self.start, tuple(a + n for a, n in zip(self.start, self.shape, strict=True)))


class ToldCut(Struct, frozen=True):
    """What a file holds of some tensors: ``box`` of ``full_shape``. One object for all of a file that are cut alike,
    another in each file.
    """

    spec: TensorSpec
    full_shape: tuple[int, ...]
    box: Box


class ToldShard(Struct, frozen=True, gc=False):
    """What a file holds of a tensor, and where."""

    cut: ToldCut
    extents: tuple[Extent, ...]


class ManifestFile(Struct, frozen=True, omit_defaults=True):
    """What was noted of a file that is whole.

    Attributes:
        tensors: of each the number of its form and where it begins; or where each of its extents does, and its length.
            There may be very many small ones, for which the manifest shall not take more room than the file.
        texts, notes: what its header says besides its tensors; None where that was not noted.
        misfits: the values that did not fit when the file was made.
        shared_nbytes: what it then had in common with source files.
    """

    path: str
    rank: _Natural
    nbytes: _Natural
    runs: tuple[Run, ...]
    forms: tuple[ShardForm, ...] = ()
    tensors: dict[str, tuple[_Natural, ...]] = {}
    texts: dict[str, str] | None = None
    notes: dict[str, str] | None = None
    misfits: tuple[ShardMisfits, ...] = ()
    shared_nbytes: int = 0

    def shards(self) -> dict[str, ToldShard]:
        """By name. Raises InputError where it is damaged."""
        try:
            cuts = [ToldCut(TensorSpec(form.dtype, form.box.shape), form.full_shape, form.box) for form in self.forms]
            sizes = [cut.spec.nbytes for cut in cuts]
            return {
                name: ToldShard(cuts[number], self._extents(sizes[number], places))
                for name, (number, *places) in self.tensors.items()
            }
        except (IndexError, ValueError, FormatError) as error:
            raise InputError(f"the manifest is damaged: of {self.path}, {error}") from None

    def _extents(self, nbytes: int, places: Sequence[int]) -> tuple[Extent, ...]:
        if len(places) == 1 and places[0] + nbytes <= self.nbytes:
            return (Extent(places[0], nbytes),)
        pairs = zip(places[::2], places[1::2], strict=True) if len(places) != 1 else ((places[0], nbytes),)
        extents = tuple([Extent(*pair) for pair in pairs])
        held = sum([extent.nbytes for extent in extents])
        if held != nbytes or any(extent.end > self.nbytes for extent in extents):
            raise ValueError(f"{nbytes} in {held} bytes, at {places} of {self.nbytes}")
        return extents


class _KnownOfFile(Struct, frozen=True):
    """The little of it that is asked of thousands of files."""

    path: str
    rank: _Natural
    nbytes: _Natural
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


class Published(Struct, frozen=True):
    """A manifest as it lies on disk, its files not yet looked into."""

    plan: str
    world: int
    complete: bool
    files: tuple[msgspec.Raw, ...]
    made_of: dict[str, str] = {}
    stages: int = 1
    reshard: str = __version__
    schema: int = SCHEMA


class Whole(Struct, frozen=True):
    """A file that is whole, and all that was noted of it."""

    path: str
    rank: int
    nbytes: int
    raw: msgspec.Raw
    misfits: tuple[ShardMisfits, ...] = ()


class Noting:
    """Says what is to be known of files of a plan that are whole."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._last: tuple[int, dict[tuple[str, int], int], bytes] = (-1, {}, b"")

    def note(self, file: PlannedFile, result: FileResult) -> bytes:
        """A ManifestFile, encoded."""
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
        return msgspec.json.encode(all_else)[:-1] + b',"tensors":' + tensors + b"}"

    def _places(self, form: int) -> tuple[dict[tuple[str, int], int], bytes]:
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
            encoded = msgspec.json.encode(tensors)
            self._last = form, numbers, encoded
        return numbers, encoded


def small_file(small: SmallFile) -> Whole:
    """What is to be known of a small file that closes a target."""
    nbytes, xxh3 = len(small.content), xxhash.xxh3_128_hexdigest(small.content)
    return whole(msgspec.json.encode(ManifestFile(small.path, 0, nbytes, (Run(0, nbytes, xxh3),))))


def encode_manifest(plan: Plan, files: Iterable[Whole], *, complete: bool) -> bytes:
    """The manifest as it is written, from files as they were noted: a target of thousands need not be taken apart."""
    raw = tuple(file.raw for file in files)
    return msgspec.json.encode(Published(plan.identity, plan.world, complete, raw, plan.made_of, plan.stages))


def decode_published(content: bytes, where: str) -> Published:
    """Raises InputError for what is no manifest of this schema."""
    try:
        found = msgspec.json.decode(content, type=Published)
    except _UNREADABLE as error:
        raise InputError(f"not a manifest: {error}", where) from None
    if found.schema != SCHEMA:
        raise InputError(f"manifest of schema {found.schema}, this release reads {SCHEMA}", where)
    return found


def whole(raw: bytes | msgspec.Raw) -> Whole:
    """What was noted of a file, its tensors not looked into. Raises InputError where it is damaged."""
    file = _checked(raw, _KnownOfFile)
    return Whole(file.path, file.rank, file.nbytes, msgspec.Raw(raw), file.misfits)


def _checked(raw: bytes | msgspec.Raw, kind: type[_Noted]) -> _Noted:
    try:
        file = msgspec.json.decode(raw, type=kind)
    except _UNREADABLE as error:
        raise InputError(f"not a manifest: {error}") from None
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
        files = tuple(_checked(raw, ManifestFile) for raw in found.files)
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
