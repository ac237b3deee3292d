"""The plan: numbers, names and paths that say which bytes make which files. It prints, diffs, saves as JSON, moves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from reshard.errors import InputError, RunError, counted
from reshard.index import Checksum, Extent, TensorSpec
from reshard.layout.box import Box
from reshard.layout.tensor import Cell, Layout
from reshard.layout.view import in_view
from reshard.planning.alike import Alike, kinds_of
from reshard.planning.misfits import ShardMisfits
from reshard.planning.names import layer_pattern
from reshard.planning.steps import Assembly, Piece, Step

if TYPE_CHECKING:
    from reshard.drawing import Holders

SCHEMA = 3
LinkKind = Literal["", "reflink", "hardlink"]
TargetPart = Literal["", "ranks", "share"]


class SourceFile(Struct, frozen=True):
    """A file to read. Size and time of change tell at run time whether it is still the one that was planned."""

    path: str
    nbytes: int
    mtime_ns: int


class PlannedTensor(Struct, frozen=True, omit_defaults=True):
    """A tensor to write. ``spec`` is what the target gets, whole; ``step`` makes it."""

    name: str
    spec: TensorSpec
    step: Step
    other_name: str | None = field(default=None, name="source_name")

    @property
    def source_name(self) -> str:
        return self.name if self.other_name is None else self.other_name

    def in_view(self, piece: Piece) -> Sequence[Piece]:
        """A target piece in the view in which it is put together: one, unless the cut parts what the view joins."""
        shape, view = self.spec.shape, self.step.base.shape
        if shape == view:
            return (piece,)
        found, itemsize = in_view(piece.box, shape, view), self.spec.itemsize
        return [replace(piece, box=box, extents=piece.extents_of(part, itemsize)) for part, box in found]


class Slot(Struct, frozen=True):
    """Where a file holds its shard of a tensor; both numbers count in the plan."""

    tensor: int
    layout: int
    extents: tuple[Extent, ...]


class FileForm(Struct, frozen=True, omit_defaults=True):
    """What files of one kind consist of: header pieces and slots, which cover ``nbytes`` exactly once.

    ``texts`` and ``notes`` are what the header says besides its tensors.
    """

    nbytes: int
    header: tuple[tuple[int, bytes], ...]
    slots: tuple[Slot, ...]
    checksums: tuple[Checksum, ...] = ()
    texts: dict[str, str] = {}
    notes: dict[str, str] = {}


class PlannedFile(Struct, frozen=True):
    """A file to write, relative to the target folder.

    Attributes:
        number: counts the files of the whole target, planned or not.
        local_rank: picks its boxes from the layouts.
        group: files of one group hold much the same tensors, and are read for together.
    """

    number: int
    path: str
    rank: int
    local_rank: int
    form: int
    group: int


class SmallFile(Struct, frozen=True):
    """A file of known bytes, relative to the target folder."""

    path: str
    content: bytes


class LeftOut(Struct, frozen=True):
    """Names that do not reach the target, and why."""

    fate: Literal["dropped", "absent"]
    reason: str
    names: tuple[str, ...]


class Plan(Struct, frozen=True, dict=True):
    """What to write and from where.

    Attributes:
        tensors: those that the planned files need; one whose value varies by rank stands there once a source rank.
        files: those of the target ranks that were asked for.
        world: ranks of the whole target.
        total: files of the whole target that hold tensors.
        closing: small files that are written when all others are whole.
        named_by: files beside the target's folder that hold its name; written last.
        modes: on a disk, of weight files, of small files and of folders; () for what the system gives.
        identity: names the conversion; runs of one identity may fill one target together, whatever ranks each makes.
        made_of: what the identity stands for, part by part: values, or hashes of what is long.
        part: whether ``files`` are some ranks' or a share of the whole target, which others may be making too.
        shared_block_nbytes: of a file system where target files may share blocks with source files; 0 for no such.
    """

    sources: tuple[SourceFile, ...]
    layouts: tuple[Layout, ...]
    tensors: tuple[PlannedTensor, ...]
    forms: tuple[FileForm, ...]
    files: tuple[PlannedFile, ...]
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()
    world: int = 1
    total: int = 1
    identity: str = ""
    made_of: dict[str, str] = {}
    part: TargetPart = ""
    closing: tuple[SmallFile, ...] = ()
    named_by: tuple[str, ...] = ()
    shared_block_nbytes: int = 0
    modes: tuple[int, ...] = ()
    schema: int = SCHEMA

    def __repr__(self) -> str:
        files = f"{counted(len(self.files), 'file')} of {counted(self.world, 'rank')}"
        sources = counted(len(self.sources), "file")
        return f"<plan: {counted(len(self.tensors), 'tensor')}, {self.nbytes:,} bytes to {files} from {sources}>"

    def _repr_html_(self) -> str:
        from reshard.planning.show import Row, table  # for notebooks alone

        return table(repr(self).strip("<>"), (Row(*row) for row in self._rows()))

    def _rows(self) -> Iterator[tuple[str, str, Layout, Holders]]:
        """The target's tensors for a notebook; of one that stages cut differently, the first stage's cut."""
        files: dict[int, list[PlannedFile]] = {}
        for file in self.files:
            files.setdefault(file.form, []).append(file)
        places: dict[tuple[int, int], list[int]] = {}
        for number, form in enumerate(self.forms):
            for slot in form.slots:
                places.setdefault((slot.tensor, slot.layout), []).append(number)
        shown: set[int] = set()
        known: dict[tuple[int, tuple[int, ...]], Holders] = {}
        for (number, at), forms in places.items():
            if number not in shown:
                shown.add(number)
                key = (at, tuple(forms))
                if key not in known:
                    known[key] = self._holders(self.layouts[at], (f for form in forms for f in files.get(form, ())))
                tensor = self.tensors[number]
                yield layer_pattern(tensor.name), tensor.spec.dtype, self.layouts[at], known[key]

    @staticmethod
    def _holders(layout: Layout, files: Iterable[PlannedFile]) -> Holders:
        held: dict[Cell, list[int]] = {}
        for file in files:
            held.setdefault(layout.sharding.cells()[file.local_rank], []).append(file.rank)
        return tuple(tuple(held.get(cell, ())) for cell in layout.boxes())

    @cached_property
    def alike(self) -> Alike:
        """Which of its tensors are alike."""
        return kinds_of(self.tensors)

    @property
    def examples(self) -> list[PlannedTensor]:
        """A tensor of each kind."""
        return [self.tensors[number] for number in self.alike.first]

    @property
    def stages(self) -> int:
        """Pipeline stages of the target's ranks."""
        return self.world // self.layouts[0].sharding.devices if self.layouts else 1

    @property
    def nbytes(self) -> int:
        """Bytes to write, headers included; small files that close a target are of no part of it."""
        closing = 0 if self.part else sum(len(small.content) for small in self.closing)
        return sum(self.forms[f.form].nbytes for f in self.files) + closing

    @property
    def tensor_nbytes(self) -> int:
        """Bytes of tensors to write."""
        sizes = [sum(e.nbytes for slot in form.slots for e in slot.extents) for form in self.forms]
        return sum(sizes[f.form] for f in self.files)

    def slots(self, file: PlannedFile) -> Iterator[tuple[Slot, Box]]:
        """What a file holds, each with its box of the full tensor. Layers repeat: a box is computed once a layout."""
        boxes: dict[int, Box] = {}
        for slot in self.forms[file.form].slots:
            if slot.layout not in boxes:
                boxes[slot.layout] = self.layouts[slot.layout].box(file.local_rank)
            yield slot, boxes[slot.layout]

    def to_json(self) -> bytes:
        """Raises InputError for paths that are no Unicode, which JSON cannot hold."""
        try:
            return msgspec.json.encode(self)
        except UnicodeEncodeError as error:
            raise InputError(f"{error.object!r} is not Unicode: JSON cannot hold it", hint="rename it") from None


