"""Small tensors that lie alike and are cut alike, moved together: one read and one write for neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import starmap
from operator import is_

from msgspec import Struct

from reshard.index import Extent
from reshard.layout.box import Box
from reshard.planning.plan import Move, PlannedTensor
from reshard.planning.shared import LEAST_NBYTES
from reshard.planning.steps import Assembly, Piece

_TOGETHER_NBYTES = 4 << 20
_SMALL_NBYTES = 1 << 20
Targeted = tuple[PlannedTensor, Sequence[Piece]]
"""A tensor, and the target pieces that are made of it."""
Lies = tuple[int, Box, Box | None]
"""A file, what it holds of a tensor, and what its extents hold."""


class Likeness(Struct, frozen=True):
    """What tensors have in common that may be moved together: how source and target pieces lie in them."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Lies, ...]
    targets: tuple[Lies, ...]

    def flat(self) -> Likeness:
        """The same of elements in a row, where all lie together: then those of other shapes are of one kind, too."""
        whole = Box.whole(self.shape)
        found = [tuple(map(partial(_in_a_row, whole), lies)) for lies in (self.pieces, self.targets)]
        pieces, targets = (tuple(filter(None, lies)) for lies in found)
        if len(pieces) < len(self.pieces) or len(targets) < len(self.targets):
            return self
        return Likeness(self.dtype, (whole.size,), pieces, targets)


def _in_a_row(whole: Box, lies: Lies) -> Lies | None:
    file, box, outer = lies
    at = box.place_in(whole)
    return None if outer or at is None else (file, Box((at,), (at + box.size,)), None)


def moves(tensors: Iterable[Targeted], *, front_to_back: bool, shared: bool) -> Iterator[Move]:
    """The moves of tensors that come in the order of their file: one for all small ones of a kind that are near.

    Args:
        front_to_back: files take their bytes in this order only, so that nothing may lie between them.
        shared: files may share the bytes of what is not quite small.
    """
    small_nbytes = LEAST_NBYTES if shared else _SMALL_NBYTES
    near: dict[Likeness, list[Targeted]] = {}
    flat: dict[Likeness, Likeness] = {}  # layers repeat
    room = _TOGETHER_NBYTES
    for tensor, targets in tensors:
        likeness = _likeness(tensor, targets) if 0 < tensor.spec.nbytes < small_nbytes else None
        if likeness is not None:
            likeness = flat[likeness] if likeness in flat else flat.setdefault(likeness, likeness.flat())
        room -= tensor.spec.nbytes
        apart = front_to_back and near and not (likeness in near and _follows(targets, near[likeness][-1][1]))
        if likeness is None or room < 0 or apart:
            yield from starmap(_move, near.items())
            near, room = {}, _TOGETHER_NBYTES - tensor.spec.nbytes
        if likeness is None:
            yield Move(tensor.name, tensor.step, tensor.spec.dtype, tuple(targets))
        else:
            near.setdefault(likeness, []).append((tensor, targets))
    yield from starmap(_move, near.items())


def _likeness(tensor: PlannedTensor, targets: Sequence[Piece]) -> Likeness | None:
    """None for that of which elements change, which moves by itself."""
    step, spec = tensor.step, tensor.spec
    if not isinstance(step, Assembly) or step.dtype != spec.dtype:
        return None
    if any(p.order or (p.extents and p.extents[0].coded) for p in step.pieces) or any(t.outer for t in targets):
        return None
    return Likeness(step.dtype, step.shape, _lie(step.pieces), _lie(targets))


def _lie(pieces: Iterable[Piece]) -> tuple[Lies, ...]:
    return tuple([(piece.file, piece.box, piece.outer) for piece in pieces])


def _follows(targets: Sequence[Piece], last: Sequence[Piece]) -> bool:
    """Whether the pieces are next in every file."""
    return len(targets) == len(last) and all(
        a.file == b.file and a.extents[-1].end == b.extents[0].offset for a, b in zip(last, targets, strict=True)
    )


def _move(likeness: Likeness, tensors: Sequence[Targeted]) -> Move:
    """All as one tensor, with one more dim in front; where they lie apart, in as many extents."""
    (first, targets), count = tensors[0], len(tensors)
    if count == 1:
        return Move(first.name, first.step, likeness.dtype, tuple(targets))

    def stacked(lies: Sequence[Lies], of: Sequence[Sequence[Piece]]) -> Iterator[Piece]:
        before: list[tuple[Extent, ...]] = []
        held: tuple[Extent, ...] = ()
        for i, (file, box, outer) in enumerate(lies):
            parts = [pieces[i].extents for pieces in of]
            if not before or not all(map(is_, parts, before)):  # files of one form hold all at the same places
                held, before = _joined(parts), parts
            yield Piece(file, _stacked(box, count), held, outer and _stacked(outer, count))

    pieces = tuple(stacked(likeness.pieces, [tensor.step.base.pieces for tensor, _ in tensors]))
    made = tuple(stacked(likeness.targets, [targets for _, targets in tensors]))
    return Move(first.name, Assembly(likeness.dtype, (count, *likeness.shape), pieces), likeness.dtype, made)


def _stacked(box: Box, count: int) -> Box:
    return Box((0, *box.start), (count, *box.stop))


def _joined(parts: Iterable[tuple[Extent, ...]]) -> tuple[Extent, ...]:
    """The extents one after the other, as one where they lie side by side."""
    joined: list[Extent] = []
    start = stop = -1
    for extents in parts:
        for extent in extents:
            offset = extent.offset
            if offset != stop:
                if stop >= 0:
                    joined.append(Extent(start, stop - start))
                start = offset
            stop = offset + extent.nbytes
    return (*joined, Extent(start, stop - start)) if stop >= 0 else ()
