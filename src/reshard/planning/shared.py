"""Bytes that a target file may share with a source file: runs of both that lie alike in the blocks of a file system."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter

from msgspec import Struct

from reshard.dtypes import ITEMSIZE
from reshard.index import ZEROS, Extent, cut_extents
from reshard.layout.box import Box
from reshard.planning.plan import Move
from reshard.planning.steps import Assembly, Piece, Step

COPIED = 1
"""Stands for the bytes of a block where a server copies by itself: it takes any, and they take space."""

LEAST_NBYTES = 64 << 10
"""Less is copied in the time in which it is shared."""
_TOGETHER_NBYTES = 4 << 20


class Shared(Struct, frozen=True, order=True):
    """``nbytes`` of the file being made, from ``offset`` on, are those of a source file."""

    offset: int
    nbytes: int
    source: int
    source_offset: int

    @property
    def end(self) -> int:
        return self.offset + self.nbytes

    @property
    def shift(self) -> int:
        return self.source_offset - self.offset

    def in_blocks(self, block_nbytes: int) -> Shared | None:
        """The whole blocks of it, where they are blocks of the source too, and enough."""
        start = -(-self.offset // block_nbytes) * block_nbytes
        nbytes = self.end // block_nbytes * block_nbytes - start
        if self.shift % block_nbytes or nbytes < max(LEAST_NBYTES, block_nbytes):
            return None
        return Shared(start, nbytes, self.source, start + self.shift)


SharedMove = tuple[Move, Sequence[tuple[int, Shared]]]
"""A move, and by target file what of it lies together in a source file, too."""


def with_same_bytes(moves: Iterable[Move]) -> list[SharedMove]:
    """Each move, and the target files that have bytes as they lie together in a source file."""
    return [
        (move, [(target.file, run) for target in move.targets for run in same_bytes(move.step, move.dtype, target)])
        for move in moves
    ]


def shared_of(moves: Iterable[SharedMove], block_nbytes: int) -> dict[int, list[Shared]]:
    """For each target file the whole blocks that it may share, in order. Neighbours count as one."""
    runs: dict[int, list[Shared]] = {}
    for _, lying in moves:
        for file, run in lying:
            runs.setdefault(file, []).append(run)
    found = {
        file: [part for run in _joined_runs(sorted(of_file)) if (part := run.in_blocks(block_nbytes)) is not None]
        for file, of_file in runs.items()
    }
    return {file: parts for file, parts in found.items() if parts}


def same_bytes(step: Step, dtype: str, target: Piece) -> Iterator[Shared]:
    """The bytes of a target piece that lie together in a source file as they do in the target."""
    if not isinstance(step, Assembly) or step.dtype != dtype:
        return
    itemsize = ITEMSIZE[dtype]
    for piece in step.pieces:
        part = piece.box & target.box
        if piece.file == ZEROS or piece.order or not part.size:
            continue
        at, target_at = part.place_in(piece.stored), part.place_in(target.box)
        if at is not None and target_at is not None:
            start, target_start, nbytes = at * itemsize, target_at * itemsize, part.size * itemsize
            if len(piece.extents) == len(target.extents) == 1:  # most, and quickly told
                if piece.extents[0].coded is None:
                    to, held = target.extents[0].offset + target_start, piece.extents[0].offset + start
                    yield Shared(to, nbytes, piece.file, held)
                continue
            source = cut_extents(piece.extents, start, nbytes)
            yield from _pairs(piece.file, source, cut_extents(target.extents, target_start, nbytes))


def _pairs(file: int, source: tuple[Extent, ...], target: tuple[Extent, ...]) -> Iterator[Shared]:
    """Extents of as many bytes, side by side, cut where either ends."""
    left, right = ([extent for extent in reversed(side) if extent.nbytes] for side in (source, target))
    while left and right:
        a, b = left.pop(), right.pop()
        nbytes = min(a.nbytes, b.nbytes)
        if a.coded is None:
            yield Shared(b.offset, nbytes, file, a.offset)
        left += cut_extents((a,), nbytes, a.nbytes - nbytes)
        right += cut_extents((b,), nbytes, b.nbytes - nbytes)


def _joined_runs(runs: list[Shared]) -> Iterator[Shared]:
    """Runs that go on both in the target and in the source as one."""
    open_: Shared | None = None
    for run in runs:
        if open_ and (open_.end, open_.source, open_.shift) == (run.offset, run.source, run.shift):
            open_ = Shared(open_.offset, open_.nbytes + run.nbytes, run.source, open_.source_offset)
        else:
            if open_:
                yield open_
            open_ = run
    if open_:
        yield open_


class Rest(Struct, frozen=True):
    """What is left to do.

    Attributes:
        whole: moves that stay as they are.
        runs: by target file the bytes that are left of all others.
        held: (file, start, stop) of bytes that a file shares.
    """

    whole: tuple[Move, ...]
    runs: dict[int, list[Shared]]
    held: tuple[tuple[int, int, int], ...]

    @property
    def runs_nbytes(self) -> int:
        return sum(run.nbytes for runs in self.runs.values() for run in runs)

    @property
    def moves(self) -> tuple[Move, ...]:
        return (*self.whole, *(move for file, runs in self.runs.items() for move in _moves(file, runs)))


def without_shared(moves: Iterable[SharedMove], shared: Mapping[int, Sequence[tuple[int, int]]]) -> Rest:
    """Moves of bytes alone become runs of those that a file does not share; all others stay whole.

    ``shared``: by target file, where bytes that it shares begin and end, in order.
    """
    whole: list[Move] = []
    rest: dict[int, list[Shared]] = {}
    held: list[tuple[int, int, int]] = []
    for move, runs in moves:
        if sum(run.nbytes for _, run in runs) != sum(t.box.size for t in move.targets) * ITEMSIZE[move.dtype]:
            whole.append(move)
            continue
        for file, run in runs:
            at = run.offset
            for start, stop in _within(shared.get(file, ()), run):
                rest.setdefault(file, []).append(_part(run, at, start))
                held.append((file, start, stop))
                at = stop
            rest.setdefault(file, []).append(_part(run, at, run.end))
    return Rest(tuple(whole), rest, tuple(held))


def _within(shared: Sequence[tuple[int, int]], run: Shared) -> Iterator[tuple[int, int]]:
    first = bisect_right(shared, run.offset, key=itemgetter(1))
    last = bisect_left(shared, run.end, key=itemgetter(0))
    for start, stop in shared[first:last]:
        yield max(start, run.offset), min(stop, run.end)


def _part(run: Shared, start: int, stop: int) -> Shared:
    return Shared(start, stop - start, run.source, start + run.shift)


def _moves(file: int, runs: Iterable[Shared]) -> Iterator[Move]:
    """Bytes of a file as tensors of bytes, none of them large unless one of its runs is."""
    some: list[Shared] = []
    nbytes = 0
    for run in _joined_runs(sorted(run for run in runs if run.nbytes)):
        if some and nbytes + run.nbytes > _TOGETHER_NBYTES:
            yield _of_bytes(file, some)
            some, nbytes = [], 0
        some.append(run)
        nbytes += run.nbytes
    if some:
        yield _of_bytes(file, some)


def _of_bytes(file: int, runs: Sequence[Shared]) -> Move:
    pieces = []
    at = 0
    for run in runs:
        box = Box((at,), (at + run.nbytes,))
        pieces.append(Piece(run.source, box, (Extent(run.source_offset, run.nbytes),)))
        at += run.nbytes
    target = Piece(file, Box((0,), (at,)), tuple(Extent(run.offset, run.nbytes) for run in runs))
    return Move("", Assembly("uint8", (at,), tuple(pieces)), "uint8", (target,))
