"""Small tensors that lie alike and are cut alike, moved together: one read and one write for neighbours."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, compress, groupby, repeat
from math import prod
from operator import add, attrgetter, is_, ne

from msgspec import Struct
from msgspec.structs import replace

from reshard.dtypes import ITEMSIZE
from reshard.index import ZEROS, Extent, cut_extents
from reshard.layout.box import Box, hull_of
from reshard.planning.plan import Move, PlannedTensor, Stacked
from reshard.planning.shared import LEAST_NBYTES
from reshard.planning.steps import Assembly, Piece

_TOGETHER_NBYTES = 8 << 20
_ENOUGH_NBYTES = 2 << 20
"""What is together when tensors of another likeness come goes without them: then those of all layers go alike."""
_SMALL_NBYTES = 1 << 20
_OFFSET, _NBYTES = attrgetter("offset"), attrgetter("nbytes")
Lies = tuple[int, Box, Box | None]
"""A file, what it holds of a tensor, and what its extents hold."""


class Spot(Struct, frozen=True, gc=False):
    """Where files hold a tensor: all at the same place, each its own box. Very many tensors share ``boxes``: the file's
    number in the task, and the box.
    """

    boxes: Sequence[tuple[int, Box]]
    extents: tuple[Extent, ...]


class Targeted(Struct, frozen=True, gc=False):
    """A tensor, its kind in the plan, and where target files hold it. What has the same ``cut`` has the same boxes in
    the same files, where its shape is the same.
    """

    tensor: PlannedTensor
    kind: int
    spots: tuple[Spot, ...]
    cut: tuple[int, ...]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return tuple([Piece(file, box, spot.extents) for spot in self.spots for file, box in spot.boxes])

    @property
    def place(self) -> tuple[int, int]:
        """The first file, and where in it the tensor is."""
        first = self.spots[0]
        return first.boxes[0][0], first.extents[0].offset if first.extents else 0


class Likeness(Struct, frozen=True):
    """What tensors have in common that may be moved together: how source and target pieces lie in them.

    ``dtype``: what they are before, ``target_dtype``: what they become.
    """

    dtype: str
    target_dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Lies, ...]
    targets: tuple[Lies, ...]

    @property
    def nbytes(self) -> int:
        """Before a cast or after it, whichever is more."""
        return prod(self.shape) * max(ITEMSIZE[self.dtype], ITEMSIZE[self.target_dtype])

    @property
    def files(self) -> tuple[int, ...]:
        return tuple([file for file, _, _ in (*self.pieces, *self.targets)])

    @property
    def is_whole(self) -> bool:
        """Whether one piece of a file is all of the tensor, and all of it goes to each target as it is."""
        whole, one = Box.whole(self.shape), self.dtype == self.target_dtype and len(self.pieces) == 1
        return (
            one and self.files[0] > ZEROS and all(lies[1:] == (whole, None) for lies in (*self.pieces, *self.targets))
        )

    def flat(self) -> Likeness:
        """The same of elements in a row, where all lie together: then those of other shapes are like it, too."""
        whole = Box.whole(self.shape)
        found = [tuple(map(partial(_in_a_row, whole), lies)) for lies in (self.pieces, self.targets)]
        pieces, targets = (tuple(filter(None, lies)) for lies in found)
        if len(pieces) < len(self.pieces) or len(targets) < len(self.targets):
            return self
        return Likeness(self.dtype, self.target_dtype, (whole.size,), pieces, targets)


def _in_a_row(whole: Box, lies: Lies) -> Lies | None:
    file, box, outer = lies
    at = box.place_in(whole)
    return None if outer or at is None else (file, Box((at,), (at + box.size,)), None)


class _Small(Struct, frozen=True, gc=False):
    """Small tensors of one likeness that are cut alike.

    Attributes:
        number: of the likeness.
        files: of whole tensors, the source's and the targets'; () for others.
        hull: what targets need, where more than that would be read of several that move together.
    """

    number: int
    likeness: Likeness
    nbytes: int
    files: tuple[int, ...]
    hull: Box | None


_Neighbour = tuple[_Small, Targeted]


class _Likenesses:
    """What is known of small tensors: layers repeat, and to compare them takes longer than all else."""

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._known: dict[tuple[int, tuple[int, ...]], _Small | None] = {}
        self._numbers: dict[Likeness, int] = {}

    def of(self, each: Targeted) -> _Small | None:
        """None for one that moves by itself: it is large, computed or turned."""
        key = (each.kind, each.cut)
        if key not in self._known:
            self._known[key] = self._new(each)
        return self._known[key]

    def _new(self, each: Targeted) -> _Small | None:
        hull = hull_of(piece.box for piece in each.pieces)
        narrow = _of_needed_rows(each, hull)
        step, target_dtype = narrow.tensor.step, narrow.tensor.spec.dtype
        if not isinstance(step, Assembly):
            return None
        if any(piece.order or (piece.extents and piece.extents[0].coded) for piece in step.pieces):
            return None
        likeness = Likeness(step.dtype, target_dtype, step.shape, _lie(step.pieces), _lie(narrow.pieces)).flat()
        small_nbytes = LEAST_NBYTES if self._shared and target_dtype == step.dtype else _SMALL_NBYTES
        if not 0 < likeness.nbytes < small_nbytes:
            return None
        number = self._numbers.setdefault(likeness, len(self._numbers))
        files = likeness.files if likeness.is_whole else ()
        return _Small(number, likeness, likeness.nbytes, files, None if narrow is each else hull)


def _of_needed_rows(each: Targeted, hull: Box) -> Targeted:
    """With those rows of its pieces alone that meet the hull of its targets: of several that are read as one no block
    would leave the others out.
    """
    step = each.tensor.step
    if not isinstance(step, Assembly) or not hull.size:
        return each
    pieces = tuple([_rows(piece, hull, ITEMSIZE[step.dtype]) for piece in step.pieces])
    if all(map(is_, pieces, step.pieces)):
        return each
    return replace(each, tensor=replace(each.tensor, step=replace(step, pieces=pieces)))


def _rows(piece: Piece, hull: Box, itemsize: int) -> Piece:
    box, part = piece.box, piece.box & hull
    if not part.size or not part.start or piece.outer or piece.order or not piece.extents:
        return piece
    rows = Box((part.start[0], *box.start[1:]), (part.stop[0], *box.stop[1:]))
    if rows == box:
        return piece
    at = rows.place_in(box) or 0
    return replace(piece, box=rows, extents=cut_extents(piece.extents, at * itemsize, rows.size * itemsize))


def _lie(pieces: Iterable[Piece]) -> tuple[Lies, ...]:
    return tuple([(piece.file, piece.box, piece.outer) for piece in pieces])


def moves(tensors: Iterable[Targeted], *, front_to_back: bool, shared: bool) -> Iterator[Move]:
    """The moves of tensors that come in the order of their file: one for all small ones of a likeness that are near;
    one for all of these where whole tensors lie as they come.

    Args:
        front_to_back: files take their bytes in this order only, so that nothing may lie between them.
        shared: files may share the bytes of what is not quite small, where they stay what they are.
    """
    likenesses = _Likenesses(shared=shared)
    near: list[_Neighbour] = []
    met: set[int] = set()
    room = _TOGETHER_NBYTES
    for each in tensors:
        small = likenesses.of(each)
        if small is None:
            yield from _moves(near, front_to_back=front_to_back)
            near, met, room = [], set(), _TOGETHER_NBYTES
            yield move_of(each)
            continue
        nbytes = small.nbytes
        room -= nbytes
        new = small.number not in met and _TOGETHER_NBYTES - room > _ENOUGH_NBYTES + nbytes
        if room < 0 or new or (front_to_back and near and not _goes_on(near[-1], (small, each))):
            yield from _moves(near, front_to_back=front_to_back)
            near, met, room = [], set(), _TOGETHER_NBYTES - nbytes
        near.append((small, each if small.hull is None else _of_needed_rows(each, small.hull)))
        met.add(small.number)
    yield from _moves(near, front_to_back=front_to_back)


def _goes_on(last: _Neighbour, each: _Neighbour) -> bool:
    """Whether a tensor is written right after the last one by the move of both."""
    (before, a), (small, b) = last, each
    if small.number == before.number:
        return _follows(b.spots, a.spots)
    same = small.files and small.files == before.files
    return bool(same) and _follows(b.spots, a.spots) and _follows(b.tensor.step.base.pieces, a.tensor.step.base.pieces)


def _moves(near: Sequence[_Neighbour], *, front_to_back: bool) -> Iterator[Move]:
    by_likeness: dict[int, list[_Neighbour]] = {}
    for each in near:
        by_likeness.setdefault(each[0].number, []).append(each)
    run = _run(near, {some[0][0].files for some in by_likeness.values()}) if len(by_likeness) > 1 else None
    if run:
        yield run
    elif front_to_back:
        yield from (_move(list(some)) for _, some in groupby(near, lambda each: each[0].number))
    else:
        yield from map(_move, by_likeness.values())


def _run(near: Sequence[_Neighbour], files: Collection[tuple[int, ...]]) -> Move | None:
    """Whole tensors as bytes, where they follow one another in source and target."""
    first = near[0][1]
    if len(first.spots) > 1 or len(files) > 1 or not all(files):
        return None
    of = _joined_extents([each.tensor.step.base.pieces[0].extents for _, each in near])
    to = _joined_extents([each.spots[0].extents for _, each in near])
    if len(of) != 1 or len(to) != 1:
        return None
    whole = Box((0,), (to[0].nbytes,))
    source, *targets = map(Piece, near[0][0].files, repeat(whole), chain((of,), repeat(to)))
    return Move(first.tensor.name, Assembly("uint8", whole.shape, (source,)), "uint8", tuple(targets))


def move_of(each: Targeted) -> Move:
    """That of one tensor by itself."""
    return Move(each.tensor.name, each.tensor.step, each.tensor.spec.dtype, each.pieces)


def _follows(places: Iterable[Spot | Piece], last: Iterable[Spot | Piece]) -> bool:
    """Whether a tensor is next to the last one, wherever both lie."""
    return all(a.extents[-1].end == b.extents[0].offset for a, b in zip(last, places, strict=True))


def _move(some: Sequence[_Neighbour]) -> Move:
    """All as one tensor, with one more dim in front; where they lie apart, in as many extents."""
    likeness, tensors, count = some[0][0].likeness, [each for _, each in some], len(some)
    first = tensors[0]
    if count == 1:
        return move_of(first)

    def stacked(lies: Iterable[Lies], held: Iterable[tuple[Extent, ...]]) -> Iterator[Piece]:
        for (file, box, outer), extents in zip(lies, held, strict=True):
            yield Piece(file, _stacked(box, count), extents, outer and _stacked(outer, count))

    spots = [_joined_extents([each.spots[i].extents for each in tensors]) for i in range(len(first.spots))]
    held = [extents for extents, spot in zip(spots, first.spots, strict=True) for _ in spot.boxes]
    pieces = tuple(stacked(likeness.pieces, _read(tensors)))
    made = tuple(stacked(likeness.targets, held))
    step = Assembly(likeness.dtype, (count, *likeness.shape), pieces)
    cast = tensors if likeness.target_dtype != likeness.dtype else ()
    named = [Stacked(each.tensor.name, each.tensor.step.base.shape) for each in cast]
    return Move(first.tensor.name, step, likeness.target_dtype, made, tuple(named))


def _read(tensors: Sequence[Targeted]) -> Iterator[tuple[Extent, ...]]:
    """The extents of all, piece by piece. Files of one form hold all at the same places."""
    of = [each.tensor.step.base.pieces for each in tensors]
    before: list[tuple[Extent, ...]] = []
    held: tuple[Extent, ...] = ()
    for i in range(len(of[0])):
        parts = [pieces[i].extents for pieces in of]
        if not before or not all(map(is_, parts, before)):
            held, before = _joined_extents(parts), parts
        yield held


def _stacked(box: Box, count: int) -> Box:
    return Box((0, *box.start), (count, *box.stop))


def _joined_extents(parts: Iterable[tuple[Extent, ...]]) -> tuple[Extent, ...]:
    """The extents one after the other, as one where they lie side by side. Very many are alone."""
    extents = tuple(chain.from_iterable(parts))
    offsets = list(map(_OFFSET, extents))
    stops = list(map(add, offsets, map(_NBYTES, extents)))
    apart = list(map(ne, stops, offsets[1:]))
    if all(apart):
        return extents
    firsts, lasts = compress(offsets, chain((True,), apart)), compress(stops, chain(apart, (True,)))
    return tuple([Extent(start, stop - start) for start, stop in zip(firsts, lasts, strict=True)])
