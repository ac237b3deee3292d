"""Which bytes go from where to where: sums over a plan, counted once for all tensors that move alike."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod

from msgspec.structs import replace

from reshard.dtypes import ITEMSIZE
from reshard.index import ZEROS
from reshard.layout.tensor import Cell, Layout
from reshard.layout.view import in_view
from reshard.planning.bill import reads
from reshard.planning.catalog import Catalog
from reshard.planning.plan import Plan, PlannedTensor
from reshard.planning.steps import file_of
from reshard.planning.tasks import tasks
from reshard.report.values import Movement

MAX_SIDE = 128
"""Rows and columns of a movement, at most."""

Slots = tuple[tuple[int, int], ...]


def movement(source: Catalog, plan: Plan) -> Movement:
    """Bytes of tensors by source and target rank; their sum is what the plan writes without headers."""
    ranks = source.ranks.world
    steps = -(-ranks // MAX_SIDE), -(-plan.world // MAX_SIDE)
    sums = [[0] * -(-plan.world // steps[1]) for _ in range(-(-ranks // steps[0]))]
    files: dict[int, list[int]] = {}
    for i, file in enumerate(plan.files):
        files.setdefault(file.form, []).append(i)
    for tensor_number, slots, count in _alike(source, plan):
        tensor = plan.tensors[tensor_number]
        met = _Met(source, tensor)
        itemsize = ITEMSIZE[tensor.spec.dtype]
        for number, form in slots:
            for i in files.get(form, ()):
                column = plan.files[i].rank // steps[1]
                for rank, elements in met.by(plan.layouts[number], plan.files[i].local_rank):
                    sums[rank // steps[0]][column] += elements * itemsize * count
    return Movement(ranks, plan.world, *steps, tuple(map(tuple, sums)))


class _Met:
    """Which source ranks a part of a tensor comes from, in how many elements of each."""

    def __init__(self, source: Catalog, tensor: PlannedTensor) -> None:
        self._base = tensor.step.base
        self._cut = source.tensors[tensor.source_name].cut
        self._pieces = self._base.pieces
        files = [file_of(tensor.step, piece) for piece in self._pieces]
        self._ranks = [None if file == ZEROS else source.files[file].rank for file in files]
        self._known: dict[tuple[Layout, Cell], list[tuple[int, int]]] = {}
        if self._cut:
            places = (_cell(self._cut, p.box.start) for p in self._pieces)
            self._rank_of = dict(zip(places, self._ranks, strict=True))

    def by(self, layout: Layout, local_rank: int) -> list[tuple[int, int]]:
        cell = layout.sharding.cells()[local_rank]
        if (layout, cell) not in self._known:
            if self._cut:
                met = [(self._rank_of[at], elements) for at, elements in meeting(self._cut, layout, cell)]
            else:
                view = self._base.shape
                boxes = [box for _, box in in_view(layout.box_of(cell), layout.shape, view)]
                pieces = zip(self._ranks, self._pieces, strict=True)
                met = [(rank, (p.box & box).size) for rank, p in pieces for box in boxes]
            found = [(rank, elements) for rank, elements in met if rank is not None and elements]
            self._known[layout, cell] = found
        return self._known[layout, cell]


def _alike(source: Catalog, plan: Plan) -> Iterator[tuple[int, Slots, int]]:
    """The number of one tensor of each set that moves alike, where it goes (layout, form), how many the set has."""
    slots: list[list[tuple[int, int]]] = [[] for _ in plan.tensors]
    for number, form in enumerate(plan.forms):
        for slot in form.slots:
            slots[slot.tensor].append((slot.layout, number))
    found: dict[object, list[int]] = {}
    for i, tensor in enumerate(plan.tensors):
        base = tensor.step.base
        layout = source.tensors[tensor.source_name].cut
        files = tuple(p.file for p in base.pieces)
        whole = layout is not None and len(files) == prod(layout.sharding.parts)
        boxes = () if whole else tuple((p.box, p.outer, p.order) for p in base.pieces)
        kind = (base.dtype, tensor.spec, base.shape)
        apart = i if tensor.step.beside else -1  # what is read besides lies where it lies
        found.setdefault((layout, files, boxes, tuple(slots[i]), kind, apart), []).append(i)
    for same in found.values():
        yield same[0], tuple(slots[same[0]]), len(same)


def _cell(layout: Layout, start: tuple[int, ...]) -> Cell:
    return tuple(a // max(n, 1) for a, n in zip(start, layout.shard_shape, strict=True))


@lru_cache(maxsize=1 << 16)
def meeting(source: Layout, target: Layout, cell: Cell) -> tuple[tuple[Cell, int], ...]:
    """The source's cells that meet a cell of the target, and in how many elements.

    >>> from reshard.layout.tensor import Sharding
    >>> rows = [Layout((12, 2), Sharding((n,), ((0,), ()))) for n in (2, 3)]
    >>> meeting(rows[0], rows[1], (1, 0))
    (((0, 0), 4), ((1, 0), 4))
    """
    if not prod(source.shape):
        return ()
    dims = []
    for size, n, m, part in zip(source.shape, source.sharding.parts, target.sharding.parts, cell, strict=True):
        have, start, stop = size // n, part * size // m, (part + 1) * size // m
        dims.append(
            [(i, min(stop, (i + 1) * have) - max(start, i * have)) for i in range(start // have, -(-stop // have))]
        )
    return tuple((tuple(i for i, _ in at), prod(n for _, n in at)) for at in product(*dims))


def read_of_files(source: Catalog, plan: Plan, block_nbytes: int, *, link_replicas: bool) -> list[int]:
    """Bytes of tensors that will be read from each source file; their sum is what the bill says."""
    counts = {number: count for number, _, count in _alike(source, plan)}
    few = replace(
        plan,
        tensors=tuple(replace(t, name=str(number)) for number, t in enumerate(plan.tensors)),
        forms=tuple(replace(form, slots=tuple(s for s in form.slots if s.tensor in counts)) for form in plan.forms),
    )
    numbers = {file.path: i for i, file in enumerate(plan.sources)}
    sums = [0] * len(plan.sources)
    for task in tasks(few, link_replicas=link_replicas):
        files = [numbers[s.path] for s in task.sources]
        for move in task.moves:
            for piece, nbytes in zip(move.step.base.pieces, reads(move, block_nbytes), strict=True):
                if (file := file_of(move.step, piece)) != ZEROS:
                    sums[files[file]] += nbytes * counts[int(move.name)]
    return sums
