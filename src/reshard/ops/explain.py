"""Explain: where one tensor lies, and from which bytes of which files each target rank's slice of it is made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from reshard.closest import closest
from reshard.dtypes import ITEMSIZE
from reshard.errors import PlanError, UsageError
from reshard.index import ZEROS, Extent, cut_extents
from reshard.layout.box import Box, ordered
from reshard.layout.tensor import Layout
from reshard.layout.view import in_view
from reshard.moving.steps import scale_box
from reshard.ops.convert import opened, plan_from
from reshard.ops.names import told as names_told
from reshard.ops.options import Options
from reshard.planning.catalog import Catalog, Tensor
from reshard.planning.names import NameRules
from reshard.planning.plan import Plan, PlannedTensor
from reshard.planning.steps import Assembly, Piece, Scaled

_CLOSE = 5


class ToldPlace(Struct, frozen=True):
    """Where a file holds a part: its bytes are those of ``extents``, one after the other."""

    rank: int
    path: str
    extents: tuple[Extent, ...]


class ToldPart(Struct, frozen=True):
    """One box of the tensor. ``held`` lists all that hold it: replicas; none where it is missing.

    ``expected`` are the ranks that the strategy names.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    held: tuple[ToldPlace, ...]
    expected: tuple[int, ...] = ()


class Taken(Struct, frozen=True):
    """What is read of one source file for a part of the target: ``runs`` pieces of ``run_nbytes``, the first from
    ``offset``; they end before ``end``. ``scales``: it is of what the part is multiplied by.
    """

    rank: int
    path: str
    start: tuple[int, ...]
    shape: tuple[int, ...]
    offset: int
    run_nbytes: int
    runs: int
    end: int
    scales: bool = False


class ExplainedPart(Struct, frozen=True):
    """A part of the target, the files that get it, and what it is made of."""

    part: ToldPart
    taken: tuple[Taken, ...]


class Cut(Struct, frozen=True):
    """How a tensor is cut: parts in each dim; ``opt_parts``: how many of those of dim 0 the optimizer shard makes."""

    parts: tuple[int, ...]
    opt_parts: int
    stages: tuple[int, ...]
    of_stages: int


class ToldTarget(Struct, frozen=True):
    """The target of one tensor; ``cut`` is that of the first stage that has it."""

    name: str
    dtype: str
    cut: Cut
    made: tuple[ExplainedPart, ...]


