"""The value that strategy files are read into: which tensors each pipeline stage holds, and how its devices cut
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from math import prod

from msgspec import Struct

from reshard.errors import LayoutError, StrategyError
from reshard.layout.tensor import Layout, Sharding


class Factored(Struct, frozen=True):
    """A cut as JSON strategies flatten it: a dim that several axes cut stands there as several dims, one an axis.

    ``shape`` has a size for each entry of ``sharding.tensor_map``. All factors of one dim but its last are as long
    as their axis, for it cuts
    them wholly; that is how the true dims are found again once the tensor's number of dims is known. The sizes
    themselves belong to the model that was compiled; the tensors in the files may be of another size.
    """

    shape: tuple[int, ...]
    sharding: Sharding

    def groupings(self, ndim: int) -> tuple[Sharding, ...]:
        """Every cut of an ``ndim``-dim tensor that flattens to this one.

        >>> f = Factored((32, 2, 32), Sharding((2, 2, 2), ((2,), (1,), (0,))))
        >>> [s.tensor_map for s in f.groupings(2)]
        [((2,), (1, 0))]
        """
        axes = self.sharding.tensor_map
        matrix = self.sharding.device_matrix
        whole_cut = [len(a) == 1 and matrix[len(matrix) - 1 - a[0]] == n for a, n in zip(axes, self.shape, strict=True)]
        found = []
        for ends in _compositions(len(axes), ndim):
            groups = [range(a, b) for a, b in pairwise((0, *ends))]
            if all(whole_cut[i] for group in groups for i in group[:-1]):
                tensor_map = tuple(tuple(axis for i in group for axis in axes[i]) for group in groups)
                found.append(Sharding(matrix, tensor_map, self.sharding.opt_shard))
        return tuple(found)


AnySharding = Sharding | Factored


def _compositions(factors: int, dims: int) -> Iterator[tuple[int, ...]]:
    """Ends of ``dims`` non-empty runs that cover ``factors`` places."""
    if dims == 0:
        if factors == 0:
            yield ()
        return
    if dims == 1:
        if factors >= 1:
            yield (factors,)
        return
    for last in range(1, factors - dims + 2):
        for ends in _compositions(factors - last, dims - 1):
            yield (*ends, factors)


@lru_cache(maxsize=4096)
def layout_of_full(entry: AnySharding, shape: tuple[int, ...]) -> Layout:
    """The layout of a tensor of this full shape. Raises LayoutError or StrategyError."""
    if isinstance(entry, Sharding):
        return Layout(shape, entry)
    candidates = [Layout(shape, s) for s in entry.groupings(len(shape)) if _divides(shape, s)]
    return _only(candidates, entry, shape)


@lru_cache(maxsize=4096)
def layout_of_shard(entry: AnySharding, shard_shape: tuple[int, ...]) -> Layout:
    """The layout of a tensor whose shards have this shape. Raises LayoutError or StrategyError."""
    shardings = (entry,) if isinstance(entry, Sharding) else entry.groupings(len(shard_shape))
    candidates = []
    for sharding in shardings:
        if len(sharding.parts) != len(shard_shape):
            raise LayoutError(
                f"the strategy cuts {len(sharding.parts)} dims, the shard has {len(shard_shape)} {list(shard_shape)}"
            )
        full = tuple(n * k for n, k in zip(shard_shape, sharding.parts, strict=True))
        candidates.append(Layout(full, sharding))
    if isinstance(entry, Sharding):
        return candidates[0]
    return _only(candidates, entry, shard_shape)


def _divides(shape: tuple[int, ...], sharding: Sharding) -> bool:
    return all(n % k == 0 for n, k in zip(shape, sharding.parts, strict=True))


def _only(candidates: list[Layout], entry: Factored, shape: tuple[int, ...]) -> Layout:
    """The one candidate, or the one whose shape has the size that the strategy states."""
    if len(candidates) > 1:
        candidates = [c for c in candidates if prod(c.shape) == prod(entry.shape)]
    if len(candidates) != 1:
        found = "no cut" if not candidates else f"{len(candidates)} cuts"
        raise StrategyError(
            f"JSON tensor_map of {len(entry.shape)} factors {list(entry.shape)} gives {found} of shape {list(shape)}",
            hint="JSON strategies flatten dims cut by several axes; use the .ckpt strategy, which keeps them",
        )
    return candidates[0]


class Strategy(Struct, frozen=True):
    """What the strategy files of one job say.

    Attributes:
        stages: for each pipeline stage its tensors; a tied tensor may stand in several.
        devices: ranks of one stage; global rank = stage * devices + local rank.
        where: the file or folder it was read from, for messages.
        made: True when no compiler wrote it but ``reshard strategy make``.
    """

    stages: tuple[Mapping[str, AnySharding], ...]
    devices: int
    where: str = ""
    made: bool = False

    @property
    def world(self) -> int:
        return len(self.stages) * self.devices

    def names(self) -> frozenset[str]:
        return frozenset(name for stage in self.stages for name in stage)

    def renamed(self, new_name: Callable[[str], str]) -> Strategy:
        """The same of tensors that are called otherwise."""
        stages = tuple({new_name(name): entry for name, entry in stage.items()} for stage in self.stages)
        return Strategy(stages, self.devices, self.where, self.made)

    def stages_of(self, name: str) -> tuple[int, ...]:
        return tuple(i for i, stage in enumerate(self.stages) if name in stage)
