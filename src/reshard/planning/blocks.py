"""A move → blocks: the byte ranges to read, and those to write from them.

A block is a box of the full tensor: one index in each dim before the split dim, a range in it, everything after. So
the part of any piece that lies in a block is consecutive in that piece, and going through blocks in order writes every
piece from its first byte to its last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import prod
from operator import sub

from msgspec import Struct

from reshard.dtypes import ITEMSIZE
from reshard.index import ZEROS, Extent, cut_extents
from reshard.layout.box import Box, hull_of, ordered
from reshard.layout.cover import Shelf
from reshard.planning.plan import Move, Plan
from reshard.planning.steps import Assembly, Piece

_MUCH_MORE = 4
_COPIED_NBYTES = 16 << 20
"""Blocks of what stays as it is are no larger: with smaller ones Python's lock is held longer for a GB."""
_COMPUTED_NBYTES = 8 << 20
_STRIP_NBYTES = 8 << 20  # of what is turned: it waits in a buffer of its own


class EvenRuns(Struct, frozen=True):
    """Bytes that lie equally far apart: ``count`` times ``nbytes``, one every ``step`` from ``offset`` on."""

    offset: int
    nbytes: int
    step: int
    count: int


class Access(Struct, frozen=True):
    """``box`` of the tensor, consecutive in ``ranges`` of one file; ``piece`` counts the move's sources or targets.

    Of a source the box may hold what lies beside its piece, or lie in ``rows``, of which there may be very many.
    """

    piece: int
    file: int
    box: Box
    ranges: tuple[Extent, ...]
    rows: tuple[EvenRuns, ...] = ()


class Block(Struct, frozen=True):
    """What to read and write for one box. A read may be wider than the block: its bytes lie together in the file."""

    box: Box
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]


