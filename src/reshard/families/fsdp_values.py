"""DTensor and ShardedTensor as they lie in the files of single ranks: which box of which tensor a rank holds.

Source: torch 2.13, ``torch/distributed/tensor`` and ``torch/distributed/_shard``; what older releases call otherwise is
told by attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from msgspec import Struct

from reshard.errors import FormatError
from reshard.formats.pickle_objects import Record
from reshard.formats.torch_values import TensorRef
from reshard.index import TensorSpec
from reshard.layout.box import Box

_WRAPPED = ("DTensor", "ShardedTensor")
_COPIED = "copy the file of that rank again"


class Local(Struct, frozen=True):
    """What one rank holds of a tensor.

    Attributes:
        spec: of the whole tensor.
        parts: boxes of it, and what lies in the file of each; none where the rank holds nothing.
        plain: it was saved as a tensor that knows of no other ranks.
    """

    spec: TensorSpec
    parts: tuple[tuple[Box, TensorRef], ...]
    plain: bool = False


def local_of(value: Any, rank: int, world: int) -> Local | None:
    """What a rank's value is; None for what is no tensor. Raises FormatError for a tensor that is not understood."""
    if isinstance(value, TensorRef):
        return Local(TensorSpec(value.dtype, value.shape), ((Box.whole(value.shape), value),), plain=True)
    if not isinstance(value, Record) or len(value.args) < 3:
        return None
    kind = getattr(value.args[1], "name", "")
    if kind not in _WRAPPED:
        return None
    local = _of_dtensor(value, rank, world) if kind == "DTensor" else _of_sharded(value, rank)
    for box, tensor in local.parts:
        if box.size and (tensor.shape != box.shape or tensor.dtype != local.spec.dtype):
            raise FormatError(
                f"rank {rank} of {world} should hold {local.spec.dtype}{list(box.shape)} of {list(local.spec.shape)}, "
                f"and its file has {tensor.dtype}{list(tensor.shape)}",
                hint=f"is it the file of another rank, or of another save? {_COPIED}",
            )
    return Local(local.spec, tuple((box, tensor) for box, tensor in local.parts if box.size or not prod(box.stop)))


# ---- DTensor


def _of_dtensor(value: Record, rank: int, world: int) -> Local:
    tensor, spec = value.fields.get("_local_tensor"), _fields(value.fields.get("_spec"))
    given = value.args[2]
    shape = _counts(given[2]) if isinstance(given, tuple) and len(given) > 2 else None
    if not isinstance(tensor, TensorRef) or shape is None:
        raise FormatError("a DTensor without a shape, or whose local tensor is not plain")
    placements = spec.get("placements")
    mesh = _fields(spec.get("mesh"))
    sizes = _mesh_sizes(mesh)
    if not isinstance(placements, tuple | list) or len(placements) != len(sizes):
        raise FormatError(f"a DTensor with placements {str(placements)[:80]} on a mesh of {list(sizes)}")
    at = _coordinate(mesh, sizes, rank, world)
    box = _cut(shape, _in_order(placements, sizes, spec.get("shard_order")), sizes, at)
    return Local(TensorSpec(tensor.dtype, shape), ((box, tensor),))


def _fields(value: Any) -> dict[str, Any]:
    return value.fields if isinstance(value, Record) else {}


def _mesh_sizes(mesh: dict[str, Any]) -> tuple[int, ...]:
    """Of each dim of the mesh: from the tensor of its ranks, which older releases have, or its layout's axes."""
    for name in ("mesh", "_mesh"):
        if isinstance(mesh.get(name), TensorRef):
            return _sizes(mesh[name].shape)
    layout = mesh.get("_layout")
    fields = _fields(layout)
    axes = fields.get("axes")
    if isinstance(axes, tuple | list):
        return _sizes([_fields(axis).get("shape") for axis in axes])
    told = fields.get("shape", layout.args[0] if isinstance(layout, Record) and layout.args else None)
    return _sizes(told if isinstance(told, tuple | list) else (told,))


def _sizes(shape: Sequence[Any]) -> tuple[int, ...]:
    """Of dims that may be given as several each; none where a mesh of one rank has no stride."""
    parts = [size if isinstance(size, tuple | list) else (size,) for size in shape]
    if not all(type(n) is int and n > 0 for sizes in parts for n in sizes):
        raise FormatError(f"a mesh of devices whose shape is {str(shape)[:80]}")
    return tuple(map(prod, parts))


