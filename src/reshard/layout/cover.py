"""What boxes cover of a tensor: gaps, overlaps, the boxes of elements that lie one after the other; and which boxes are
near one of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from math import prod

from reshard.layout.box import Box


def gaps(boxes: Iterable[Box], whole: Box) -> tuple[Box, ...]:
    """What the boxes leave uncovered of ``whole``, as boxes that do not overlap.

    >>> gaps([Box((0, 0), (2, 4)), Box((2, 0), (4, 1))], Box((0, 0), (4, 4)))
    (Box(start=(2, 1), stop=(4, 4)),)
    >>> gaps([], Box((), ()))
    (Box(start=(), stop=()),)
    """
    found: list[Box] = []
    left = [whole] if whole.size else []
    for box in sorted(boxes):
        if box.start:  # no later box begins before this one
            found += (rest for rest in left if rest.stop[0] <= box.start[0])
            left = [rest for rest in left if rest.stop[0] > box.start[0]]
        left = [part for rest in left for part in _without(rest, box)]
    return (*found, *left)


def _without(rest: Box, box: Box) -> Iterator[Box]:
    """What of ``rest`` lies outside ``box``: slabs before and after it, dim by dim."""
    both = rest & box
    if not both.size:
        yield rest
        return
    start, stop = list(rest.start), list(rest.stop)
    for dim, (first, last) in enumerate(zip(both.start, both.stop, strict=True)):
        for low, high in ((start[dim], first), (last, stop[dim])):
            if low < high:
                yield Box((*start[:dim], low, *start[dim + 1 :]), (*stop[:dim], high, *stop[dim + 1 :]))
        start[dim], stop[dim] = first, last


def overlap(boxes: Sequence[Box]) -> tuple[Box, Box] | None:
    """Two boxes that share elements, None where none do. Empty boxes share none.

    >>> overlap([Box((0,), (4,)), Box((4,), (6,)), Box((3,), (5,))])
    (Box(start=(0,), stop=(4,)), Box(start=(3,), stop=(5,)))
    """
    ordered = sorted(box for box in boxes if box.size)
    near: list[Box] = []
    for box in ordered:
        if box.start:
            near = [other for other in near if other.stop[0] > box.start[0]]
        for other in near:
            if other.meets(box):
                return other, box
        near.append(box)
    return None


def boxes_of_range(shape: tuple[int, ...], start: int, stop: int) -> tuple[Box, ...]:
    """Elements ``start`` to ``stop`` of a tensor, counted row-major, as boxes in that order: 2n - 1 of n dims at most.

    >>> boxes_of_range((3, 4), 2, 9)
    (Box(start=(0, 2), stop=(1, 4)), Box(start=(1, 0), stop=(2, 4)), Box(start=(2, 0), stop=(3, 1)))
    >>> boxes_of_range((), 0, 1)
    (Box(start=(), stop=()),)
    """
    if start >= stop:
        return ()
    if not shape:
        return (Box((), ()),)
    row = prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # within one row
        return _in_row(shape, last, start - last * row, stop - last * row)
    middle = (Box((first, *(0,) * len(shape[1:])), (last, *shape[1:])),) if first < last else ()
    before = _in_row(shape, first - 1, start - (first - 1) * row, row) if start < first * row else ()
    after = _in_row(shape, last, 0, stop - last * row)
    return (*before, *middle, *after)


def _in_row(shape: tuple[int, ...], row: int, start: int, stop: int) -> tuple[Box, ...]:
    return tuple(Box((row, *box.start), (row + 1, *box.stop)) for box in boxes_of_range(shape[1:], start, stop))


class Shelf:
    """Boxes sorted by where they begin, to find those near another without looking at all.

    >>> Shelf([Box((4, 0), (8, 2)), Box((0, 0), (4, 2)), Box((8, 0), (9, 2))]).near(Box((3, 0), (5, 2)))
    [1, 0]
    """

    def __init__(self, boxes: Sequence[Box]) -> None:
        self._numbers = sorted(range(len(boxes)), key=lambda number: boxes[number].start)
        starts = [boxes[number].start for number in self._numbers]
        ends = zip(starts[0], starts[-1], strict=True) if starts else ()
        self._dim = next((dim for dim, (first, last) in enumerate(ends) if first != last), -1)
        if self._dim >= 0:
            self._starts = [start[self._dim] for start in starts]
            self._longest = max([box.stop[self._dim] - box.start[self._dim] for box in boxes])

    def near(self, box: Box) -> Sequence[int]:
        """The numbers of all that share elements with a box, and of others, in the order of where they begin."""
        if self._dim < 0:
            return self._numbers
        first = bisect_left(self._starts, box.start[self._dim] - self._longest + 1)
        return self._numbers[first : bisect_left(self._starts, box.stop[self._dim])]
