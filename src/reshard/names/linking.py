"""From the dims of two tensors to the link between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import StrategyError
from reshard.names.dims import Axes, AxisRange, Dims, shown, slots_of
from reshard.names.links import Axis, AxisPlace, Link

_INDEX = 1 << 60
"""In a link that serves many: where one element of an axis is meant, which is told later."""


class SharedDims(Struct, frozen=True):
    """How two tensors share elements: the dims of each; one of them may hold the other as a ``section``.

    ``index``: the axis of which one element is meant, where a name counts it, as of experts.
    """

    source: Dims
    target: Dims
    section: str = ""
    index: str = ""


def link_of(name: str, shape: tuple[int, ...], part: SharedDims, axes: Axes) -> tuple[Link, tuple[int, ...]]:
    """The link, and the target's shape. ``name`` and ``shape`` are the source's. Where one element of an axis is meant
    ``at_index`` says which.

    A dim that is the same on both sides need not be known: it is as large as the source's.

    Raises StrategyError naming an axis whose size is not known, or that only one side has.
    """
    alike = list(_alike(part.source, part.target))
    source = _labelled(part.source, {s: (f"={n}", shape[s]) for n, (s, _) in enumerate(alike)}, part, axes)
    target = _labelled(part.target, {t: (f"={n}", shape[s]) for n, (s, t) in enumerate(alike)}, part, axes)
    for one, other, dims in ((source, target, part.source), (target, source, part.target)):
        for label, slot in one.items():
            if slot.size != (other[label].size if label in other else 1):
                raise StrategyError(f"{shown(dims)}: {label} of {slot.size} is on this side alone")
    labels = list(dict.fromkeys((*source, *target)))
    made = tuple(
        Axis((source.get(at) or target[at]).size, _place(source.get(at)), _place(target.get(at))) for at in labels
    )
    order = tuple(labels.index(label) for label in dict.fromkeys((*target, *labels)))
    sizes = (prod(slot.total for slot in target.values() if slot.dim == dim) for dim in range(len(part.target)))
    return Link(name, made, order).merged(), tuple(sizes)


def at_index(link: Link, source: str, index: int) -> Link:
    """The link of another source, where one element of an axis is meant."""
    axes = (
        Axis(axis.size, _at(axis.source, index), _at(axis.target, index)) if axis.size == 1 else axis
        for axis in link.axes
    )
    return Link(source, tuple(axes), link.target)


def _at(place: AxisPlace | None, index: int) -> AxisPlace | None:
    return AxisPlace(place.dim, place.total, index) if place and place.start == _INDEX else place


def _alike(source: Dims, target: Dims) -> Iterator[tuple[int, int]]:
    """Dims of the source and of the target that are one and the same."""
    left = list(range(len(target)))
    for number, dim in enumerate(source):
        same = next((other for other in left if target[other] == dim), None)
        if same is not None:
            left.remove(same)
            yield number, same


def _labelled(dims: Dims, known: Mapping[int, tuple[str, int]], part: SharedDims, axes: Axes) -> dict[str, AxisRange]:
    found: dict[str, AxisRange] = {}
    for number, dim in enumerate(dims):
        if number in known:
            label, size = known[number]
            found[label] = AxisRange(label, number, size, 0, size)
            continue
        for slot in slots_of(dim, number, axes, part.section):
            found[slot.label] = slot if slot.label != part.index else replace(slot, start=_INDEX, size=1)
    return found


def _place(slot: AxisRange | None) -> AxisPlace | None:
    return AxisPlace(slot.dim, slot.total, slot.start) if slot else None
