"""Which source ranks' files the conversion of one target rank needs, from strategies alone: no shape is known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

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
    """Local source ranks that hold what ``rank`` of ``target`` gets, one for each cell. In a dim in which some rank
    would need more than it holds itself that is all of the dim, or of what the optimizer shard cut of it.
    """
    local = rank % target.devices if target.devices > 1 else rank
    own = local % source.devices
    cells, holders = source.cells(), source.holders()
    turn = holders[cells[own]].index(own)
    spans = [_span(source, target, dim, part) for dim, part in enumerate(cells[own])]
    return {group[turn % len(group)] for group in (holders[cell] for cell in product(*spans))}


def _span(source: Sharding, target: Sharding, dim: int, part: int) -> Sequence[int]:
    """The parts of a dim that a rank needs which holds ``part`` of it."""
    if not _gathers(source, target, dim):
        return (part,)
    if dim == 0 and source.opt_parts > 1 and _mapped(source, target) == _mapped(target, source):
        first = part - part % source.opt_parts
        return range(first, first + source.opt_parts)
    return range(source.parts[dim])


def _mapped(sharding: Sharding, other: Sharding) -> tuple[int, list[int]]:
    """How the tensor map alone cuts dim 0: into how many parts, and which each rank of either has."""
    ranks, cells = max(sharding.devices, other.devices), sharding.cells()
    parts = [cells[rank % sharding.devices][0] // sharding.opt_parts for rank in range(ranks)]
    return sharding.parts[0] // sharding.opt_parts, parts


def _gathers(source: Sharding, target: Sharding, dim: int) -> bool:
    """Whether some rank's part of a dim is not within the part that it holds in the source."""
    n, m = source.parts[dim], target.parts[dim]
    for rank in range(max(source.devices, target.devices)):
        held, wanted = source.cells()[rank % source.devices][dim], target.cells()[rank % target.devices][dim]
        if wanted * n < held * m or (wanted + 1) * n > (held + 1) * m:
            return True
    return False
