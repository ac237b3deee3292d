"""Boxes: the algebra in which shards, blocks and overlaps are computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import product, repeat
from math import prod
from operator import lt, sub
from types import EllipsisType

from msgspec import Struct


class Box(Struct, frozen=True, order=True, gc=False):  # numbers alone, and very many: never part of a circle
    """Elements ``i`` with ``start[d] <= i[d] < stop[d]`` in every dim ``d``.

    A 0-d tensor is ``Box((), ())`` and holds one element.

    >>> Box((0, 0), (4, 8)) & Box((2, 4), (6, 12))
    Box(start=(2, 4), stop=(4, 8))
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @staticmethod
    def whole(shape: tuple[int, ...]) -> Box:
        return Box((0,) * len(shape), shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(sub, self.stop, self.start))

    @property
    def size(self) -> int:
        """Number of elements; 1 for a 0-d box, 0 for an empty one."""
        return prod(map(sub, self.stop, self.start))

    def __and__(self, other: Box) -> Box:
        """Overlap of two boxes; an empty box when they do not meet."""
        start = tuple(map(max, self.start, other.start))
        return Box(start, tuple(map(max, start, map(min, self.stop, other.stop))))

    def meets(self, other: Box) -> bool:
        """Whether some element lies in both."""
        return all(map(lt, map(max, self.start, other.start), map(min, self.stop, other.stop)))

    def __contains__(self, other: Box) -> bool:
        return (self & other) == other

    def hull(self, other: Box) -> Box:
        """The smallest box that holds both."""
        return Box(tuple(map(min, self.start, other.start)), tuple(map(max, self.stop, other.stop)))

    def within(self, outer: Box) -> tuple[slice | EllipsisType, ...]:
        """The index that selects this box from an array that holds ``outer``; it gives a view also of a 0-d array."""
        slices = (slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, outer.start, strict=True))
        return (*slices, ...)

    def place_in(self, outer: Box) -> int | None:
        """Where in ``outer``, row-major, this box's elements begin; None where they do not lie together there.

        >>> Box((2, 0), (4, 8)).place_in(Box((0, 0), (4, 8)))
        16
        >>> Box((0, 0), (4, 4)).place_in(Box((0, 0), (4, 8))) is None
        True
        """
        at, one_row = 0, True
        for start, stop, first, last in zip(self.start, self.stop, outer.start, outer.stop, strict=True):
            if start < first or stop > last or not (one_row or (start, stop) == (first, last)):
                return None
            at = at * (last - first) + start - first
            one_row = one_row and stop - start == 1
        return at

    def runs_in(self, outer: Box) -> Iterator[tuple[int, int]]:
        """Where in ``outer``, row-major, this box's elements lie: (first, how many), in the box's own order.

        >>> list(Box((1, 2), (3, 4)).runs_in(Box((0, 0), (3, 4))))
        [(6, 2), (10, 2)]
        """
        for first, size, step, count in self.rows_in(outer):
            yield from zip(range(first, first + count * step, step), repeat(size))

    def rows_in(self, outer: Box) -> Iterator[tuple[int, int, int, int]]:
        """As ``runs_in``, together what lies equally far apart: (first, how many in each, distance, how many runs).

        >>> list(Box((1, 2), (3, 4)).rows_in(Box((0, 0), (3, 4))))
        [(6, 2, 4, 2)]
        """
        if not self.size:
            return
        dims = len(self.start)
        while dims > 1 and (self.start[dims - 1], self.stop[dims - 1]) == (outer.start[dims - 1], outer.stop[dims - 1]):
            dims -= 1
        rows = max(dims - 1, 0)
        steps = [prod(outer.shape[dim + 1 :]) for dim in range(len(self.start))]
        first = sum((a - o) * step for a, o, step in zip(self.start, outer.start, steps, strict=True))
        size, many = prod(self.shape[rows:]), max(rows - 1, 0)
        step, count = (steps[many], self.shape[many]) if rows else (size, 1)
        for index in product(*map(range, self.shape[:many])):
            yield first + sum(i * step for i, step in zip(index, steps[:many], strict=True)), size, step, count


def ordered(box: Box, order: tuple[int, ...]) -> Box:
    """The box with its dims in this order.

    >>> ordered(Box((2, 3, 1), (5, 6, 4)), (2, 0, 1))
    Box(start=(1, 2, 3), stop=(4, 5, 6))
    """
    return Box(tuple(box.start[d] for d in order), tuple(box.stop[d] for d in order))


def hull_of(boxes: Iterable[Box]) -> Box:
    """The smallest box that holds all of these, of which there is one at least."""
    return reduce(Box.hull, boxes)