class Blocks:
    """The blocks of a move, by number; none is larger than ``block_nbytes`` unless one row already is."""

    def __init__(self, move: Move, block_nbytes: int) -> None:
        self.move = move
        self._block_nbytes = block_nbytes
        self.base = move.step.base
        self.source_itemsize = ITEMSIZE[self.base.dtype]
        self.target_itemsize = ITEMSIZE[move.dtype]
        self.hull = hull_of(piece.box for piece in move.targets)
        if not _turned(self.base):
            block_nbytes = min(block_nbytes, _COMPUTED_NBYTES if move.computes else _COPIED_NBYTES)
        wide = self.hull
        for piece in self.base.pieces:
            wide = wide if piece.order else wide.hull(piece.stored)
        itemsize = max(self.source_itemsize, self.target_itemsize)
        self.split, self._rows = _split(wide.shape, itemsize, block_nbytes)
        outer = self.hull.shape[: self.split]
        self._outer = outer
        self._chunks = -(-self.hull.shape[self.split] // self._rows) if self.hull.shape else 1
        self._count = prod(outer) * self._chunks if self.hull.size else 0

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _sources(self) -> Shelf:
        return Shelf([piece.box for piece in self.base.pieces])

    @cached_property
    def _targets(self) -> Shelf:
        return Shelf([piece.box for piece in self.move.targets])

    def __getitem__(self, i: int) -> Block:
        box = self._box(i)
        return Block(box, tuple(self._reads(box)), tuple(self._writes(box)))

    def _writes(self, box: Box) -> Iterator[Access]:
        for number in self._targets.near(box):
            piece = self.move.targets[number]
            if piece.outer:
                yield from _scattered(number, piece, box, self.target_itemsize)
            else:
                yield from _lying_together(number, piece, box, self.target_itemsize, self.split)

    def _reads(self, box: Box) -> Iterator[Access]:
        for number in self._sources.near(box):
            piece = self.base.pieces[number]
            if not piece.order:
                yield from _lying_together(number, piece, box, self.source_itemsize, self.split)
            elif (wide := self._worth_reading(piece, box)) is not None:
                yield _access(number, piece, wide, self.source_itemsize)
            else:
                for strip in _strips(piece.box & box, piece.order, self.source_itemsize):
                    yield from _apart(number, piece, strip, self.source_itemsize)

    def _worth_reading(self, piece: Piece, box: Box) -> Box | None:
        """What lies together and holds the part of a box that lies apart, where it is not much more than that."""
        part = piece.box & box
        wide = reach(piece, part)
        nbytes = wide.size * self.source_itemsize
        worth = 0 < wide.size <= _MUCH_MORE * part.size and nbytes <= self._block_nbytes and piece.file > ZEROS
        return wide if worth else None

    def _box(self, i: int) -> Box:
        if not self.hull.shape:
            return self.hull
        outer, chunk = divmod(i, self._chunks)
        start = list(self.hull.start)
        stop = list(self.hull.stop)
        for dim in reversed(range(self.split)):
            outer, place = divmod(outer, self._outer[dim])
            start[dim] = self.hull.start[dim] + place
            stop[dim] = start[dim] + 1
        start[self.split] = self.hull.start[self.split] + chunk * self._rows
        stop[self.split] = min(start[self.split] + self._rows, self.hull.stop[self.split])
        return Box(tuple(start), tuple(stop))


def _split(shape: tuple[int, ...], itemsize: int, block_nbytes: int) -> tuple[int, int]:
    """The first dim whose rows fit a block, and how many of them do.

    >>> _split((100, 4, 8), 1, 64)
    (0, 2)
    >>> _split((100, 4, 8), 1, 16)
    (1, 2)
    """
    for dim in range(len(shape)):
        row = prod(shape[dim + 1 :]) * itemsize
        if row <= block_nbytes:
            return dim, max(block_nbytes // max(row, 1), 1)
    return 0, 1


def _turned(of: Assembly) -> bool:
    return any(piece.order for piece in of.pieces)


def turns(plan: Plan) -> bool:
    """Whether some tensor lies otherwise in the source than in the target: larger blocks hold longer runs of it."""
    return any(_turned(tensor.step.base) for tensor in plan.examples)


def _strips(box: Box, order: tuple[int, ...], itemsize: int) -> Iterator[Box]:
    """A box in parts of some MiB, cut where they lie furthest apart in a file whose dims are in this order."""
    dim = next((dim for dim in order if box.stop[dim] - box.start[dim] > 1), order[0])
    first, last = box.start[dim], box.stop[dim]
    step = max(_STRIP_NBYTES * (last - first) // max(box.size * itemsize, 1), 1)
    for at in range(first, last, step):
        start, stop = list(box.start), list(box.stop)
        start[dim], stop[dim] = at, min(at + step, last)
        yield Box(tuple(start), tuple(stop))


def _lying_together(number: int, piece: Piece, box: Box, itemsize: int, split: int) -> Iterator[Access]:
    """The part of ``piece`` that lies in ``box``, widened after the split dim to what lies together in the file."""
    part = piece.box & box
    if not part.size:
        return
    if piece.file == ZEROS:
        yield Access(number, ZEROS, part, ())
        return
    inner, stored = slice(split + 1, None), piece.stored
    wide = Box(part.start[: split + 1] + stored.start[inner], part.stop[: split + 1] + stored.stop[inner])
    yield _access(number, piece, wide, itemsize)


def _access(number: int, piece: Piece, wide: Box, itemsize: int) -> Access:
    """Of a box that lies together."""
    of = (wide, piece.stored)
    box, stored = (ordered(each, piece.order) for each in of) if piece.order else of
    at = box.place_in(stored)
    if at is None:
        raise AssertionError(f"{wide} does not lie together in {piece.stored}")
    whole = wide == piece.stored
    ranges = piece.extents if whole else cut_extents(piece.extents, at * itemsize, wide.size * itemsize)
    return Access(number, piece.file, wide, ranges)


def reach(piece: Piece, part: Box) -> Box:
    """The smallest box that lies together in the extents of a piece and holds a part of it."""
    stored, apart = piece.stored, False
    start, stop = list(part.start), list(part.stop)
    for dim in piece.order or range(len(start)):
        if apart:
            start[dim], stop[dim] = stored.start[dim], stored.stop[dim]
        apart = apart or stop[dim] - start[dim] > 1
    return Box(tuple(start), tuple(stop))


def _scattered(number: int, piece: Piece, box: Box, itemsize: int) -> Iterator[Access]:
    """The part of ``piece`` that lies in ``box``, wherever its rows lie: nothing besides is read."""
    part = piece.box & box
    if not part.size:
        return
    yield Access(number, piece.file, part, () if piece.file == ZEROS else piece.extents_of(part, itemsize))


def _apart(number: int, piece: Piece, box: Box, itemsize: int) -> Iterator[Access]:
    """As ``_scattered``, of a source."""
    part = piece.box & box
    if piece.file == ZEROS or len(piece.extents) > 1 or piece.extents[0].coded or not part.size:
        yield from _scattered(number, piece, box, itemsize)
        return
    start = piece.extents[0].offset
    found = ordered(part, piece.order).rows_in(ordered(piece.stored, piece.order))
    rows = [EvenRuns(start + at * itemsize, n * itemsize, step * itemsize, count) for at, n, step, count in found]
    yield Access(number, piece.file, part, (), tuple(rows))


def siblings(moves: Sequence[Move], block_nbytes: int) -> Iterator[tuple[Move, ...]]:
    """The moves, those together whose blocks read the same bytes and take other elements of them; and neighbours of one
    block that lie among each other in what they write.
    """
    found: dict[object, list[Move]] = {}
    near: list[Move] = []
    near_fit = False
    for number, move in enumerate(moves):
        if any(piece.outer is not None for piece in move.step.base.pieces):
            found.setdefault(_reading(move, block_nbytes), []).append(move)
            continue
        fits = len(Blocks(move, block_nbytes)) == 1
        if near_fit and fits and _among(move, near):
            near.append(move)
        else:
            near, near_fit = found.setdefault(number, []), fits
            near.append(move)
    return map(tuple, found.values())


def _among(move: Move, others: Sequence[Move]) -> bool:
    """Whether a move writes before the end of what others write."""
    first = move.targets[0]
    return bool(first.extents) and any(
        piece.file == first.file and piece.extents and first.extents[0].offset < piece.extents[-1].end
        for piece in (other.targets[0] for other in others)
    )


def _reading(move: Move, block_nbytes: int) -> tuple[object, ...]:
    """What the blocks of a move read."""
    blocks = Blocks(move, block_nbytes)
    read = []
    for piece in blocks.base.pieces:
        first = piece.stored.start
        wide = reach(piece, piece.box & blocks.hull)
        ends = (tuple(map(sub, each, first)) for each in (wide.start, wide.stop))
        read.append((piece.file, piece.extents, *ends))
    return len(blocks), *read
