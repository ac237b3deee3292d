"""Tensors made by links, whatever their sources' cuts.

Views differ from link to link; so axes are split until all of one tensor agree.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain, pairwise, product
from math import prod

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import PlanError
from reshard.index import ZEROS, TensorSpec
from reshard.layout.box import Box
from reshard.layout.cover import boxes_of_range
from reshard.layout.view import Shape, factors_of, in_view
from reshard.names.links import Link
from reshard.names.scaling import Lying, scales_of
from reshard.planning.catalog import Held, Loose, Shard, Tensor, is_viewed, part_of


class _Shards:
    """A source's shards in a view, found by where they begin: in the first dim in which any is longer than 1."""

    def __init__(self, tensor: Tensor, groups: Sequence[Shape]) -> None:
        self.tensor, self.groups = tensor, tuple(groups)
        made = (part for shard in tensor.shards for part in _divided(shard, groups))
        self._shards = sorted(made, key=lambda s: s.box.start)
        self._starts = [shard.box.start for shard in self._shards]
        self._longest = [max(sizes) for sizes in zip(*(shard.box.shape for shard in self._shards), strict=True)]
        self.sizes = tuple(chain.from_iterable(groups))
        outer = [h.outer for shard in self._shards for h in shard.held if h.outer]
        self.reaches = [n > 1 or any(o.stop[d] - o.start[d] > 1 for o in outer) for d, n in enumerate(self.sizes)]

    def near(self, box: Box) -> Iterator[Shard]:
        first, last = 0, len(self._shards)
        if self._longest:
            sizes = enumerate(zip(self._longest, box.shape, strict=True))
            dim = next((d for d, most in sizes if max(most) > 1), 0)
            at = box.start[:dim]  # what meets the box begins there, too
            first = bisect_left(self._starts, (*at, box.start[dim] - self._longest[dim] + 1))
            last = bisect_left(self._starts, (*at, box.stop[dim]))
        for shard in self._shards[first:last]:
            if shard.box.meets(box):
                yield shard


def _divided(shard: Shard, groups: Sequence[Shape]) -> Iterator[Shard]:
    """The shard with each dim counted as several."""
    for part, box in _boxes(shard.box, groups):
        yield Shard(box, tuple(_held(held, shard, part, (box, groups)) for held in shard.held), shard.expected)


def _held(held: Held, shard: Shard, part: Box, made: tuple[Box, Sequence[Shape]]) -> Held:
    inner, groups = made
    if held.file == ZEROS:
        return Held(ZEROS, ())
    outer = _one_box(held.outer or shard.box, groups)
    if outer is None:
        whole = replace(held, outer=held.outer or shard.box)
        outer, extents = inner, whole.extents_of(part, _itemsize(whole))
    else:
        extents = held.extents
    ends = list(accumulate(map(len, groups), initial=0))
    order = chain.from_iterable(range(ends[dim], ends[dim + 1]) for dim in held.order)
    return Held(held.file, extents, outer, tuple(order))


def _itemsize(held: Held) -> int:
    """Bytes of an element of what is held."""
    return sum(extent.nbytes for extent in held.extents) // (held.outer.size if held.outer else 1)


def _boxes(box: Box, groups: Sequence[Shape]) -> Iterator[tuple[Box, Box]]:
    """A box with each dim counted as several: as one box where it is, else as those that make it up."""
    one = _one_box(box, groups)
    if one is not None:
        yield box, one
        return
    found = [(Box((), ()), Box((), ()))]
    for start, stop, group in zip(box.start, box.stop, groups, strict=True):
        grown, at = [], start
        for part in boxes_of_range(group, start, stop):
            own = Box((at,), (at + part.size,))
            at += part.size
            grown += [(_beside(a, own), _beside(b, part)) for a, b in found]
        found = grown
    yield from found


def _beside(one: Box, other: Box) -> Box:
    return Box((*one.start, *other.start), (*one.stop, *other.stop))


