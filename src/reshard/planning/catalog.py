"""What a checkpoint holds: every tensor, the boxes that tile it, and which files hold each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError, PlanError
from reshard.index import ZEROS, Contents, Extent, TensorSpec
from reshard.layout.box import Box
from reshard.layout.cover import gaps, overlap
from reshard.layout.stages import Strategy, layout_of_full
from reshard.layout.tensor import MAX_DEVICES, Cell, Layout, Sharding
from reshard.layout.view import in_view
from reshard.planning.steps import Piece

NO_RANK = -1
STRATEGY = "strategy"
"""How ``Catalog.told_by`` calls the source's own."""


class IndexedFile(Struct, frozen=True):
    """A weight file of which the headers were read.

    Attributes:
        name: its path below the checkpoint's folder.
        rank: 0 for all files of a full checkpoint.
        within: the files of this format that it consists of, by what they are of; none where it is one itself.
    """

    path: str
    name: str
    nbytes: int
    mtime_ns: int
    rank: int
    format: str
    contents: Contents
    within: tuple[tuple[str, Extent], ...] = ()


class Held(Struct, frozen=True, omit_defaults=True):
    """A shard as one file holds it.

    Attributes:
        file: counts the checkpoint's files; ``ZEROS`` where it is zeros that no file holds, ``MADE - n`` where
            it is a part of what a merge makes.
        outer: what the extents hold, in the tensor's elements, where that is more than the shard.
        order: which dim of the tensor each dim of what they hold is; ``()`` where they are the tensor's own.
    """

    file: int
    extents: tuple[Extent, ...]
    outer: Box | None = None
    order: tuple[int, ...] = ()

    def piece(self, box: Box) -> Piece:
        """The shard ``box`` as it is held."""
        return Piece(self.file, box, self.extents, self.outer, self.order)

    def extents_of(self, box: Box, itemsize: int) -> tuple[Extent, ...]:
        """The bytes of the shard ``box`` alone, row-major in the order of dims in which they are stored."""
        return self.piece(box).extents_of(box, itemsize)


class Shard(Struct, frozen=True):
    """A box of a tensor. All in ``held`` hold the same: replicas, or zeros alone; none where it is missing.

    ``expected``: global ranks that should hold it, for messages.
    """

    box: Box
    held: tuple[Held, ...]
    expected: tuple[int, ...] = ()


class Grid(Struct, frozen=True):
    """Shards as a layout cuts them; they are made when asked for. A cell that no file holds is absent from ``cells``.

    ``expected``: global ranks that should hold each cell.
    """

    layout: Layout
    cells: Mapping[Cell, tuple[Held, ...]]
    expected: Mapping[Cell, tuple[int, ...]] = {}

    def __iter__(self) -> Iterator[Shard]:
        for cell, box in self.layout.boxes().items():
            yield Shard(box, self.cells.get(cell, ()), self.expected.get(cell, ()))

    def held(self, within: Box | None = None) -> Iterator[tuple[Box, tuple[Held, ...]]]:
        """The box of each shard that files hold, and how they do; of those alone that meet a box."""
        cells, boxes = self.cells, self.layout.boxes()
        among = boxes if within is None else self.layout.cells_of(within)
        return ((boxes[cell], cells[cell]) for cell in among if cell in cells)

    def missing(self) -> tuple[Shard, ...]:
        """Shards that no file holds."""
        holders = self.layout.sharding.holders()
        if len(holders) == len(self.cells):
            return ()
        return tuple(shard for shard in self if not shard.held)


class Loose(Struct, frozen=True):
    """Shards wherever their boxes lie, in row-major order of where they begin."""

    shards: tuple[Shard, ...]

    def __iter__(self) -> Iterator[Shard]:
        return iter(self.shards)

    def held(self, within: Box | None = None) -> Iterator[tuple[Box, tuple[Held, ...]]]:
        """The box of each shard that files hold, and how they do; of those alone that meet a box."""
        held = ((shard.box, shard.held) for shard in self.shards if shard.held)
        return held if within is None else (found for found in held if found[0].meets(within) or found[0] == within)

    def missing(self) -> tuple[Shard, ...]:
        """Shards that are said to be somewhere and that no file holds."""
        return tuple(shard for shard in self.shards if not shard.held)


