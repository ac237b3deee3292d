"""Small tensors that take turns in their files: a stretch of each file is read or written at once, and what lies
equally far apart goes from one to the other by one copy.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from operator import mul, sub
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from reshard.dtypes import ITEMSIZE
from reshard.index import MAX_DIMS, ZEROS, Extent
from reshard.layout.box import Box, hull_of
from reshard.moving.elements import Array, plain_dtype
from reshard.moving.scratch import Scratch
from reshard.moving.task_inputs import Sources
from reshard.planning.plan import Move
from reshard.planning.steps import Assembly, Piece

_MUCH_MORE = 1.25
_MOST_TURNS = 4

Gaps = Sequence[tuple[int, int]]
"""What nothing is written to, from where to where in a stretch of a file."""
PutAround = Callable[[int, int, memoryview, Gaps], None]
"""Takes a file, an offset in it and the bytes that belong there, around gaps. They are valid during the call only."""


class _Laid(Struct, frozen=True):
    """A piece, and where in the stretch of its file each of its rows begins, in numbers of eight bytes: a row has one
    index in the first dim.
    """

    file: int
    box: Box
    itemsize: int
    rows: bytes

    @property
    def row_nbytes(self) -> int:
        return prod(self.box.shape[1:]) * self.itemsize

    @property
    def steps(self) -> tuple[int, ...]:
        """How many bytes apart elements are, in each dim of a row."""
        shape = self.box.shape
        return tuple(prod(shape[dim:]) * self.itemsize for dim in range(2, len(shape) + 1))

    def skipped(self, part: Box) -> int:
        """How many bytes after the beginning of a row its first element of a part is."""
        return sum(map(mul, self.steps, map(sub, part.start[1:], self.box.start[1:])))

    def rows_of(self, part: Box) -> bytes:
        first, stop = part.start[0] - self.box.start[0], part.stop[0] - self.box.start[0]
        return self.rows[8 * first : 8 * stop]


class _Carried(Struct, frozen=True):
    """A move of elements as they are."""

    sources: tuple[_Laid, ...]
    targets: tuple[_Laid, ...]


class _Items(Struct, frozen=True):
    """Where items lie in the stretch of a file: the first, and how many bytes apart they are in each dim."""

    file: int
    offset: int
    steps: tuple[int, ...]


class _Copy(Struct, frozen=True):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    of: _Items
    to: _Items


class _Pattern(Struct, frozen=True):
    """How moves carry stretches of some files to stretches of others, wherever these begin.

    Attributes:
        read: how many bytes of each file.
        needed: how many of these count.
        same: of each file that is written to the first that gets the same bytes.
        written, gaps: how many bytes, and what is not among them; of the first alone.
    """

    copies: tuple[_Copy, ...]
    read: Mapping[int, int]
    needed: Mapping[int, int]
    same: Mapping[int, int]
    written: Mapping[int, int]
    gaps: Mapping[int, Gaps]

    @property
    def nbytes(self) -> int:
        """The larger of its two buffers."""
        return max(sum(self.read.values()), sum(self.written.values()))


class Interleaved(Struct, frozen=True):
    """Moves that write to a stretch of each of their files; and where in its file each stretch begins."""

    pattern: _Pattern
    of: dict[int, int]
    to: dict[int, int]

    @property
    def gaps(self) -> dict[int, tuple[int, Gaps]]:
        """Of each file that is written to where its stretch begins, and the gaps in it."""
        return {file: (start, self.pattern.gaps[self.pattern.same[file]]) for file, start in self.to.items()}

    def run(self, sources: Sources, scratch: Scratch, put: PutAround) -> None:
        pattern = self.pattern
        held, made = _buffers(pattern.read, scratch.take, "slab"), _buffers(pattern.written, scratch.take, "write")
        for file, start in self.of.items():
            sources.opened(file).read_into(start, held[file])
            sources.count(file, pattern.needed[file])
        for copy in pattern.copies:
            of, to = copy.of, copy.to
            there = np.ndarray(copy.shape, copy.dtype, made[to.file], to.offset, to.steps)
            there[...] = np.ndarray(copy.shape, copy.dtype, held[of.file], of.offset, of.steps)
        for file, (start, gaps) in self.gaps.items():
            put(file, start, made[pattern.same[file]], gaps)


def _buffers(sizes: Mapping[int, int], take: Callable[[str, int], memoryview], use: str) -> dict[int, memoryview]:
    buffer, buffers, at = take(use, sum(sizes.values())), {}, 0
    for file, nbytes in sizes.items():
        buffers[file] = buffer[at : at + nbytes]
        at += nbytes
    return buffers


def interleaved(moves: Sequence[Move], block_nbytes: int) -> Interleaved | None:
    """None where elements change or lie in another order, the moves need little of what lies between the first and the
    last byte that they read, or all that they read or write is much more than a block.
    """
    of, to = _Stretches(), _Stretches()
    kinds: list[tuple[_Sides, str]] = []
    for move in moves:
        step = move.step
        if not isinstance(step, Assembly) or step.dtype != move.dtype or len(step.shape) >= MAX_DIMS:
            return None
        sides = _sides(step.pieces, move.targets)
        if sides is None or not of.finds(sides[0], move.dtype) or not to.finds(sides[1], move.dtype):
            return None
        kinds.append((sides, move.dtype))
    pattern = _pattern(tuple([_Carried(of.laid(a, dtype), to.laid(b, dtype)) for (a, b), dtype in kinds]))
    if pattern is None or pattern.nbytes > _MUCH_MORE * block_nbytes:
        return None
    return Interleaved(pattern, of.starts, to.starts)


_Sides = tuple[Sequence[Piece], Sequence[Piece]]


def _sides(sources: Sequence[Piece], targets: Sequence[Piece]) -> _Sides | None:
    """What is read, and what is written. Where each piece lies together it is one row: else there would be as many as a
    vector has elements. None where rows lie together nearly all.
    """
    places = [len(piece.extents) for piece in (*sources, *targets)]
    if max(places) == 1:
        return tuple(map(_one_row, sources)), tuple(map(_one_row, targets))
    return (sources, targets) if hull_of(piece.box for piece in targets).shape[0] <= sum(places) else None


def _one_row(piece: Piece) -> Piece:
    return replace(piece, box=Box((0, *piece.box.start), (1, *piece.box.stop)))


class _Stretches:
    """The pieces that moves read, or those that they write. ``starts``: where the stretch of each file begins.

    Files of one form hold all at the same places: these are looked at once.
    """

    def __init__(self) -> None:
        self.starts: dict[int, int] = {}
        self._rows: dict[tuple[int, int], tuple[int, Array]] = {}
        self._laid: dict[tuple[int, int, int], bytes] = {}

    def finds(self, pieces: Iterable[Piece], dtype: str) -> bool:
        """False where a row is parted, coded or made, or lies otherwise than in the tensor."""
        for piece in pieces:
            if piece.file <= ZEROS or piece.outer or piece.order or not piece.box.size:
                return False
            key = _place(piece, dtype)
            if key not in self._rows:
                rows = _rows(piece.extents, key[1])
                if rows is None:
                    return False
                self._rows[key] = int(rows.min()), rows
            first, _ = self._rows[key]
            self.starts[piece.file] = min(first, self.starts.get(piece.file, first))
        return True

    def laid(self, pieces: Iterable[Piece], dtype: str) -> tuple[_Laid, ...]:
        """Of pieces that were found."""
        return tuple(
            [_Laid(piece.file, piece.box, ITEMSIZE[dtype], self._in_stretch(piece, dtype)) for piece in pieces]
        )

    def _in_stretch(self, piece: Piece, dtype: str) -> bytes:
        place, start = _place(piece, dtype), self.starts[piece.file]
        key = *place, start
        if key not in self._laid:
            self._laid[key] = (self._rows[place][1] - start).tobytes()
        return self._laid[key]


def _place(piece: Piece, dtype: str) -> tuple[int, int]:
    """The extents, which are one object for all files of a form, and the bytes of a row in them."""
    return id(piece.extents), prod(piece.box.shape[1:]) * ITEMSIZE[dtype]


def _rows(extents: Sequence[Extent], row_nbytes: int) -> Array | None:
    """Where rows begin that lie in extents one after the other."""
    starts = np.array([extent.offset for extent in extents], np.int64)
    sizes = np.array([extent.nbytes for extent in extents], np.int64)
    counts, parted = np.divmod(sizes, row_nbytes)
    if parted.any() or any(extent.coded for extent in extents):
        return None
    before = np.cumsum(counts) - counts
    rows: Array = np.repeat(starts - before * row_nbytes, counts) + np.arange(counts.sum()) * row_nbytes
    return rows


@lru_cache(maxsize=256)
def _pattern(kinds: tuple[_Carried, ...]) -> _Pattern | None:
    """Layers repeat: of most moves it is known."""
    evenly = lru_cache(_evenly)  # files of one form hold rows at the same places
    same = _same(kinds)
    copies: list[_Copy] = []
    needed: dict[int, int] = {}
    for kind in kinds:
        hull = hull_of(target.box for target in kind.targets)
        for source in kind.sources:
            part_nbytes = (source.box & hull).size * source.itemsize
            needed[source.file] = needed.get(source.file, 0) + part_nbytes
            for target in kind.targets:
                if same[target.file] == target.file:
                    copies += _copies(source, target, evenly)
    read = _sizes(_by_file([source for kind in kinds for source in kind.sources]))
    if any(nbytes > _MUCH_MORE * needed[file] for file, nbytes in read.items()):
        return None
    written = _by_file([target for kind in kinds for target in kind.targets if same[target.file] == target.file])
    between = lru_cache(_between)
    gaps = {file: between(tuple([(laid.rows, laid.row_nbytes) for laid in some])) for file, some in written.items()}
    return _Pattern(tuple(copies), read, needed, same, _sizes(written), gaps)


def _same(kinds: Sequence[_Carried]) -> dict[int, int]:
    """Of each file that is written to the first that gets the same bytes, as replicas do."""
    held: dict[int, list[object]] = {}
    for number, kind in enumerate(kinds):
        for target in kind.targets:
            held.setdefault(target.file, []).append((number, target.box, target.rows))
    first: dict[object, int] = {}
    return {file: first.setdefault(tuple(parts), file) for file, parts in held.items()}


def _by_file(some: Iterable[_Laid]) -> dict[int, list[_Laid]]:
    found: dict[int, list[_Laid]] = {}
    for laid in some:
        found.setdefault(laid.file, []).append(laid)
    return found


def _sizes(by_file: Mapping[int, Sequence[_Laid]]) -> dict[int, int]:
    """How many bytes the stretch of each file has."""
    return {file: max(map(_end, some)) for file, some in by_file.items()}


def _end(laid: _Laid) -> int:
    return int(_numbers(laid.rows).max()) + laid.row_nbytes


def _between(parts: Sequence[tuple[bytes, int]]) -> Gaps:
    """The gaps between rows of so many bytes each. Where rows overlap it is one that ends before it begins."""
    starts = np.concatenate([_numbers(rows) for rows, _ in parts])
    stops = np.concatenate([_numbers(rows) + nbytes for rows, nbytes in parts])
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], stops[order]
    found = np.flatnonzero(starts[1:] != stops[:-1])
    return list(zip(stops[found].tolist(), starts[found + 1].tolist(), strict=True))


class _Even(Struct, frozen=True):
    """Rows at equal distances in source and target: where the first is, and the step."""

    count: int
    of: tuple[int, int]
    to: tuple[int, int]


def _copies(source: _Laid, target: _Laid, evenly: Callable[[bytes, bytes], Sequence[_Even]]) -> Iterator[_Copy]:
    """Of the elements that both hold."""
    both = source.box & target.box
    if not both.size:
        return
    nbytes, dims = _joined_dims(source.itemsize, both.shape[1:], source.steps, target.steps)
    shape, of_steps, to_steps = zip(*dims, strict=True) if dims else ((), (), ())
    dtype, of_skipped, to_skipped = np.dtype(plain_dtype(nbytes)), source.skipped(both), target.skipped(both)
    for even in evenly(source.rows_of(both), target.rows_of(both)):
        of = _Items(source.file, even.of[0] + of_skipped, (even.of[1], *of_steps))
        to = _Items(target.file, even.to[0] + to_skipped, (even.to[1], *to_steps))
        yield _Copy(dtype, (even.count, *shape), of, to)


def _joined_dims(itemsize: int, shape: Sequence[int], *steps: Sequence[int]) -> tuple[int, list[tuple[int, ...]]]:
    """How many bytes lie together on both sides; and the dims that are left: how many, and how far apart on each."""
    nbytes, dims = itemsize, list(zip(shape, *steps, strict=True))
    while dims and (dims[-1][0] == 1 or dims[-1][1:] == (nbytes, nbytes)):
        nbytes *= dims.pop()[0]
    return nbytes, dims


def _evenly(of: bytes, to: bytes) -> list[_Even]:
    """As many rows at once as can be, where several kinds may take turns."""
    sides = np.stack([_numbers(of), _numbers(to)])
    rows, found, at = len(of) // 8, [], 0
    changes = {turns: _changes(sides, turns) for turns in range(1, _MOST_TURNS + 1)}

    def count(turns: int) -> int:
        """How many rows from here on are as far from the one that is ``turns`` before them as the first of these is."""
        ends = changes[turns]
        return min(turns, rows - at) + max(ends[min(bisect_right(ends, at), len(ends) - 1)] - at, 0)

    while at < rows:
        turns = max(changes, key=lambda turns: count(turns) / turns)
        stop = at + count(turns)
        for n in range(at, min(at + turns, stop)):
            found.append(_Even(len(range(n, stop, turns)), *map(_first_and_step, sides[:, n:stop:turns])))
        at = stop
    return found


def _changes(sides: Array, turns: int) -> list[int]:
    """The rows from which on others that are ``turns`` later are at another distance, and where there are none."""
    apart = sides[:, turns:] - sides[:, :-turns]
    return [*(np.flatnonzero((apart[:, 1:] != apart[:, :-1]).any(0)) + 1).tolist(), apart.shape[1]]


def _first_and_step(rows: Array) -> tuple[int, int]:
    return int(rows[0]), int(rows[1] - rows[0]) if len(rows) > 1 else 0


def _numbers(rows: bytes) -> Array:
    return np.frombuffer(rows, np.int64)
