"""Torch files of a checkpoint, opened: the object in each, and where the numbers of its tensors lie."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from msgspec import Struct

from reshard.errors import CheckpointError, listed, located
from reshard.families.found import name_below
from reshard.formats.torch_file import extents, refuse_special
from reshard.formats.torch_records import TorchRecords, read_torch_records
from reshard.formats.torch_values import TensorRef
from reshard.index import Contents, Extent, TensorSpec, cut_extents
from reshard.interruption import proceed
from reshard.planning.catalog import Held, IndexedFile
from reshard.storage.storages import opened, storage_of

_Made = TypeVar("_Made")
_NUMBER = re.compile(r"\d+")
_SCALARS = {"float32": "<f", "float64": "<d", "int64": "<q", "int32": "<i"}


class Flat(Struct, frozen=True):
    """The numbers of a tensor that lies row-major in one file, to be cut as if it had one dim."""

    file: int
    dtype: str
    count: int
    extents: tuple[Extent, ...]

    def cut(self, start: int, stop: int) -> tuple[Extent, ...]:
        itemsize = TensorSpec(self.dtype, ()).itemsize
        return cut_extents(self.extents, start * itemsize, (stop - start) * itemsize)


class TorchPart(Struct, frozen=True):
    """One file: ``number`` counts the checkpoint's files, ``value`` is the object that was saved."""

    number: int
    file: IndexedFile
    records: TorchRecords

    @property
    def value(self) -> Any:
        return self.records.pickled.value

    @property
    def path(self) -> str:
        return self.file.path

    def flat(self, tensor: TensorRef) -> Flat:
        """Raises FormatError for a tensor whose numbers do not lie in the file as they are."""
        with located(self.path):
            found = extents(tensor, self.records)
        return Flat(self.number, tensor.dtype, tensor.size, found)

    def plain(self, named: Iterable[tuple[str, Any]]) -> dict[str, TensorRef]:
        """Those of the values that are tensors. Raises FormatError for one that is not plain numbers."""
        found: dict[str, TensorRef] = {}
        seen: set[int] = set()
        for name, value in named:
            if isinstance(value, TensorRef):
                found[name] = value
                continue
            with located(self.path):
                refuse_special(name, value, seen)
        return found

    def held(self, tensor: TensorRef) -> Held:
        return Held(self.number, self.flat(tensor).extents)

    def scalar(self, value: Any) -> float | None:
        """A number, read from the file where it is a tensor of one element; None for what is no number."""
        if isinstance(value, bool) or not isinstance(value, (int, float, TensorRef)):
            return None
        if not isinstance(value, TensorRef):
            return value
        if value.size != 1 or value.dtype not in _SCALARS:
            return None
        return float(struct.unpack(_SCALARS[value.dtype], self.content(value))[0])

    def content(self, tensor: TensorRef, count: int | None = None) -> bytes:
        """The numbers of a small tensor, row-major and little-endian; of the first ``count`` elements."""
        flat = self.flat(tensor)
        wanted = flat.count if count is None else min(count, flat.count)
        return self.bytes_of(flat.cut(0, wanted))

    def bytes_of(self, extents: Sequence[Extent], most_nbytes: int | None = None) -> bytes:
        """What lies there, little-endian; no more than the first ``most_nbytes``."""
        kept = extents if most_nbytes is None else cut_extents(tuple(extents), 0, most_nbytes)
        with opened(self.path) as source:
            read = []
            for extent in kept:
                found = source.read(extent.offset, extent.nbytes)
                read.append(extent.coded.decoded(found) if extent.coded is not None else found)
            return b"".join(read)

    def warnings(self) -> list[str]:
        """Classes that the file names and nobody knows."""
        names = ", ".join(sorted(self.records.pickled.unknown))
        return [f"{self.path}: objects of unknown classes are left out: {names}"] if names else []


def refuse_renamed(parts: Iterable[TorchPart]) -> None:
    """Raises CheckpointError for files of other ranks or layers than their names say, by what these were when they
    were saved: sizes are most often alike, and nothing else tells.
    """
    faults = [
        f"{part.path}: it was saved as {part.records.saved_as}"
        for part in parts
        if _is_renamed(part.records, part.path)
    ]
    if faults:
        raise CheckpointError(
            "files stand under the names of others:\n" + listed(faults),
            hint="give each its own name, or copy them again",
        )


def refuse_mixed_steps(told: Iterable[tuple[float | None, str]]) -> None:
    """Raises CheckpointError where files, by name, tell of different steps; None for one that tells of none.

    >>> refuse_mixed_steps([(2000000.0, "0.pt"), (2000001.0, "1.pt")])
    Traceback (most recent call last):
    reshard.errors.CheckpointError: the files are of different steps: step 2000000 in 0.pt, step 2000001 in 1.pt
      hint: bring the files of one save
    """
    steps: dict[float, str] = {}
    for step, name in told:
        if step is not None:
            steps.setdefault(step, name)
    if len(steps) > 1:
        shown = ", ".join(f"step {step:.12g} in {name}" for step, name in list(steps.items())[:4])
        raise CheckpointError(f"the files are of different steps: {shown}", hint="bring the files of one save")


def _is_renamed(records: TorchRecords, path: str) -> bool:
    """Whether a file's name has other numbers now."""
    name, before = path.rpartition("/")[2].rpartition(".")[0], records.saved_as
    alike = _NUMBER.sub("#", name) == _NUMBER.sub("#", before)
    return alike and [*map(int, _NUMBER.findall(name))] != [*map(int, _NUMBER.findall(before))]


def open_parts(root: str, ranked: Sequence[tuple[int, str]]) -> list[TorchPart]:
    """Open files, each with the rank that wrote it, several at once. Raises FormatError naming the file."""
    return made_of_parts(root, ranked, lambda part: part)


def made_of_parts(
    root: str, ranked: Sequence[tuple[int, str]], make: Callable[[TorchPart], _Made], first: int = 0
) -> list[_Made]:
    """As ``open_parts``, what is made of each: the objects of many files take much memory. ``first``: its number."""

    def made(number: int, rank: int, path: str) -> _Made:
        return make(_open(number, rank, path, root))

    with ThreadPoolExecutor(storage_of(root).at_once) as pool:
        ranks, paths = [rank for rank, _ in ranked], [path for _, path in ranked]
        return list(pool.map(made, range(first, first + len(ranked)), ranks, paths))


def _open(number: int, rank: int, path: str, root: str) -> TorchPart:
    proceed()
    with opened(path) as source:
        records = read_torch_records(source)
    name = name_below(root, path)
    return TorchPart(
        number, IndexedFile(path, name, source.nbytes, source.mtime_ns, rank, "torch", Contents({})), records
    )