class Tensor(Struct, frozen=True):
    """A tensor of a checkpoint.

    Attributes:
        spec: dtype and full shape.
        shards: boxes that tile it, and who holds them; those that no file holds are among them.
        known: whether the checkpoint itself says how the tensor is cut, as a strategy does.
        compared: whether only their bytes can tell that those who hold it hold the same.
        view: the shape in which the boxes of the shards lie, where that is not the tensor's own (``layout.view``).
        cast_to: the dtype that it is to have, where that is not the one in which it is stored.
        scales: what its elements are multiplied by: it is stored as codes.
        weight: its file tells that it is no state of an optimizer, whatever it is called.
    """

    name: str
    spec: TensorSpec
    shards: Grid | Loose
    known: bool = False
    compared: bool = False
    view: tuple[int, ...] = ()
    cast_to: str = ""
    scales: Scales | None = None
    weight: bool = False

    @property
    def wanted_dtype(self) -> str:
        return self.cast_to or self.spec.dtype

    @property
    def cut(self) -> Layout | None:
        """Its layout, where one describes the shards."""
        return self.shards.layout if isinstance(self.shards, Grid) else None

    @property
    def parts(self) -> tuple[int, ...]:
        """Into how many parts each dim is cut, by a layout; else the ranges of each dim that shards begin with."""
        if isinstance(self.shards, Grid):
            return self.shards.layout.sharding.parts
        starts = [shard.box.start for shard in self.shards]
        return tuple(len({start[dim] for start in starts}) or 1 for dim in range(len(self.view or self.spec.shape)))


def is_viewed(tensor: Tensor) -> bool:
    """Whether its shards lie in another shape than its own."""
    return tensor.view not in ((), tensor.spec.shape)


class Scales(Struct, frozen=True):
    """What codes are multiplied by: one element of ``of`` for a block of so many in each dim of their view."""

    of: Tensor
    block: tuple[int, ...]


def tensor_of_shards(name: str, spec: TensorSpec, shards: Iterable[Shard], *, known: bool = True) -> Tensor:
    """A tensor of boxes that its files say themselves; equal boxes are replicas, and gaps become missing shards.

    Raises:
        CheckpointError: boxes beyond the shape, that overlap in part, or whose bytes are fewer or more than theirs.
    """
    whole = Box.whole(spec.shape)
    merged: dict[Box, Shard] = {}
    for shard in shards:
        _check_fits(name, spec, whole, shard)
        if shard.box.size or not whole.size:
            other = merged.get(shard.box)
            merged[shard.box] = (
                Shard(shard.box, other.held + shard.held, other.expected + shard.expected) if other else shard
            )
    grid = _grid(spec, merged)
    if grid is not None:
        return Tensor(name, spec, grid, known)
    left = gaps(merged, whole)
    if sum(box.size for box in merged) + sum(box.size for box in left) != whole.size:
        one, two = overlap(tuple(merged)) or (whole, whole)
        raise CheckpointError(f"{name}: {one} and {two} overlap, and nobody can know which counts")
    merged |= {box: Shard(box, ()) for box in left}
    return Tensor(name, spec, Loose(tuple(merged[box] for box in sorted(merged))), known)


def _check_fits(name: str, spec: TensorSpec, whole: Box, shard: Shard) -> None:
    box = shard.box
    if len(box.start) != len(spec.shape) or box not in whole:
        raise CheckpointError(f"{name}: {box} lies beyond its shape {list(spec.shape)}")
    for held in shard.held:
        stored = held.outer or box
        nbytes = sum(extent.nbytes for extent in held.extents)
        if (held.outer and box not in held.outer) or (held.file != ZEROS and nbytes != stored.size * spec.itemsize):
            raise CheckpointError(f"{name}: {box} of {spec.dtype} in {stored}, which takes {nbytes:,} bytes")


