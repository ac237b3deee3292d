"""Which source ranks' files the conversion of one target rank needs, from strategies alone: no shape is known."""

from __future__ import annotations

from itertools import product
from math import gcd

from reshard.layout.stages import AnySharding, Strategy
from reshard.layout.tensor import Sharding


def needed_ranks(source: Strategy, target: Strategy | None, rank: int) -> tuple[int, ...]:
    """Source ranks, ascending, whose files together hold what target ``rank`` gets; of replicas the one that stands
    where ``rank`` stands.

    Every source stage that has a tensor of the target rank's stage, or one that the target does not know, counts with
    the ranks that any tensor needs.
    """
    devices = target.devices if target else 1
    stage = rank // devices
    known = target.names() if target else frozenset()
    mine = target.stages[stage] if target and stage < len(target.stages) else {}
    pairs: set[tuple[Sharding, Sharding]] = set()
    stages: set[int] = set()
    for number, entries in enumerate(source.stages):
        for name, entry in entries.items():
            if target is None or name in mine or name not in known:
                stages.add(number)
            cut = _sharding(entry)
            if target is None:
                pairs.add((cut, Sharding.whole(1, len(cut.parts))))
            elif name in mine:
                pairs.add((cut, _sharding(mine[name])))
    needed = {r for ours, theirs in pairs for r in _holders(ours, theirs, rank)}
    return tuple(sorted(s * source.devices + r for s in stages for r in needed))


def _sharding(entry: AnySharding) -> Sharding:
    return entry if isinstance(entry, Sharding) else entry.sharding


def _holders(source: Sharding, target: Sharding, rank: int) -> set[int]:
    """Local source ranks that hold what ``rank`` of ``target`` gets, one for each cell."""
    local = rank % target.devices if target.devices > 1 else rank
    own = local % source.devices
    cells, holders = source.cells(), source.holders()
    turn = holders[cells[own]].index(own)
    spans = [_span(source, target, dim, part) for dim, part in enumerate(cells[own])]
    return {group[turn % len(group)] for group in (holders[cell] for cell in product(*spans))}


def _span(source: Sharding, target: Sharding, dim: int, part: int) -> range:
    """The parts of a dim that a rank needs which holds ``part`` of it: of as many equal blocks as both sides cut alike,
    every rank in the same, all that its own holds.
    """
    parts = source.parts[dim]
    most = gcd(parts, target.parts[dim])
    blocks = next(n for n in range(most, 0, -1) if most % n == 0 and _alike(source, target, dim, n))
    size = parts // blocks
    return range(part - part % size, part - part % size + size)


def _alike(source: Sharding, target: Sharding, dim: int, blocks: int) -> bool:
    """Whether every rank's part of a dim lies on both sides in the same of so many blocks."""
    (n, held), (m, wanted) = ((side.parts[dim], side.cells()) for side in (source, target))
    return all(
        held[rank % source.devices][dim] * blocks // n == wanted[rank % target.devices][dim] * blocks // m
        for rank in range(max(source.devices, target.devices))
    )
