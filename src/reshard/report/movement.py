"""Which bytes go from where to where: sums over a plan, counted once for all tensors that move alike."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod

from msgspec.structs import replace

from reshard.dtypes import ITEMSIZE
from reshard.layout.tensor import Cell, Layout
from reshard.planning.bill import reads
from reshard.planning.catalog import Catalog
from reshard.planning.plan import Plan
from reshard.planning.tasks import tasks
from reshard.report.values import Movement

MAX_SIDE = 128
"""Rows and columns of a movement, at most."""

Slots = tuple[tuple[int, int], ...]


def movement(source: Catalog, plan: Plan) -> Movement:
    """Bytes of tensors by source and target rank; their sum is what the plan writes without headers."""
    ranks = source.strategy.world if source.strategy else 1 + max(f.rank for f in source.files)
    steps = -(-ranks // MAX_SIDE), -(-plan.world // MAX_SIDE)
    sums = [[0] * -(-plan.world // steps[1]) for _ in range(-(-ranks // steps[0]))]
    files: dict[int, list[int]] = {}
    for i, file in enumerate(plan.files):
        files.setdefault(file.form, []).append(i)
    for tensor_number, slots, count in _alike(source, plan):
        tensor = plan.tensors[tensor_number]
        layout = source.tensors[tensor.source_name].layout
        itemsize = ITEMSIZE[tensor.spec.dtype]
        rank_of = {_cell(layout, p.box.start): source.files[p.file].rank // steps[0] for p in tensor.pieces}
        for number, form in slots:
            target = plan.layouts[number]
            cells = target.sharding.cells()
            for i in files.get(form, ()):
                column = plan.files[i].rank // steps[1]
                for cell, elements in meeting(layout, target, cells[plan.files[i].local_rank]):
                    sums[rank_of[cell]][column] += elements * itemsize * count
    return Movement(ranks, plan.world, *steps, tuple(map(tuple, sums)))


def _alike(source: Catalog, plan: Plan) -> Iterator[tuple[int, Slots, int]]:
    """The number of one tensor of each set that moves alike, where it goes (layout, form), how many the set has."""
    slots: list[list[tuple[int, int]]] = [[] for _ in plan.tensors]
    for number, form in enumerate(plan.forms):
        for slot in form.slots:
            slots[slot.tensor].append((slot.layout, number))
    found: dict[object, list[int]] = {}
    for i, tensor in enumerate(plan.tensors):
        layout = source.tensors[tensor.source_name].layout
        files = tuple(p.file for p in tensor.pieces)
        whole = len(files) == prod(layout.sharding.parts)
        boxes = () if whole else tuple(p.box.start for p in tensor.pieces)
        dtypes = (tensor.source_dtype, tensor.spec.dtype)
        lora = i if tensor.lora else -1  # its factors lie where they lie
        found.setdefault((layout, files, boxes, tuple(slots[i]), dtypes, lora), []).append(i)
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
            for piece, nbytes in zip(move.sources, reads(move, block_nbytes), strict=True):
                sums[files[piece.file]] += nbytes * counts[int(move.name)]
    return sums