class Explanation(Struct, frozen=True):
    """All about one tensor.

    Attributes:
        targets: one where there is a target that gets it, else none.
        fate: why the target does not get it; empty where it does or there is no target.
        view: the shape in which parts are boxes, where that is not the tensor's own.
        scales: the parts of what its elements are multiplied by, where it is of codes that shall be numbers.
        block: how many elements in each dim one of those counts for.
        asked: where another name was asked for, which this tensor is made of: that, and by which rule.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    cut: Cut
    parts: tuple[ToldPart, ...]
    targets: tuple[ToldTarget, ...]
    fate: str
    warnings: tuple[str, ...]
    view: tuple[int, ...] = ()
    asked: str = ""
    scales: tuple[ToldPart, ...] = ()
    block: tuple[int, ...] = ()


def explain(name: str, src: str | Path, options: Options, *, rank: int | None = None) -> Explanation:
    """Say where a tensor lies in the source and, with a target strategy, how each rank's slice of it is made.

    Args:
        name: what the source or, after renaming, the target calls it; of a source's tensor that is made into others
            with other names, the first of these is told.
        rank: only this target rank's slice.

    Raises:
        UsageError: no tensor is called so; with the closest names.
    """
    given = options
    source, options = opened(src, options)
    name, asked = _named_there(name, source, str(src), given)
    tensor = _found(name, source, options.names)
    warnings = source.warnings
    targets: tuple[ToldTarget, ...] = ()
    fate = ""
    if options.dst_strategy:
        plan = _plan(source, tensor, options)
        warnings = plan.warnings
        planned = [i for i, t in enumerate(plan.tensors) if t.source_name == tensor.name]
        if planned:
            targets = (_target(source, plan, planned, rank),)
        else:
            known = options.names.renamed(tensor.name)
            fate = next((f"{o.fate}: {o.reason}" for o in plan.left_out if {known, tensor.name} & {*o.names}), "")
    spec = tensor.spec
    return Explanation(
        tensor.name,
        spec.dtype,
        spec.shape,
        spec.nbytes,
        _source_cut(source, tensor),
        tuple(_parts(source, tensor)),
        targets,
        fate,
        warnings,
        tensor.view,
        asked,
        tuple(_parts(source, tensor.scales.of)) if tensor.scales else (),
        tensor.scales.block if tensor.scales else (),
    )


def _named_there(name: str, source: Catalog, src: str, options: Options) -> tuple[str, str]:
    """What a tensor of the source is made into, where another convention calls it otherwise, and the rule in words."""
    if name in source.tensors or not options.naming.dst:
        return name, ""
    row = next((row for row in names_told(src, options).tensors if row.name == name), None)
    if row is None:
        return name, ""
    first, *others = row.targets
    also = f"; also made into {', '.join(others[:_CLOSE])}" if others else ""
    return first, f"{name}: {' → '.join(row.rules)}{also}"


def _found(name: str, source: Catalog, rules: NameRules) -> Tensor:
    if name in source.tensors:
        return source.tensors[name]
    renamed = {rules.renamed(n): n for n in source.tensors}
    if name in renamed:
        return source.tensors[renamed[name]]
    if why := next((why for why, names in source.dropped.items() if name in names), ""):
        raise UsageError(
            f"{name} is left out: {why}", hint="without --dst-names and --dequantize it is told where it lies"
        )
    close = closest(name, [*source.tensors, *renamed], most=_CLOSE, likeness=0.5)
    parts = [n for n in source.tensors if name in n]
    shown = list(dict.fromkeys([*close, *parts]))[:_CLOSE]
    raise UsageError(
        f"no tensor is called {name!r}",
        hint=f"did you mean {' or '.join(shown)}?" if shown else "reshard inspect lists all names",
    )


def _plan(source: Catalog, tensor: Tensor, options: Options) -> Plan:
    """The plan of the whole, or where that is refused of this tensor alone; replicas may then be chosen otherwise."""
    try:
        return plan_from(source, None, options)
    except PlanError as error:
        alone = replace(source, tensors={tensor.name: tensor}, texts={})
        only = replace(options, names=replace(options.names, include=(f"^{re.escape(tensor.name)}$",)))
        made = plan_from(alone, None, only)
        return replace(made, warnings=(*made.warnings, f"the whole conversion is refused: {error.message}"))


def _source_cut(source: Catalog, tensor: Tensor) -> Cut:
    ranks = {source.rank_of(h) for shard in tensor.shards for h in shard.held if h.file > ZEROS}
    ranks |= {rank for shard in tensor.shards for rank in shard.expected}
    stages = tuple(sorted({rank // source.ranks.devices for rank in ranks}))
    opt = tensor.cut.sharding.opt_parts if tensor.cut and tensor.parts else 1
    return Cut(tensor.parts, opt, stages, source.ranks.stages)


def _cut(layout: Layout, stages: Iterable[int], of_stages: int) -> Cut:
    sharding = layout.sharding
    return Cut(sharding.parts, sharding.opt_parts if sharding.parts else 1, tuple(stages), of_stages)


def _parts(source: Catalog, tensor: Tensor) -> Iterator[ToldPart]:
    """In row-major order."""
    itemsize = tensor.spec.itemsize
    for shard in tensor.shards:
        held = (
            ToldPlace(source.files[h.file].rank, source.files[h.file].path, h.extents_of(shard.box, itemsize))
            for h in shard.held
            if h.file > ZEROS
        )
        yield ToldPart(shard.box.start, shard.box.shape, tuple(held), shard.expected)


def _target(source: Catalog, plan: Plan, numbers: list[int], rank: int | None) -> ToldTarget:
    """The parts of one tensor in row-major order; ranks whose values differ have parts of their own."""
    made: dict[tuple[int, Box], list[ToldPlace]] = {}
    layouts: dict[int, Layout] = {}
    devices = plan.layouts[0].sharding.devices
    for file in plan.files:
        for slot, box in plan.slots(file):
            if slot.tensor in numbers:
                layouts.setdefault(file.rank // devices, plan.layouts[slot.layout])
                if rank is None or rank == file.rank:
                    place = ToldPlace(file.rank, file.path, slot.extents)
                    made.setdefault((slot.tensor, box), []).append(place)
    if rank is not None and not made:
        raise UsageError(f"target rank {rank} does not get {plan.tensors[numbers[0]].name}")
    first = plan.tensors[numbers[0]]
    cut = _cut(next(iter(layouts.values())), sorted(layouts), plan.world // devices)
    parts = (
        ExplainedPart(ToldPart(box.start, box.shape, tuple(places)), tuple(_taken(source, plan.tensors[number], box)))
        for (number, box), places in sorted(made.items(), key=lambda item: (item[0][1], item[0][0]))
    )
    return ToldTarget(first.name, first.spec.dtype, cut, tuple(parts))


def _taken(source: Catalog, tensor: PlannedTensor, box: Box) -> Iterator[Taken]:
    step = tensor.step
    wanted = [view for _, view in in_view(box, tensor.spec.shape, step.base.shape)]
    yield from _of_pieces(source, step.base, wanted)
    if isinstance(step, Scaled):
        needed = dict.fromkeys(scale_box(step, view) for view in wanted)
        yield from (replace(taken, scales=True) for taken in _of_pieces(source, step.scale, needed))


def _of_pieces(source: Catalog, made: Assembly, wanted: Iterable[Box]) -> Iterator[Taken]:
    """What of the pieces lies in boxes of their view."""
    boxes = list(wanted)
    for piece, part in ((piece, piece.box & box) for piece in made.pieces for box in boxes):
        if part.size and piece.file > ZEROS:
            offset, run_nbytes, runs, end = byte_runs(piece, part, ITEMSIZE[made.dtype])
            file = source.files[piece.file]
            yield Taken(file.rank, file.path, part.start, part.shape, offset, run_nbytes, runs, end)


def byte_runs(piece: Piece, part: Box, itemsize: int) -> tuple[int, int, int, int]:
    """Where a part of a piece lies in its file: first byte, bytes that lie together, how many such runs, last byte + 1.

    >>> piece = Piece(0, Box((0, 0), (4, 8)), (Extent(100, 128),))
    >>> byte_runs(piece, Box((1, 0), (3, 8)), 4), byte_runs(piece, Box((1, 4), (3, 8)), 4)
    ((132, 64, 1, 196), (148, 16, 2, 196))
    """
    stored = piece.stored
    if piece.order:
        part, stored = ordered(part, piece.order), ordered(stored, piece.order)
    shape, whole = part.shape, stored.shape
    dim = len(shape)
    while dim > 1 and shape[dim - 1] == whole[dim - 1]:
        dim -= 1
    together = prod(shape[dim - 1 :])
    first = last = 0
    for start, stop, base, size in zip(part.start, part.stop, stored.start, whole, strict=True):
        first = first * size + start - base
        last = last * size + stop - 1 - base
    begin = cut_extents(piece.extents, first * itemsize, itemsize)[0].offset
    end = cut_extents(piece.extents, last * itemsize, itemsize)[0].end
    return begin, together * itemsize, prod(shape) // together, end
