"""Views of a tensor: its elements in the same order, some dims counted as several.

Rows that interleave two tensors, heads, groups of heads: what is no box of the tensor is one of a view.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod

from reshard.layout.box import Box
from reshard.layout.cover import boxes_of_range

Shape = tuple[int, ...]


@lru_cache(maxsize=4096)
def factors_of(shape: Shape, view: Shape) -> tuple[Shape, ...]:
    """The dims of a view that each dim of the shape is counted as. Raises ValueError for no view of it.

    >>> factors_of((12, 5), (3, 2, 2, 5)), factors_of((1, 4), (4,)), factors_of((4,), (1, 4, 1))
    (((3, 2, 2), (5,)), ((), (4,)), ((1, 4, 1),))
    """
    found, left = [], list(view)
    for n in shape:
        factors: list[int] = []
        size = 1
        while left and (size != n or left[0] == 1):
            factors.append(left.pop(0))
            size *= factors[-1]
        if size != n:
            raise ValueError(f"{list(view)} is no view of {list(shape)}")
        found.append(tuple(factors))
    if left:
        raise ValueError(f"{list(view)} is no view of {list(shape)}")
    return tuple(found)


def in_view(box: Box, shape: Shape, view: Shape) -> Iterator[tuple[Box, Box]]:
    """A box of a tensor as boxes of a view, each with what it is in the tensor; in row-major order of their beginnings.

    >>> list(in_view(Box((2, 0), (6, 3)), (8, 3), (4, 2, 3)))
    [(Box(start=(2, 0), stop=(6, 3)), Box(start=(1, 0, 0), stop=(3, 2, 3)))]
    >>> [view for _, view in in_view(Box((1, 0), (4, 3)), (8, 3), (4, 2, 3))]
    [Box(start=(0, 1, 0), stop=(1, 2, 3)), Box(start=(1, 0, 0), stop=(2, 2, 3))]
    """
    if shape == view or not (shape or prod(view) > 1):  # one element may have any dims
        yield box, box if shape else Box.whole(view)
        return
    dims = []
    for start, stop, factors in zip(box.start, box.stop, factors_of(shape, view), strict=True):
        parts, at = [], start
        for part in boxes_of_range(factors, start, stop):
            parts.append(((at, at + part.size), part))
            at += part.size
        dims.append(parts)
    for chosen in product(*dims):
        ranges, boxes = [r for r, _ in chosen], [b for _, b in chosen]
        real = Box(tuple(a for a, _ in ranges), tuple(b for _, b in ranges))
        yield real, Box(tuple(n for b in boxes for n in b.start), tuple(n for b in boxes for n in b.stop))
