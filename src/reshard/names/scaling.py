"""Scales of a tensor that is made of others' codes: which scale counts for which block of its view."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import gcd

from msgspec import Struct

from reshard.errors import PlanError
from reshard.index import TensorSpec
from reshard.layout.box import Box
from reshard.planning.catalog import Held, Loose, Scales, Shard, Tensor


class Lying(Struct, frozen=True):
    """How a link lies in its target.

    Attributes:
        source: a tensor of codes.
        groups: for each dim of its view the sizes of those that the link counts it as.
        ranges: for each of those where the link begins and how many it has.
        to: for each of those the dim of the target's view and where it begins there; None for one counted beside.
        fixed: the other dims of the target's view, and where it lies in them.
    """

    source: Tensor
    groups: tuple[tuple[int, ...], ...]
    ranges: tuple[tuple[int, int], ...]
    to: tuple[tuple[int, int] | None, ...]
    fixed: Mapping[int, int]


_RowRange = tuple[int, int]
"""First and how many."""


def scales_of(name: str, view: tuple[int, ...], links: Sequence[Lying]) -> Scales | None:
    """None where no source is of codes. Raises PlanError where some are and some are not."""
    coded = [link for link in links if link.source.scales is not None]
    if not coded:
        return None
    if len(coded) < len(links):
        plain = next(link.source.name for link in links if link.source.scales is None)
        raise PlanError(f"{name}: {coded[0].source.name} is of codes with scales, and {plain} is not")
    block = _block(view, coded)
    shape = tuple(-(-n // b) for n, b in zip(view, block, strict=True))
    shards = [shard for link in coded for shard in _shards(link, block, len(view))]
    dtypes = {link.source.scales.of.spec.dtype for link in coded if link.source.scales}
    if len(dtypes) > 1:
        raise PlanError(f"{name}: its scales are of {', '.join(sorted(dtypes))}")
    spec = TensorSpec(next(iter(dtypes)), shape)
    return Scales(Tensor(f"scales of {name}", spec, Loose(tuple(sorted(shards, key=lambda s: s.box)))), block)


def _block(view: tuple[int, ...], links: Sequence[Lying]) -> tuple[int, ...]:
    """For each dim of the view the largest block in which every link has one scale."""
    block = [0] * len(view)
    for link in links:
        for at in link.fixed:
            block[at] = gcd(block[at], 1)
        for at, size in _innermost(link, view):
            block[at] = gcd(block[at], size)
    return tuple(b or 1 for b in block)


def _innermost(link: Lying, view: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """For each dim of the target that a link has, in what blocks its scales lie there."""
    scales = link.source.scales
    dims = iter(range(len(link.ranges)))
    for group, size in zip(link.groups, scales.block if scales else (), strict=True):
        numbers = [next(dims) for _ in group]
        for number in numbers:
            to = link.to[number]
            if to is None:
                continue
            at, first = to
            start, count = link.ranges[number]
            end = first + count
            inner = size if number == numbers[-1] else 1
            inner = gcd(inner, group[-1]) if number == numbers[-1] and len(group) > 1 else inner
            yield at, gcd(inner, start - first, first, 0 if end == view[at] else end)


def _shards(link: Lying, block: tuple[int, ...], ndim: int) -> Iterator[Shard]:
    """The scales of a link: boxes of the target's scales, each with the box of the source's that it is."""
    scales = link.source.scales
    if scales is None:
        return
    of_dims = []
    dims = iter(range(len(link.ranges)))
    for group, size in zip(link.groups, scales.block, strict=True):
        of_dims.append(list(_runs(link, group, [next(dims) for _ in group], (size, block))))
    for chosen in product(*of_dims):
        there = Box(tuple(run[0] for run, _, _ in chosen), tuple(sum(run) for run, _, _ in chosen))
        starts = {at: first // block[at] for at, first in link.fixed.items()}
        order = []
        for _, at, beginnings in chosen:
            starts |= beginnings
            order.append(at)
        yield from _cut(scales.of, there, starts, order, ndim)


def _runs(
    link: Lying, group: tuple[int, ...], numbers: list[int], sizes: tuple[int, tuple[int, ...]]
) -> Iterator[tuple[_RowRange, int | None, dict[int, int]]]:
    """Of one dim of the source's view: a run of its scales, the target's dim along which it lies, and where it begins
    in each of the target's dims that it concerns.
    """
    size, block = sizes
    *outer, last = numbers
    outers = [range(link.ranges[n][0], sum(link.ranges[n])) for n in outer]
    to = link.to[last]
    start, count = link.ranges[last]
    own = block[to[0]] if to else count
    for index in product(*outers):
        begins: dict[int, int] = {}
        place = 0
        for n, i in zip(outer, index, strict=True):
            place = place * group[numbers.index(n)] + i
            there = link.to[n]
            if there is not None:
                begins[there[0]] = there[1] + i - link.ranges[n][0]
        place *= group[-1]
        for at in range(0, count, own):
            first = (place + start + at) // size
            here = {**begins, **({to[0]: (to[1] + at) // own} if to else {})}
            if own == size and to is not None:  # the scales lie there as they lie here
                yield (first, -(-count // own)), to[0], here
                break
            yield (first, 1), to[0] if to else None, here


def _cut(
    scale: Tensor, there: Box, starts: Mapping[int, int], order: Sequence[int | None], ndim: int
) -> Iterator[Shard]:
    for shard in scale.shards:
        part = shard.box & there
        if not part.size:
            continue
        start, stop = [starts.get(at, 0) for at in range(ndim)], [starts.get(at, 0) + 1 for at in range(ndim)]
        for dim, at in enumerate(order):
            if at is not None:
                start[at] += part.start[dim] - there.start[dim]
                stop[at] = start[at] + part.shape[dim]
        itemsize = scale.spec.itemsize
        held = (
            Held(h.file, h.piece(shard.box).extents_of(part, itemsize), None, _turned(order, h.order, ndim))
            for h in shard.held
        )
        yield Shard(Box(tuple(start), tuple(stop)), tuple(held), shard.expected)


def _turned(order: Sequence[int | None], stored: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Which dim of the target each dim of scales that are ``stored`` so is; those of one element stand before what
    follows them, so that most lie as they did: then it is ().
    """
    dims = [at for dim in stored or range(len(order)) if (at := order[dim]) is not None]
    for at in range(ndim):
        if at not in dims:
            dims.insert(next((i for i, other in enumerate(dims) if other > at), len(dims)), at)
    return tuple(dims) if dims != sorted(dims) else ()
