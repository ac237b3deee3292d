"""Small tensors that lie alike and are cut alike, moved together: one read and one write for neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from math import prod
from operator import is_

from msgspec import Struct

from reshard.dtypes import ITEMSIZE
from reshard.index import Extent
from reshard.layout.box import Box
from reshard.planning.plan import Move, PlannedTensor, Stacked
from reshard.planning.shared import LEAST_NBYTES
from reshard.planning.steps import Assembly, Piece

_TOGETHER_NBYTES = 8 << 20
_SMALL_NBYTES = 1 << 20
Lies = tuple[int, Box, Box | None]
"""A file, what it holds of a tensor, and what its extents hold."""


class Spot(Struct, frozen=True, gc=False):
    """Where files hold a tensor: all at the same place, each its own box. Very many tensors share ``boxes``."""

    boxes: Sequence[tuple[int, Box]]
    extents: tuple[Extent, ...]


class Targeted(Struct, frozen=True, gc=False):
    """A tensor, and where target files hold it. What has the same ``cut`` has the same boxes in the same files, where
    its shape is the same.
    """

    tensor: PlannedTensor
    spots: tuple[Spot, ...]
    cut: tuple[int, ...]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return tuple([Piece(file, box, spot.extents) for spot in self.spots for file, box in spot.boxes])

    @property
    def cast(self) -> bool:
        return self.tensor.step.base.dtype != self.tensor.spec.dtype

    @property
    def nbytes(self) -> int:
        """As it is before a cast or after it, whichever is more."""
        return max(self.tensor.spec.nbytes, prod(self.tensor.spec.shape) * ITEMSIZE[self.tensor.step.base.dtype])

    @property
    def place(self) -> tuple[int, int]:
        """The first file, and where in it the tensor is."""
        first = self.spots[0]
        return first.boxes[0][0], first.extents[0].offset if first.extents else 0


class Likeness(Struct, frozen=True):
    """What tensors have in common that may be moved together: how source and target pieces lie in them.

    ``dtype``: what they are before, ``made``: what they become.
    """

    dtype: str
    made: str
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
        return Likeness(self.dtype, self.made, (whole.size,), pieces, targets)


def _in_a_row(whole: Box, lies: Lies) -> Lies | None:
    file, box, outer = lies
    at = box.place_in(whole)
    return None if outer or at is None else (file, Box((at,), (at + box.size,)), None)


class _Likenesses:
    """Numbers of the likenesses of tensors: layers repeat, and to compare them takes longer than all else."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], int] = {}
        self._numbers: dict[Likeness, int] = {}
        self.all: list[Likeness] = []

    def of(self, each: Targeted) -> int | None:
        """None for what is computed or turned, which moves by itself."""
        tensor, step = each.tensor, each.tensor.step
        if not isinstance(step, Assembly):
            return None
        key: list[object] = [step.dtype, tensor.spec.dtype, tensor.spec.shape, step.shape, each.cut]
        for piece in step.pieces:
            if piece.order or (piece.extents and piece.extents[0].coded):
                return None
            key += (piece.file, piece.box, piece.outer)
        number = self._known.get(found := tuple(key))
        if number is None:
            likeness = Likeness(step.dtype, tensor.spec.dtype, step.shape, _lie(step.pieces), _lie(each.pieces)).flat()
            number = self._known[found] = self._numbers.setdefault(likeness, len(self._numbers))
            if number == len(self.all):
                self.all.append(likeness)
        return number


def _lie(pieces: Iterable[Piece]) -> tuple[Lies, ...]:
    return tuple([(piece.file, piece.box, piece.outer) for piece in pieces])


def moves(tensors: Iterable[Targeted], *, front_to_back: bool, shared: bool) -> Iterator[Move]:
    """The moves of tensors that come in the order of their file: one for all small ones of a kind that are near.

    Args:
        front_to_back: files take their bytes in this order only, so that nothing may lie between them.
        shared: files may share the bytes of what is not quite small, where they stay what they are.
    """
    kinds = _Likenesses()
    near: dict[int, list[Targeted]] = {}
    room = _TOGETHER_NBYTES
    for each in tensors:
        nbytes = each.nbytes
        small_nbytes = LEAST_NBYTES if shared and not each.cast else _SMALL_NBYTES
        kind = kinds.of(each) if 0 < nbytes < small_nbytes else None
        room -= nbytes
        apart = front_to_back and near and not (kind in near and _follows(each.spots, near[kind][-1].spots))
        if kind is None or room < 0 or apart:
            yield from (_move(kinds.all[number], alike) for number, alike in near.items())
            near, room = {}, _TOGETHER_NBYTES - nbytes
        if kind is None:
            yield alone(each)
        else:
            near.setdefault(kind, []).append(each)
    yield from (_move(kinds.all[number], alike) for number, alike in near.items())


def alone(each: Targeted) -> Move:
    return Move(each.tensor.name, each.tensor.step, each.tensor.spec.dtype, each.pieces)


def _follows(spots: Sequence[Spot], last: Sequence[Spot]) -> bool:
    """Whether a tensor is next in every file to the last of its kind."""
    return all(a.extents[-1].end == b.extents[0].offset for a, b in zip(last, spots, strict=True))


def _move(likeness: Likeness, alike: Sequence[Targeted]) -> Move:
    """All as one tensor, with one more dim in front; where they lie apart, in as many extents."""
    first, count = alike[0], len(alike)
    if count == 1:
        return alone(first)

    def stacked(lies: Iterable[Lies], held: Iterable[tuple[Extent, ...]]) -> Iterator[Piece]:
        for (file, box, outer), extents in zip(lies, held, strict=True):
            yield Piece(file, _stacked(box, count), extents, outer and _stacked(outer, count))

    spots = [_joined(each.spots[i].extents for each in alike) for i in range(len(first.spots))]
    held = [extents for extents, spot in zip(spots, first.spots, strict=True) for _ in spot.boxes]
    pieces = tuple(stacked(likeness.pieces, _read(alike)))
    made = tuple(stacked(likeness.targets, held))
    step = Assembly(likeness.dtype, (count, *likeness.shape), pieces)
    named = [Stacked(each.tensor.name, each.tensor.step.base.shape) for each in alike if each.cast]
    return Move(first.tensor.name, step, likeness.made, made, tuple(named))


def _read(alike: Sequence[Targeted]) -> Iterator[tuple[Extent, ...]]:
    """The extents of all, piece by piece. Files of one form hold all at the same places."""
    of = [each.tensor.step.base.pieces for each in alike]
    before: list[tuple[Extent, ...]] = []
    held: tuple[Extent, ...] = ()
    for i in range(len(of[0])):
        parts = [pieces[i].extents for pieces in of]
        if not before or not all(map(is_, parts, before)):
            held, before = _joined(parts), parts
        yield held


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