def _grid(spec: TensorSpec, shards: Mapping[Box, Shard]) -> Grid | None:
    """The shards as cells of a layout, where they are an even cut: of those there may be very many."""
    size = next(iter(shards)).shape if shards else ()
    if 0 in spec.shape or not shards or any(n % m for n, m in zip(spec.shape, size, strict=True)):
        return None
    parts = tuple(n // m for n, m in zip(spec.shape, size, strict=True))
    if prod(parts) > MAX_DEVICES:
        return None
    cells, expected = {}, {}
    for box, shard in shards.items():
        if box.shape != size or any(start % m for start, m in zip(box.start, size, strict=True)):
            return None
        cell = tuple(start // m for start, m in zip(box.start, size, strict=True))
        expected[cell] = shard.expected
        if shard.held:
            cells[cell] = shard.held
    axes = tuple((axis,) for axis in reversed(range(len(parts))))
    return Grid(layout_of_full(Sharding(parts, axes), spec.shape), cells, expected)


class Ranks(Struct, frozen=True):
    """The ranks of the job that wrote a checkpoint: global rank = stage * devices + local rank.

    ``where``: what says so, for messages.
    """

    stages: int = 1
    devices: int = 1
    where: str = ""

    @property
    def world(self) -> int:
        return self.stages * self.devices


class Catalog(Struct, frozen=True):
    """All of a checkpoint's tensors, in the order in which its files name them.

    Attributes:
        texts: strings beside the tensors: by name, what each rank holds.
        notes: flags of the files' format.
        ranks: of the job that wrote it; one for a full checkpoint.
        expected: names that it should hold, in order.
        family: what kind of checkpoint it is and what wrote it, in words.
        kind: the name of its family, as ``--from`` has it; "" where nobody recognised it.
        told_by: by name, hashes of what small files said that decided something: a strategy, metadata, a configuration.
        lacking: files that it should have, or what they should hold, in words.
        own: how the job that wrote it cut it, as far as that is a strategy.
        iteration: of the training, where its place says one.
        progress: where the training was, by MindFormers' words: ``global_step``, ``loss_scale`` …
        withheld: by name, why a tensor that the files have cannot be given: it is refused where it is asked for.
        dropped: by reason, names that were left out already when it was put under other names.
        args: what the program that wrote it was told, by name, as plain values.
        common: the file that says so and what else all ranks share, for a target that keeps it as it is.
        places: the folders and files that were named to be read; nothing may be written into one of them.
    """

    files: tuple[IndexedFile, ...]
    tensors: Mapping[str, Tensor]
    texts: Mapping[str, Mapping[int, str]]
    notes: Mapping[str, str]
    ranks: Ranks = Ranks()
    expected: tuple[str, ...] = ()
    told_by: Mapping[str, str] = {}
    warnings: tuple[str, ...] = ()
    family: str = ""
    withheld: Mapping[str, str] = {}
    lacking: tuple[str, ...] = ()
    own: Strategy | None = None
    iteration: int | None = None
    progress: Mapping[str, int | float | None] = {}
    args: Mapping[str, Any] = {}
    common: bytes = b""
    kind: str = ""
    dropped: Mapping[str, tuple[str, ...]] = {}
    places: tuple[str, ...] = ()

    @property
    def by_strategy(self) -> bool:
        """Whether a strategy says how its tensors are cut, which may be that of another job."""
        return STRATEGY in self.told_by

    def rank_of(self, held: Held) -> int:
        """The rank whose file holds a shard; ``NO_RANK`` where it is zeros that no file holds."""
        return NO_RANK if held.file <= ZEROS else self.files[held.file].rank

    def compared(self) -> tuple[Tensor, ...]:
        """Tensors on several ranks of which nobody says that these agree."""
        return tuple(t for t in self.tensors.values() if t.compared)


def seen_as(tensor: Tensor, view: tuple[int, ...]) -> Tensor:
    """The same elements, in another shape. Raises PlanError for what is no view, or is stored in another order."""
    shape = tensor.spec.shape
    if view == shape:
        return tensor
    shards = []
    for shard in tensor.shards:
        if tensor.view or any(held.order for held in shard.held):
            raise PlanError(f"{tensor.name}: stored in an order in which it cannot be seen as {list(view)}")
        try:
            parts = tuple(in_view(shard.box, shape, view))
        except ValueError as error:
            raise PlanError(f"{tensor.name}: {error}") from None
        itemsize = tensor.spec.itemsize
        shards += [
            Shard(seen, tuple(part_of(h, shard.box, real, itemsize) for h in shard.held)) for real, seen in parts
        ]
    return replace(tensor, spec=replace(tensor.spec, shape=view), shards=Loose(tuple(shards)))


def part_of(held: Held, box: Box, part: Box, itemsize: int) -> Held:
    """What holds a part of the shard ``box``, and nothing besides."""
    return Held(held.file, held.piece(box).extents_of(part, itemsize))