def _one_box(box: Box, groups: Sequence[Shape]) -> Box | None:
    """A range is a box of several dims where whole rows of the first make it up; it may reach beyond that."""
    start: list[int] = []
    stop: list[int] = []
    for a, b, group in zip(box.start, box.stop, groups, strict=True):
        row = prod(group[1:])
        if row > 1 and (a % row or b % row):
            return None
        start += (a // max(row, 1), *(0 for _ in group[1:]))
        stop += (b // max(row, 1), *group[1:])
    return Box(tuple(start), tuple(stop))


class _LaidLink(Struct, frozen=True):
    """A link with the shards of its source in the view in which it counts them.

    ``axes``: for each dim of that view the number of its axis; None for one that is counted beside.
    """

    link: Link
    shards: _Shards
    axes: tuple[int | None, ...]

    @property
    def box(self) -> Box:
        """What of the source the link takes."""
        start, stop = [], []
        for number, size in zip(self.axes, self.shards.sizes, strict=True):
            place = self.link.axes[number].source if number is not None else None
            start.append(place.start if place else 0)
            stop.append(start[-1] + (self.link.axes[number].size if number is not None else size))
        return Box(tuple(start), tuple(stop))


class _TargetView:
    """The view of a target: its axes, and before some of them dims of one element that sources have beside theirs."""

    def __init__(self, shape: Shape, laid: Sequence[_LaidLink]) -> None:
        self._factors = _factors(shape, [each.link for each in laid])
        self._numbers = [self._numbered(each.link) for each in laid]  # of each link's axes: the factor
        self._beside = [self._found_beside(*pair) for pair in zip(laid, self._numbers, strict=True)]
        extra = sorted({key for found in self._beside for key in found.values()})
        dims = sorted([*extra, *((factor, _LAST) for factor in range(len(self._flat)))])
        self._at = {key: at for at, key in enumerate(dims)}
        self.view = tuple(self._flat[factor] if kind == _LAST else 1 for factor, kind in dims)

    @property
    def _flat(self) -> tuple[int, ...]:
        return tuple(chain.from_iterable(self._factors))

    def _numbered(self, link: Link) -> dict[int, int]:
        """For each axis of a link that the target has the factor that it is."""
        axes = list(link.in_order(target=True))
        found: dict[int, int] = {}
        number = 0
        for factors in self._factors:
            for n in factors:
                if n > 1:
                    found[axes.pop(0)[1]] = number
                number += 1
        return found

    def _found_beside(self, laid: _LaidLink, numbers: Mapping[int, int]) -> dict[int, tuple[int, int]]:
        """For each dim of a source that is beside, before which factor of the target it comes, and which it is of
        those.
        """
        found: dict[int, tuple[int, int]] = {}
        follows, count = len(self._flat), 0
        for dim in reversed(range(len(laid.axes))):
            axis = laid.axes[dim]
            if axis is not None and axis in numbers:
                follows, count = numbers[axis], 0
            elif laid.shards.reaches[dim]:
                count += 1
                found[dim] = (follows, _LAST - count)
        return found

    def lying(self, number: int, laid: _LaidLink) -> Lying:
        """How a link lies in the view."""
        numbers, beside, link = self._numbers[number], self._beside[number], laid.link
        to: list[tuple[int, int] | None] = []
        fixed = dict.fromkeys(range(len(self.view)), 0)
        for axis, factor in numbers.items():
            place = link.axes[axis].target
            fixed[self._at[factor, _LAST]] = place.start if place else 0
        for dim, axis_of in enumerate(laid.axes):
            if axis_of is not None and axis_of in numbers:
                at = self._at[numbers[axis_of], _LAST]
                to.append((at, fixed.pop(at)))
            elif dim in beside:
                at = self._at[beside[dim]]
                del fixed[at]
                to.append((at, 0))
            else:
                to.append(None)
        box = laid.box
        ranges = tuple(zip(box.start, box.shape, strict=True))
        return Lying(laid.shards.tensor, laid.shards.groups, ranges, tuple(to), fixed)

    def shards(self, lying: Lying, laid: _LaidLink) -> Iterator[Shard]:
        """What a link brings."""
        box = laid.box
        to = {dim: (at[0], at[1] - box.start[dim]) for dim, at in enumerate(lying.to) if at is not None}
        for shard in laid.shards.near(box):
            part = self._moved(shard.box & box, to, lying.fixed)
            yield Shard(part, tuple(self._moved_held(h, part, to, lying.fixed) for h in shard.held), shard.expected)

    def _moved(self, box: Box, to: Mapping[int, tuple[int, int]], fixed: Mapping[int, int]) -> Box:
        start, stop = [0] * len(self.view), [0] * len(self.view)
        for at, first in fixed.items():
            start[at], stop[at] = first, first + 1
        for dim, (at, shift) in to.items():
            start[at], stop[at] = box.start[dim] + shift, box.stop[dim] + shift
        return Box(tuple(start), tuple(stop))

    def _moved_held(self, held: Held, part: Box, to: Mapping[int, tuple[int, int]], fixed: Mapping[int, int]) -> Held:
        if held.outer is None:
            return held  # zeros
        outer = self._moved(held.outer, to, fixed)
        dims = held.order or range(len(held.outer.start))
        order = [to[dim][0] for dim in dims if dim in to]
        for at in sorted(fixed):  # of one element: before what follows it, so that the order stays as it is
            order.insert(next((i for i, other in enumerate(order) if other > at), len(order)), at)
        turned = tuple(order) if order != sorted(order) else ()
        return Held(held.file, held.extents, None if outer == part else outer, turned)


def unviewed(tensor: Tensor) -> Tensor:
    """The tensor with shards that lie in its own shape: more of them. As it is, where it has scales, or where a shard
    is stored with its dims in another order.
    """
    turned = any(held.order for shard in tensor.shards for held in shard.held)
    if not is_viewed(tensor) or turned or tensor.scales is not None:
        return tensor
    groups = factors_of(tensor.spec.shape, tensor.view)
    shards = (part for shard in tensor.shards for part in _in_own_shape(shard, groups, tensor.spec.itemsize))
    return replace(tensor, shards=Loose(tuple(sorted(shards, key=lambda s: s.box))), view=())


def _in_own_shape(shard: Shard, groups: Sequence[Shape], itemsize: int) -> Iterator[Shard]:
    """A shard of a view, whose dims are counted as one within each group."""
    ends = list(accumulate(map(len, groups), initial=0))
    start, stop = shard.box.start, shard.box.stop
    dims = [list(_ranges(start[a:b], stop[a:b], group)) for (a, b), group in zip(pairwise(ends), groups, strict=True)]
    for chosen in product(*dims):
        part = Box(tuple(n for _, of in chosen for n in of.start), tuple(n for _, of in chosen for n in of.stop))
        made = Box(tuple(of.start[0] for of, _ in chosen), tuple(of.stop[0] for of, _ in chosen))
        yield Shard(made, tuple(part_of(held, shard.box, part, itemsize) for held in shard.held), shard.expected)


def _ranges(start: Shape, stop: Shape, group: Shape) -> Iterator[tuple[Box, Box]]:
    """The ranges that a box is of the dim that a group counts, with the boxes that these are."""
    cut = max((at for at, n in enumerate(group) if stop[at] - start[at] < n), default=0)  # whole behind it
    below = prod(group[cut + 1 :])
    for outer in product(*(range(a, b) for a, b in zip(start[:cut], stop[:cut], strict=True))):
        first = 0
        for n, size in zip(outer, group[1:], strict=False):
            first = (first + n) * size
        a, b = (start[cut], stop[cut]) if group else (0, 1)
        box = Box((*outer, *start[cut:]), (*(n + 1 for n in outer), *stop[cut:]))
        yield Box(((first + a) * below,), ((first + b) * below,)), box


_LAST = 1 << 30


class Maker:
    """Makes tensors of others by links. What it finds out about a source serves all tensors that are made of it."""

    def __init__(self, sources: Mapping[str, Tensor]) -> None:
        self._sources = sources
        self._shards: dict[tuple[str, tuple[Shape, ...]], _Shards] = {}

    def made(self, name: str, spec: TensorSpec, links: Sequence[Link], zeros: Sequence[Box] = ()) -> Tensor:
        """The tensor that links make of their sources. Where it lies nowhere else it is ``zeros``.

        Sources whose views fit together in none are taken row by row, out of what they lie in.

        Raises PlanError for parts that fit together in no way.
        """
        try:
            return self._made(name, spec, links, zeros)
        except PlanError:
            sources = {link.source: unviewed(self._sources[link.source]) for link in links}
            if not any(made != self._sources[source] for source, made in sources.items()):
                raise
            return Maker(sources)._made(name, spec, links, zeros)

    def _made(self, name: str, spec: TensorSpec, links: Sequence[Link], zeros: Sequence[Box]) -> Tensor:
        laid = [self._laid(link) for link in self._agreeing(links)]
        target = _TargetView(spec.shape, laid)
        lying = [target.lying(number, each) for number, each in enumerate(laid)]
        shards = [shard for pair in zip(lying, laid, strict=True) for shard in target.shards(*pair)]
        for box in zeros:
            shards += [Shard(view, (Held(ZEROS, ()),)) for _, view in in_view(box, spec.shape, target.view)]
        sources = [self._sources[link.source] for link in links]
        return Tensor(
            name,
            spec,
            Loose(tuple(sorted(shards, key=lambda s: s.box))),
            known=all(source.known for source in sources),
            compared=any(source.compared for source in sources),
            view=() if target.view == spec.shape else target.view,
            scales=scales_of(name, target.view, lying),
        )

    def _agreeing(self, links: Sequence[Link]) -> list[Link]:
        """Links whose axes begin and end alike in the target, and with those of their sources' views."""
        made = list(links)
        while True:
            each = [link.bounds() for link in made]
            bounds = sorted(set().union(*each))
            if all(len(own) == len(bounds) for own in each) and not any(self._sources[k.source].view for k in made):
                return made
            following = []
            for link in made:
                within = link.divided(_bounds_of_view(self._sources[link.source]), target=False)
                following.append(within.divided(bounds, target=True))
            if following == made:
                return made
            made = following

    def _laid(self, link: Link) -> _LaidLink:
        source = self._sources[link.source]
        axes = list(link.in_order(target=False))
        groups: list[Shape] = []
        numbers: list[int | None] = []
        for n in source.view or source.spec.shape:
            group: list[int] = []
            while n > 1 and prod(group) < n:
                place, number = axes.pop(0)
                group.append(place.total)
                numbers.append(number)
            if not group:  # of one element, or of none
                group.append(n)
                numbers.append(None)
            groups.append(tuple(group))
        key = (link.source, tuple(groups))
        if key not in self._shards:
            self._shards[key] = _Shards(source, groups)
        return _LaidLink(link, self._shards[key], tuple(numbers))


def _bounds_of_view(tensor: Tensor) -> list[tuple[int, int]]:
    if not tensor.view:
        return []
    factors = enumerate(factors_of(tensor.spec.shape, tensor.view))
    return [(dim, prod(group[k + 1 :])) for dim, group in factors for k in range(len(group))]


def _factors(shape: Shape, links: Sequence[Link]) -> list[Shape]:
    """Each dim of a target as all its links count it."""
    found: list[Shape] = []
    for dim, n in enumerate(shape):
        bounds = sorted({below for link in links for d, below in link.bounds() if d == dim} | {1, n})
        found.append(tuple(b // a for a, b in pairwise(bounds))[::-1] if n > 1 else (n,))
    return found
