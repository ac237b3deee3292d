"""``metadata.json`` and ``common.json`` of a Checkpoint 2.0, as values.

``global_offset`` is a slice's number, not an offset in elements: that of its parts, those of the first dim most
significant. Keys that other releases add are of no concern.
"""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import product
from math import prod

import msgspec
from msgspec import UNSET, Struct, UnsetType

from reshard.errors import CheckpointError, LayoutError
from reshard.layout.stages import layout_of_full
from reshard.layout.tensor import Cell, Layout, Sharding

_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class Placing(Struct, frozen=True):
    """How the devices of ``rank_list`` cut a tensor, as MindSpore's Layout says it: -1 is an uncut dim."""

    device_matrix: tuple[int, ...]
    tensor_map: tuple[int | tuple[int, ...], ...]
    rank_list: tuple[int, ...]


class Chunk(Struct, frozen=True):
    """A slice: its one number, and its shape."""

    global_offset: tuple[int, ...]
    local_shape: tuple[int, ...]


class Properties(Struct, frozen=True):
    dtype: str


class Parameter(Struct, frozen=True):
    """``layout`` is None for what every rank holds whole and no compiler knows."""

    properties: Properties
    global_shape: tuple[int, ...]
    chunk: tuple[Chunk, ...] = ()
    layout: Placing | None = None

    def cut(self) -> tuple[Layout, tuple[int, ...]]:
        """Its layout and the global ranks that share it out, in the layout's order. Raises LayoutError."""
        if self.layout is None:
            return layout_of_full(Sharding.whole(1, len(self.global_shape)), self.global_shape), ()
        ranks = self.layout.rank_list
        layout = layout_of_full(_sharding(self.layout), self.global_shape)
        if len(ranks) != layout.sharding.devices or len(set(ranks)) != len(ranks):
            raise LayoutError(f"a rank_list of {len(set(ranks))} ranks for {layout.sharding.devices} devices")
        return layout, ranks


@lru_cache(maxsize=4096)
def _sharding(placing: Placing) -> Sharding:
    axes = (dim if isinstance(dim, tuple) else (dim,) for dim in placing.tensor_map)
    return Sharding(placing.device_matrix, tuple(tuple(axis for axis in dim if axis != -1) for dim in axes))


class Place(Struct, frozen=True):
    """One copy of a slice: the file that holds it, and the rank that wrote it.

    ``rank_group``: the ranks that own the slice, where replicas were dropped; None before r1.9.
    """

    file_name: str
    storage_rank: int
    rank_group: tuple[int, ...] | None = None


class Metadata(Struct, frozen=True):
    """What parameters there are, and by ``storage_key`` where each slice lies."""

    state_dict_metadata: dict[str, Parameter]
    storage_data: dict[str, tuple[Place, ...]]


class Common(Struct, frozen=True):
    """Where the training was; the last two are of later releases."""

    epoch_num: int | None = None
    step_num: int | None = None
    global_step: int | None = None
    loss_scale: float | None = None
    global_batch_size: int | None = None
    consumed_samples: int | UnsetType | None = UNSET
    ckpt_status: int | UnsetType | None = UNSET

    @property
    def release(self) -> str:
        """Which releases of MindFormers write such a file."""
        if self.consumed_samples is not UNSET:
            return "later than r2.0"
        return "r1.9 to r2.0" if self.ckpt_status is not UNSET else "r1.7 or r1.8"


def storage_key(name: str, number: int) -> str:
    """
    >>> storage_key("a.weight", 0)
    "('a.weight', (0,))"
    """
    return str((name, (number,)))


@lru_cache(maxsize=1024)
def numbered(sharding: Sharding) -> tuple[Cell, ...]:
    """The cell of each slice, in the order of their numbers.

    >>> numbered(Sharding((2, 2), ((1,), (0,))))
    ((0, 0), (0, 1), (1, 0), (1, 1))
    """
    return tuple(product(*map(range, sharding.parts)))


def shape_of_slices(layout: Layout) -> dict[int, tuple[int, ...]]:
    """What ``chunk`` should say: the shape of each slice by its number."""
    return dict.fromkeys(range(prod(layout.sharding.parts)), layout.shard_shape)


def read_metadata(content: bytes, path: str) -> Metadata:
    """Raises CheckpointError for what is no metadata of a Checkpoint 2.0."""
    try:
        return msgspec.json.decode(content, type=Metadata)
    except _UNREADABLE as error:
        raise CheckpointError(f"no metadata of a Checkpoint 2.0: {error}", path, "bring it again") from None


def read_common(content: bytes, path: str) -> Common:
    """Raises CheckpointError for what does not say where a training was."""
    try:
        return msgspec.convert(json.loads(content), Common)  # Python's own reader knows Infinity
    except _UNREADABLE as error:
        raise CheckpointError(
            f"not what a Checkpoint 2.0 says of its training: {error}", path, "bring it again, or remove it"
        ) from None