class Stacked(Struct, frozen=True, gc=False):
    """A tensor that moves with others, and the shape in which it is put together."""

    name: str
    shape: tuple[int, ...]


class Move(Struct, frozen=True):
    """The making of one tensor's target pieces, in ``dtype``, by a step.

    ``stacked``: of several that are cast as one, an index of the first dim each; ``name`` is that of the first.
    """

    name: str
    step: Step
    dtype: str
    targets: tuple[Piece, ...]
    stacked: tuple[Stacked, ...] = ()

    @property
    def computes(self) -> bool:
        """Whether elements are made or cast: else they are copied as they are."""
        return not isinstance(self.step, Assembly) or self.step.dtype != self.dtype


class TaskFile(Struct, frozen=True):
    """A file to write. ``twins`` are files of the same content, which get it as links."""

    path: str
    nbytes: int
    header: tuple[tuple[int, bytes], ...]
    checksums: tuple[Checksum, ...] = ()
    twins: tuple[str, ...] = ()


class Task(Struct, frozen=True):
    """A read group: files that the same source blocks feed. It needs nothing but itself to run."""

    number: int
    sources: tuple[SourceFile, ...]
    files: tuple[TaskFile, ...]
    moves: tuple[Move, ...]


class Run(Struct, frozen=True):
    """Bytes written in one go and their xxh3-128, hexadecimal."""

    offset: int
    nbytes: int
    xxh3: str

    def __post_init__(self) -> None:
        if self.offset < 0 or self.nbytes < 0:
            raise InputError(f"bytes {self.offset} to {self.offset + self.nbytes}")


class FileResult(Struct, frozen=True):
    """A file that is whole. ``link``: how it shares the bytes of another, empty where it was written; ``read_nbytes``:
    what its whole task read, noted with its first file; ``shared_nbytes``: what it has in common with source files.
    """

    path: str
    nbytes: int
    runs: tuple[Run, ...]
    read_nbytes: int = 0
    link: LinkKind = ""
    misfits: tuple[ShardMisfits, ...] = ()
    shared_nbytes: int = 0


def check_runs(result: FileResult) -> None:
    """Every byte of the file was written exactly once. Raises RunError: this is the last guard before a rename."""
    at = 0
    for run in sorted(result.runs, key=lambda r: (r.offset, r.nbytes)):
        if run.offset != at:
            raise RunError(f"bytes {min(at, run.offset)} to {max(at, run.offset)} written twice or never", result.path)
        at += run.nbytes
    if at != result.nbytes:
        raise RunError(f"{at} of {result.nbytes} bytes written", result.path)