def _coordinate(mesh: dict[str, Any], sizes: Sequence[int], rank: int, world: int) -> tuple[int, ...]:
    """Where the rank stands on the mesh, as the file says, or else by its number. Raises FormatError where these
    contradict each other.
    """
    said, own = mesh.get("_coordinate_on_dim"), mesh.get("_rank")
    if type(own) is int and own != rank:
        raise FormatError(f"by its name it is of rank {rank}, and it was saved by rank {own}", hint=_COPIED)
    by_number = tuple(rank // prod(sizes[dim + 1 :]) % n for dim, n in enumerate(sizes))
    if said is None:
        if prod(sizes) != world:
            raise FormatError(f"a mesh of {list(sizes)} in a world of {world}: nothing says where rank {rank} stands")
        return by_number
    at = tuple(said) if isinstance(said, tuple | list) else ()
    if len(at) != len(sizes) or not all(type(i) is int and 0 <= i < n for i, n in zip(at, sizes, strict=False)):
        raise FormatError(f"rank {rank} stands at {str(said)[:80]} on a mesh of {list(sizes)}")
    if own is None and prod(sizes) == world and at != by_number:
        raise FormatError(
            f"by its name it is of rank {rank}, and it stands at {list(at)} of {list(sizes)}", hint=_COPIED
        )
    return at


def _in_order(placements: Sequence[Any], sizes: Sequence[int], told: Any) -> list[tuple[int, int]]:
    """(mesh dim, tensor dim) of each cut, the first one first. Raises FormatError for what is no cut into blocks.

    On one dim of a tensor the outer mesh dim cuts first, but where FSDP cuts what tensor parallelism has cut already:
    then it is strided, by as many parts as were there.
    """
    cuts: dict[int, list[int]] = {}
    for mesh_dim in reversed(range(len(placements))):
        name, fields = _class_of(placements[mesh_dim]), _fields(placements[mesh_dim])
        if name == "Replicate":
            continue
        dim = fields.get("dim")
        if name not in ("Shard", "_StridedShard") or type(dim) is not int:
            raise FormatError(f"it is placed by {name}, which is no cut into blocks")
        inner = cuts.setdefault(dim, [])
        inner.insert(_after(inner, sizes, fields.get("split_factor")) if name == "_StridedShard" else 0, mesh_dim)
    for entry in told if isinstance(told, tuple | list) else ():
        dim, order = entry.args if isinstance(entry, Record) and len(entry.args) == 2 else (-1, ())
        mine = cuts.get(dim, []) if type(dim) is int else []
        strided = any(_class_of(placements[mesh_dim]) == "_StridedShard" for mesh_dim in mine)
        known = _counts(order)
        if not strided and known is not None and sorted(known) == sorted(mine):
            cuts[dim] = list(known)
    return [(mesh_dim, dim) for dim, order in cuts.items() for mesh_dim in order]


def _after(inner: Sequence[int], sizes: Sequence[int], factor: Any) -> int:
    """After how many of the inner cuts there are so many parts."""
    parts = 1
    for place, mesh_dim in enumerate(inner, start=1):
        parts *= sizes[mesh_dim]
        if parts == factor:
            return place
    raise FormatError(f"it is cut by stripes (_StridedShard of {factor}), which are not one block")


def _class_of(placement: Any) -> str:
    return placement.factory.name if isinstance(placement, Record) else str(placement)[:40]


def _cut(shape: Sequence[int], order: Sequence[tuple[int, int]], sizes: Sequence[int], at: Sequence[int]) -> Box:
    """The rank's box: each cut is into parts of equal size, rounded up, so that the last may be short or empty."""
    start, stop = [0] * len(shape), list(shape)
    for mesh_dim, dim in order:
        if not 0 <= dim < len(shape):
            raise FormatError(f"it is cut in dim {dim} of a shape {list(shape)}")
        length = stop[dim] - start[dim]
        part = -(-length // sizes[mesh_dim])
        first = min(at[mesh_dim] * part, length)
        start[dim], stop[dim] = start[dim] + first, start[dim] + min(first + part, length)
    return Box(tuple(start), tuple(stop))


# ---- ShardedTensor


def _of_sharded(value: Record, rank: int) -> Local:
    state = value.state if isinstance(value.state, tuple | list) else ()
    told = next((_fields(one) for one in state if "shards_metadata" in _fields(one)), {})
    shape, dtype = _counts(told.get("size")), _dtype_of(told.get("tensor_properties"))
    if shape is None or not isinstance(state[0], list):
        raise FormatError(f"a ShardedTensor of size {str(told.get('size'))[:80]}")
    for one in state:
        own = _fields(one).get("global_rank", rank)
        if own != rank:
            raise FormatError(f"by its name it is of rank {rank}, and it was saved by rank {own}", hint=_COPIED)
    parts = tuple(_shards(state[0], len(shape)))
    dtype = parts[0][1].dtype if parts else dtype
    return Local(TensorSpec(dtype, shape), parts)


def _shards(shards: Sequence[Any], dims: int) -> Iterator[tuple[Box, TensorRef]]:
    for shard in shards:
        tensor, told = _fields(shard).get("tensor"), _fields(_fields(shard).get("metadata"))
        start, sizes = _counts(told.get("shard_offsets")), _counts(told.get("shard_sizes"))
        if not isinstance(tensor, TensorRef) or start is None or sizes is None:
            raise FormatError("a shard that says not where it lies, or is no plain tensor")
        if not len(start) == len(sizes) == dims:
            raise FormatError(f"a shard at {list(start)} of {list(sizes)} in a tensor of {dims} dims")
        yield Box(start, tuple(a + n for a, n in zip(start, sizes, strict=True))), tensor


def _dtype_of(properties: Any) -> str:
    state = properties.state if isinstance(properties, Record) else None
    told = state[0] if isinstance(state, tuple) and state else _fields(properties).get("dtype")
    return getattr(told, "name", "")


def _counts(value: Any) -> tuple[int, ...] | None:
    """A shape, or where something begins; None for what is neither."""
    if isinstance(value, tuple | list) and all(type(n) is int and n >= 0 for n in value):
        return tuple(value)
    return None
