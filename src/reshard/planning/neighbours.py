"""Small tensors that lie alike and are cut alike, moved together: one read and one write for neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from reshard.index import Extent
from reshard.layout.box import Box
from reshard.planning.plan import Assembly, Move, Piece, PlannedTensor
from reshard.planning.shared import LEAST_NBYTES

_TOGETHER_NBYTES = 4 << 20
Targeted = tuple[PlannedTensor, Sequence[Piece]]
"""A tensor, and the target pieces that are made of it."""
Kind = tuple[object, ...]
"""What tensors have in common that may be moved together."""


def moves(tensors: Iterable[Targeted], *, front_to_back: bool) -> Iterator[Move]:
    """The moves of tensors that come in the order of their file: one for all small ones of a kind that are near.

    ``front_to_back``: files take their bytes in this order only, so that nothing may lie between them.
    """
    near: dict[Kind, list[Targeted]] = {}
    room = _TOGETHER_NBYTES
    for tensor, targets in tensors:
        kind = _kind(tensor, targets)
        room -= tensor.spec.nbytes
        apart = front_to_back and near and not (kind in near and _follows(targets, near[kind][-1][1]))
        if kind is None or room < 0 or apart:
            yield from map(_move, near.values())
            near, room = {}, _TOGETHER_NBYTES - tensor.spec.nbytes
        if kind is None:
            yield Move(tensor.name, tensor.step, tensor.spec.dtype, tuple(targets))
        else:
            near.setdefault(kind, []).append((tensor, targets))
    yield from map(_move, near.values())


def _kind(tensor: PlannedTensor, targets: Sequence[Piece]) -> Kind | None:
    """None for what moves by itself: what is so large that it may be shared, or empty, or of which elements change."""
    step, spec = tensor.step, tensor.spec
    if not isinstance(step, Assembly) or step.dtype != spec.dtype or not 0 < spec.nbytes < LEAST_NBYTES:
        return None
    if any(p.order or (p.extents and p.extents[0].coded) for p in step.pieces) or any(t.outer for t in targets):
        return None
    lies = tuple([(p.file, p.box, p.outer) for p in step.pieces])
    return (step.dtype, step.shape, lies, tuple([(t.file, t.box) for t in targets]))


def _follows(targets: Sequence[Piece], last: Sequence[Piece]) -> bool:
    """Whether the pieces are next in every file."""
    return len(targets) == len(last) and all(
        a.file == b.file and a.extents[-1].end == b.extents[0].offset for a, b in zip(last, targets, strict=True)
    )


def _move(tensors: Sequence[Targeted]) -> Move:
    """All as one tensor, with one more dim in front; where they lie apart, in as many extents."""
    (first, targets), count = tensors[0], len(tensors)
    step = first.step
    assert isinstance(step, Assembly)
    if count == 1:
        return Move(first.name, step, step.dtype, tuple(targets))

    def stacked(piece: Piece, extents: Iterable[tuple[Extent, ...]]) -> Piece:
        outer = piece.outer and _stacked(piece.outer, count)
        return replace(piece, box=_stacked(piece.box, count), outer=outer, extents=_joined(extents))

    steps = [tensor.step.base.pieces for tensor, _ in tensors]
    pieces = tuple([stacked(p, (of[i].extents for of in steps)) for i, p in enumerate(step.pieces)])
    made = tuple([stacked(t, (of[i].extents for _, of in tensors)) for i, t in enumerate(targets)])
    return Move(first.name, Assembly(step.dtype, (count, *step.shape), pieces), step.dtype, made)


def _stacked(box: Box, count: int) -> Box:
    return Box((0, *box.start), (count, *box.stop))


def _joined(parts: Iterable[tuple[Extent, ...]]) -> tuple[Extent, ...]:
    """The extents one after the other, as one where they lie side by side."""
    joined: list[Extent] = []
    start = stop = -1
    for extent in (extent for part in parts for extent in part):
        if extent.offset != stop:
            if stop >= 0:
                joined.append(Extent(start, stop - start))
            start = extent.offset
        stop = extent.end
    return (*joined, Extent(start, stop - start)) if stop >= 0 else ()
