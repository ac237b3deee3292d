"""``metadata.json`` and ``common.json`` of a Checkpoint 2.0, as values.

``global_offset`` is a slice's number, not an offset in elements: that of its parts, those of the first dim most
significant. Keys that other releases add are of no concern.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from reshard.errors import CheckpointError, LayoutError, UsageError
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


class SliceCopy(Struct, frozen=True):
    """One copy of a slice: the file that holds it, and the rank that wrote it.

    ``rank_group``: the ranks that own the slice, where replicas were dropped; None before r1.9.
    """

    file_name: str
    storage_rank: int
    rank_group: tuple[int, ...] | None = None


class Metadata(Struct, frozen=True):
    """What parameters there are, and by ``storage_key`` where each slice lies."""

    state_dict_metadata: dict[str, Parameter]
    storage_data: dict[str, tuple[SliceCopy, ...]]


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
        """Which releases of MindFormers write such a file; "" where it does not tell."""
        if self.consumed_samples is not UNSET:
            return "later than r2.0"
        return "r1.9 to r2.0" if self.ckpt_status is not UNSET else ""


class CommonKeys(Struct, frozen=True):
    """What a release of MindFormers reads.

    Attributes:
        keys: of ``common.json``, in order; any other ends its loading.
        groups: whether storage says which ranks own a slice.
    """

    keys: tuple[str, ...]
    groups: bool = True


_KEYS = ("epoch_num", "step_num", "global_step", "loss_scale", "global_batch_size")


def release_named(name: str, known: Iterable[str] = ()) -> CommonKeys:
    """What r1.7 and later know; of none, what all read, and of later keys those that are ``known``. Raises UsageError.

    >>> release_named("r1.8").groups, release_named("").groups
    (False, True)
    """
    if not name:
        return CommonKeys((*_KEYS, *(key for key in ("consumed_samples", "ckpt_status") if key in known)))
    found = re.fullmatch(r"[rv]?(\d+)\.(\d+)(\.\d+)?", name)
    number = (99, 0) if name == "master" else (int(found[1]), int(found[2])) if found else (0, 0)
    if number < (1, 7):
        raise UsageError(
            f"--release {name}, and Checkpoint 2.0 begins with r1.7", hint="one of: r1.7, r1.8, r1.9, r2.0, master"
        )
    if number < (1, 9):
        return CommonKeys(_KEYS, groups=False)
    return CommonKeys((*_KEYS, *(("consumed_samples",) if number > (2, 0) else ()), "ckpt_status"))


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


# --- as it is written


@lru_cache(maxsize=1024)
def folded(sharding: Sharding) -> Sharding:
    """The same cut without an optimizer shard: free device axes cut dim 0 once more, behind those that cut it already.

    Raises LayoutError where the shard takes a part of an axis that does not divide.

    >>> folded(Sharding((2, 2), ((0,), ()), opt_shard=-1)).tensor_map
    ((0, 1), ())
    >>> folded(Sharding((2, 4), ((),), opt_shard=2))
    Sharding(device_matrix=(2, 2, 2), tensor_map=((0,),), opt_shard=0)
    """
    matrix, left = list(sharding.device_matrix), sharding.opt_parts
    dims = [list(axes) for axes in sharding.tensor_map]
    used = {axis for axes in dims for axis in axes}
    taken: list[int] = []
    for axis in (a for a in range(len(matrix)) if a not in used):
        place = len(matrix) - 1 - axis
        size = matrix[place]
        if left == 1 or size == 1:
            continue
        if left % size and size % left:
            raise LayoutError(
                f"an optimizer shard of {sharding.opt_shard} in devices {list(sharding.device_matrix)}",
                hint="a Checkpoint 2.0 is cut along device axes: give another strategy, or --to ranks",
            )
        if size > left:  # the inner part of the axis alone: those outside of it are numbered anew
            matrix[place : place + 1] = [size // left, left]
            dims = [[a + (a > axis) for a in axes] for axes in dims]
        taken.insert(0, axis)
        left //= min(size, left)
    if taken:
        dims[0] += taken
    return Sharding(tuple(matrix), tuple(map(tuple, dims)))


def written_parameter(dtype: str, layout: Layout, ranks: tuple[int, ...]) -> dict[str, Any]:
    """What metadata says of a tensor; its reader takes the keys of the layout by their places. Raises LayoutError."""
    plain = folded(layout.sharding)
    shape = list(layout.shard_shape)
    return {
        "properties": {
            "dtype": dtype,
            "replica_id": _nth_copies(layout.sharding),
            "allow_shape_mismatch": False,
            "allow_to_save": True,
        },
        "global_shape": list(layout.shape),
        "axis_fragmentations": list(layout.sharding.parts),
        "layout": {
            "device_matrix": list(plain.device_matrix),
            "tensor_map": [list(axes) if len(axes) > 1 else axes[0] if axes else -1 for axes in plain.tensor_map],
            "interleaved_parallel": False,
            "alias_name": [chr(ord("a") + axis) for axis in range(len(plain.device_matrix))],
            "rank_list": list(ranks),
        },
        "chunk": [{"global_offset": [n], "local_shape": shape} for n in range(prod(layout.sharding.parts))],
    }


@lru_cache(maxsize=1024)
def numbers_of(sharding: Sharding) -> tuple[int, ...]:
    """The number of the slice that each rank of the stage holds."""
    numbers = {cell: number for number, cell in enumerate(numbered(sharding))}
    return tuple(numbers[cell] for cell in sharding.cells())


@lru_cache(maxsize=1024)
def _nth_copies(sharding: Sharding) -> tuple[int, ...]:
    """Which copy of its slice each rank of the stage holds."""
    seen: Counter[int] = Counter()
    copies = []
    for number in numbers_of(sharding):
        copies.append(seen[number])
        seen[number] += 1
    return tuple(copies)


def written_metadata(parameters: Mapping[str, Any], storage: Mapping[str, Any]) -> bytes:
    """As it lies in a file."""
    content = {"state_dict_metadata": parameters, "storage_data": storage}
    return msgspec.json.format(msgspec.json.encode(content), indent=4)


def written_common(values: Mapping[str, int | float | None], release: CommonKeys) -> bytes:
    """With the keys that a release knows: any other would end the loading."""
    return json.dumps({key: values.get(key) for key in release.keys}, indent=4).encode()
