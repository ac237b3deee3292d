"""Small tensors that lie side by side in the target, moved together as bytes: one write for many, and few reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

from msgspec import Struct

from reshard.index import Extent, cut_extents
from reshard.layout.box import Box
from reshard.planning.plan import Assembly, Move, Piece, PlannedTensor

_SMALL_NBYTES = 1 << 20
_TOGETHER_NBYTES = 4 << 20
Runs = tuple["_Run", ...]


class _Run(Struct, frozen=True):
    """Elements that lie together both in a source piece and in the target pieces: where they begin there."""

    piece: int
    at: int
    target_at: int
    size: int


class _Found(Struct, frozen=True):
    """Bytes of a tensor: where files hold them, one after the other, and where they come from."""

    places: tuple[int, ...]
    nbytes: int
    source: int
    extents: tuple[Extent, ...]
    name: str

    def follows(self, other: _Found) -> bool:
        """Whether its bytes are next in every file."""
        return self.places == tuple([place + other.nbytes for place in other.places])


class Neighbours:
    """Takes tensors one by one; ``moves`` gives what was put together of them."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, ...], list[_Found]] = {}
        self._known: dict[object, Runs] = {}

    def takes(self, tensor: PlannedTensor, targets: Sequence[Piece]) -> bool:
        """Whether it is among the moves now: it is small, no byte of it changes, and each file holds the same of it.

        Files that hold different parts are better made of one read of all parts.
        """
        step, spec, box = tensor.step, tensor.spec, targets[0].box
        if not isinstance(step, Assembly) or step.dtype != spec.dtype or spec.nbytes > _SMALL_NBYTES:
            return False
        if any(target.box != box or len(target.extents) != 1 for target in targets):
            return False
        runs = self._runs(step.pieces, box)
        if runs:
            found = self._found.setdefault(tuple([target.file for target in targets]), [])
            starts = [target.extents[0].offset for target in targets]
            for run in runs:
                nbytes, at = run.size * spec.itemsize, run.target_at * spec.itemsize
                piece = step.pieces[run.piece]
                extents = cut_extents(piece.extents, run.at * spec.itemsize, nbytes)
                found.append(_Found(tuple([start + at for start in starts]), nbytes, piece.file, extents, tensor.name))
        return bool(runs)

    def _runs(self, pieces: tuple[Piece, ...], box: Box) -> Runs:
        """Layers repeat: tensors that lie alike and are cut alike are looked at once."""
        turned = any(piece.order or (piece.extents and piece.extents[0].coded) for piece in pieces)
        key = (tuple([(p.box, p.outer) for p in pieces]), box, turned)
        if key not in self._known:
            self._known[key] = () if turned else _runs(pieces, box)
        return self._known[key]

    def moves(self) -> Iterator[Move]:
        for files, found in self._found.items():
            found.sort(key=attrgetter("places"))
            bundle: list[_Found] = []
            room = 0
            for each in found:
                if bundle and (each.nbytes > room or not each.follows(bundle[-1])):
                    yield _move(files, bundle)
                    bundle = []
                room = (room if bundle else _TOGETHER_NBYTES) - each.nbytes
                bundle.append(each)
            yield _move(files, bundle)


def _runs(pieces: Sequence[Piece], box: Box) -> Runs:
    """Nothing where some of the box lies apart in a piece or in the target, or where a block would read more."""
    found = []
    for number, piece in enumerate(pieces):
        part, stored = piece.box & box, piece.stored
        if part.size:
            at, target_at = part.place_in(stored), part.place_in(box)
            if (
                at is None
                or target_at is None
                or (part.start[1:], part.stop[1:]) != (stored.start[1:], stored.stop[1:])
            ):
                return ()
            found.append(_Run(number, at, target_at, part.size))
    return tuple(found)


def _move(files: tuple[int, ...], bundle: Sequence[_Found]) -> Move:
    """The bytes of all, as one tensor of bytes."""
    pieces: list[tuple[int, int, list[Extent]]] = []
    at = 0
    for each in bundle:
        if not pieces or pieces[-1][0] != each.source:
            pieces.append((each.source, at, []))
        held = pieces[-1][2]
        for extent in each.extents:
            if held and held[-1].end == extent.offset:
                held[-1] = Extent(held[-1].offset, held[-1].nbytes + extent.nbytes)
            else:
                held.append(extent)
        at += each.nbytes
    stops = [*(start for _, start, _ in pieces[1:]), at]
    whole = Box((0,), (at,))
    made = [
        Piece(file, Box((start,), (stop,)), tuple(held))
        for (file, start, held), stop in zip(pieces, stops, strict=True)
    ]
    targets = [Piece(file, whole, (Extent(place, at),)) for file, place in zip(files, bundle[0].places, strict=True)]
    return Move(bundle[0].name, Assembly("uint8", (at,), tuple(made)), "uint8", tuple(targets))
