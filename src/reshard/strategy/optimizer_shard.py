"""Optimizer parallel: which weights its replicas share on dim 0, by MindSpore's conditions."""

from __future__ import annotations

from itertools import islice

from msgspec import Struct
from msgspec.structs import replace

from reshard.index import TensorSpec
from reshard.layout.tensor import Sharding

_SERVER = 8


class OptimizerParallel(Struct, frozen=True):
    """The settings of a job.

    Attributes:
        threshold_nbytes: a weight whose full size is below stays as it is.
        size: ranks that share a weight; -1 for all its replicas.
    """

    enabled: bool = False
    threshold_nbytes: int = 64 << 10
    size: int = -1


def with_optimizer_shard(
    sharding: Sharding, spec: TensorSpec, settings: OptimizerParallel, first_rank: int = 0
) -> Sharding:
    """The cut with dim 0 shared among replicas, where MindSpore would share it; else the cut as given.

    Args:
        spec: dtype and shape of the full weight.
        first_rank: global rank of the stage's first one.
    """
    if not settings.enabled or not spec.shape or spec.nbytes < settings.threshold_nbytes:
        return sharding
    replicas = replace(sharding, opt_shard=-1).opt_parts
    size = replicas if settings.size == -1 else min(settings.size, replicas)
    if size <= 1 or replicas % size or spec.shape[0] % (sharding.parts[0] * size):
        return sharding
    if not all(has_group(group) for group in _groups(sharding, size, first_rank)):
        return sharding
    return replace(sharding, opt_shard=-1 if settings.size == -1 else size)


def _groups(sharding: Sharding, size: int, first_rank: int) -> list[tuple[int, ...]]:
    found = []
    for ranks in sharding.holders().values():
        members = iter(ranks)
        while group := tuple(islice(members, size)):
            found.append(tuple(first_rank + rank for rank in group))
    return found


def has_group(ranks: tuple[int, ...]) -> bool:
    """Whether MindSpore opens a communication group for these ranks; where it does not, the weight stays uncut.

    Servers of 8 have to take part alike: with one device, with all, with a half, with two and their counterparts in
    the other half, with a pair of one half, or with two counterparts.

    >>> has_group((0, 4, 8)), has_group((0, 4, 8, 12))
    (False, True)
    """
    servers: dict[int, set[int]] = {}
    for rank in ranks:
        servers.setdefault(rank // _SERVER, set()).add(rank % _SERVER)
    first, *others = servers.values()
    if any(other != first for other in others):
        return False
    low, high = {i for i in first if i < 4}, {i - 4 for i in first if i >= 4}
    if len(first) in (1, _SERVER):
        return True
    if len(first) == 4:
        return not low or not high or low == high
    return len(first) == 2 and (not low or not high or low == high)
