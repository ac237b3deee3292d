"""Links: where the elements of one tensor lie in another.

A link relates a box of a view of its source to a box of a view of its target, of the same axes in perhaps another
order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import PlanError


class AxisPlace(Struct, frozen=True):
    """Where an axis lies in a tensor: ``total`` of the view's axis in one of its dims, and where the link's begins."""

    dim: int
    total: int
    start: int


class Axis(Struct, frozen=True):
    """An axis of a link; it lies on one side alone where it has one element there that the other need not count."""

    size: int
    source: AxisPlace | None
    target: AxisPlace | None

    def split(self, inner: int) -> tuple[Axis, Axis] | None:
        """As two, of which the inner has so many elements; None where a part of it begins or ends within these."""
        if self.size % inner:
            return None
        sides = [_split(place, inner) if place else (None, None) for place in (self.source, self.target)]
        if any(side is None for side in sides):
            return None
        (a, b), (c, d) = (side or (None, None) for side in sides)
        return Axis(self.size // inner, a, c), Axis(inner, b, d)

    @property
    def whole(self) -> bool:
        """Whether it is all of its axis on both sides."""
        return all(place is not None and place.total == self.size for place in (self.source, self.target))


def _split(place: AxisPlace, inner: int) -> tuple[AxisPlace, AxisPlace] | None:
    if place.total % inner or place.start % inner:
        return None
    return AxisPlace(place.dim, place.total // inner, place.start // inner), AxisPlace(place.dim, inner, 0)


class Link(Struct, frozen=True):
    """``axes`` in the order in which the source has them; ``target`` counts those in the order of the target."""

    source: str
    axes: tuple[Axis, ...]
    target: tuple[int, ...]

    def in_order(self, *, target: bool) -> Iterator[tuple[AxisPlace, int]]:
        """The axes of one side, outermost first, and their numbers."""
        numbers: Iterable[int] = self.target if target else range(len(self.axes))
        for number in numbers:
            place = self.axes[number].target if target else self.axes[number].source
            if place is not None and place.total > 1:
                yield place, number

    def split(self, number: int, inner: int) -> Link | None:
        two = self.axes[number].split(inner)
        if two is None:
            return None
        axes = (*self.axes[:number], *two, *self.axes[number + 1 :])
        moved = (n + (n > number) for n in self.target)
        target = chain.from_iterable((n, n + 1) if n == number else (n,) for n in moved)
        return replace(self, axes=axes, target=tuple(target))

    def merged(self) -> Link:
        """Neighbours on both sides as one axis, where the inner is whole."""
        for number in range(len(self.axes) - 1):
            outer, inner = self.axes[number : number + 2]
            at = self.target.index(number)
            follows = at + 1 < len(self.target) and self.target[at + 1] == number + 1
            if follows and inner.whole and _same_dims(outer, inner):
                one = Axis(outer.size * inner.size, *(_widened(o, inner.size) for o in (outer.source, outer.target)))
                left = [n - (n > number) for n in self.target if n != number + 1]
                axes = (*self.axes[:number], one, *self.axes[number + 2 :])
                return replace(self, axes=axes, target=tuple(left)).merged()
        return self

    def bounds(self) -> set[tuple[int, int]]:
        """For each dim of the target, how many elements lie together below each axis."""
        return {(place.dim, below) for place, _, below in self._below(target=True)}

    def _below(self, *, target: bool) -> Iterator[tuple[AxisPlace, int, int]]:
        sizes: dict[int, int] = {}
        for place, number in reversed(list(self.in_order(target=target))):
            below = sizes.get(place.dim, 1)
            yield place, number, below
            sizes[place.dim] = below * place.total

    def divided(self, bounds: Iterable[tuple[int, int]], *, target: bool) -> Link:
        """With axes split so that they begin where these do. Raises PlanError where a part lies across."""
        for dim, bound in bounds:
            for place, number, below in self._below(target=target):
                if place.dim == dim and below < bound < below * place.total:
                    made = self.split(number, bound // below) if bound % below == 0 else None
                    if made is None:
                        raise PlanError(
                            f"{self.source}: parts of {place.total * below} and of {bound} rows do not fit together"
                        )
                    return made.divided(bounds, target=target)
        return self


def _same_dims(one: Axis, other: Axis) -> bool:
    pairs = ((one.source, other.source), (one.target, other.target))
    return all(a is not None and b is not None and a.dim == b.dim for a, b in pairs)


def _widened(place: AxisPlace | None, size: int) -> AxisPlace | None:
    return AxisPlace(place.dim, place.total * size, place.start * size) if place else None
