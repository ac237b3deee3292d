"""Shares: a target divided among processes that need not know of one another.

Each reckons the same division, from sizes alone. Files of one read group stay together where that is fair, for
whoever makes a part of a group reads for that part what others read for theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from msgspec import Struct

from reshard.errors import UsageError

_FINER = 4
"""Groups are cut to so many pieces a share at most."""


class Share(Struct, frozen=True):
    """The ``index``-th of ``count`` shares, counted from 0."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(f"share {self.index}/{self.count}", hint="shares count from 0: --share 0/4 to --share 3/4")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class Group(Struct, frozen=True):
    """Files that are read for together: the bytes of each, and those that all of them need."""

    written: tuple[int, ...]
    read_nbytes: int


class _GroupPiece(Struct, frozen=True):
    group: int
    start: int
    stop: int
    nbytes: int


def divided(groups: Sequence[Group], count: int) -> list[list[tuple[int, int]]]:
    """For each share the files that it makes, as (group, file of the group); neighbours stay together.

    The largest share, in bytes written and read, is as small as pieces of groups allow.

    >>> divided([Group((4, 4), 8), Group((4, 4), 8)], 2)
    [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
    >>> divided([Group((4, 4, 4), 12)], 2)
    [[(0, 0)], [(0, 1), (0, 2)]]
    """
    least = -(-count // max(len(groups), 1))
    tried = [
        _packed(groups, list(_pieces(groups, n)), count) for n in sorted({1, *range(least, _FINER * least + 1, least)})
    ]
    _, shares = min(tried, key=lambda packed: packed[0])
    made = [[(p.group, file) for p in share for file in range(p.start, p.stop)] for share in shares]
    return [*made, *([] for _ in range(count - len(made)))]


def _pieces(groups: Sequence[Group], parts: int) -> Iterator[_GroupPiece]:
    """Each group cut into ``parts`` runs of files, as far as it has files."""
    for number, group in enumerate(groups):
        files = len(group.written)
        ends = sorted({files * i // parts for i in range(parts + 1)})
        for start, stop in pairwise(ends):
            yield _GroupPiece(number, start, stop, sum(group.written[start:stop]))


def _packed(groups: Sequence[Group], pieces: list[_GroupPiece], count: int) -> tuple[int, list[list[_GroupPiece]]]:
    """The least bytes that ``count`` runs of pieces can keep to, and the runs."""
    most = _cost(groups, pieces) + 1
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if len(_runs(groups, pieces, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    runs = _runs(groups, pieces, low)
    return max((_cost(groups, run) for run in runs), default=0), runs


def _runs(groups: Sequence[Group], pieces: list[_GroupPiece], most: int) -> list[list[_GroupPiece]]:
    """Pieces in order, a new run wherever one more would cost above ``most``."""
    runs: list[list[_GroupPiece]] = []
    here = done = 0  # bytes of the group that the run is at, and what its groups before cost
    for piece in pieces:
        same = bool(runs) and runs[-1][-1].group == piece.group
        if runs and not same:
            done, here = done + _with_reading(groups[runs[-1][-1].group], here), 0
        if not runs or done + _with_reading(groups[piece.group], here + piece.nbytes) > most:
            runs.append([])
            here = done = 0
        runs[-1].append(piece)
        here += piece.nbytes
    return runs


def _cost(groups: Sequence[Group], pieces: list[_GroupPiece]) -> int:
    written: dict[int, int] = {}
    for piece in pieces:
        written[piece.group] = written.get(piece.group, 0) + piece.nbytes
    return sum(_with_reading(groups[number], nbytes) for number, nbytes in written.items())


def _with_reading(group: Group, written: int) -> int:
    """Bytes moved for a part of a group. Nobody reads more than what he writes, nor than what all of it needs."""
    return written + min(group.read_nbytes, written)
