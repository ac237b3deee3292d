"""Megatron's distributed form: a DCP folder of keys without numbers, and a common state beside it or in it.

torch_dist     metadata.json, .metadata, __<rank>_<n>.distcp, common.pt; releases of 2026 keep the common state
               as an entry of its own
fsdp_dtensor   .metadata and __<rank>_<n>.distcp alone
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from math import prod
from typing import Any

from msgspec.structs import replace

from reshard.errors import CheckpointError, counted
from reshard.families.dcp import Described, catalog_by, metadata_of
from reshard.families.family import Listing
from reshard.families.megatron_args import args_of
from reshard.families.megatron_common import common_value
from reshard.families.megatron_folders import COMMON
from reshard.formats.base import ByteRanges
from reshard.formats.dcp_metadata import DcpMetadata
from reshard.formats.torch_records import read_torch_records
from reshard.formats.window import InBytes, Window
from reshard.index import TensorSpec, cut_extents
from reshard.layout.box import Box
from reshard.layout.cover import boxes_of_range
from reshard.planning.catalog import Catalog, Held, Shard, Tensor, tensor_of_shards
from reshard.planning.identity import hash_of_file
from reshard.storage.storages import opened

_COMMON_ENTRY = re.compile(r"common_state/shard_\d+_\d+")
_OF_OBJECT = re.compile(r".*/shard_\d+(?:\.\d+)*_\d+(?:\.\d+)*(?:\..*)?")
_FLATTENED = "nd_reformulated_orig_global_shape"


def read_dist(folder: Listing, *, backend: str) -> Catalog:
    """What the folder holds: tensors under their keys. Raises InputError.

    Args:
        backend: as metadata.json names it; "" where there is none.
    """
    described = metadata_of(folder)
    value, content, lacking = _common(folder, described, needed=bool(backend))
    warnings = []
    objects = {name for one in described.told.values() for name in one.tensors if _OF_OBJECT.fullmatch(name)}
    told = {name: _without(one, objects) for name, one in described.told.items()}
    made = catalog_by(folder, replace(described, told=told))
    if objects:
        warnings.append(f"what belongs to objects is left out: {counted(len(objects), 'tensor')} ({min(objects)})")
    shapes = _flattened(described)
    tensors = {
        name: _unflattened(tensor, shapes[name]) if name in shapes else tensor for name, tensor in made.tensors.items()
    }
    return replace(
        made,
        tensors=tensors,
        told_by={**made.told_by, **({COMMON: hash_of_file(content)} if content else {})},
        warnings=(*warnings, *lacking, *made.warnings),
        lacking=(*made.lacking, *lacking),
        family=f"Megatron {backend or 'DTensors'}, {counted(made.ranks.world, 'rank')}",
        args=args_of(value),
        common=content,
    )


def _without(one: DcpMetadata, names: set[str]) -> DcpMetadata:
    return replace(one, tensors={name: tensor for name, tensor in one.tensors.items() if name not in names})


# ---- the common state


def _common(folder: Listing, described: Described, *, needed: bool) -> tuple[Any, bytes, list[str]]:
    """The common state, the file or entry that holds it, and what to warn of. Raises FormatError for a damaged one."""
    if folder.entry(COMMON) is not None:
        return *_value(folder.at(COMMON)), []
    for one in described.told.values():
        for name in one.others:
            place = one.places.get(name, {}).get(None)
            if _COMMON_ENTRY.fullmatch(name) and place is not None and "/" not in place.path:
                return *_value(folder.at(place.path), place.offset, place.length), []
    lacking = f"{folder.path} has no {COMMON}: arguments and iteration are not known"
    return None, b"", [lacking] if needed else []


def _value(path: str, offset: int = 0, nbytes: int | None = None) -> tuple[Any, bytes]:
    with opened(path) as file:
        source: ByteRanges = file if nbytes is None else Window(file, offset, nbytes)
        content = source.read(0, source.nbytes)
        return common_value(read_torch_records(InBytes(content)).pickled.value), content


# ---- what an old distributed optimizer cut flat


def _flattened(described: Described) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors that are stored as one axis for each cell of a grid and a flat one."""
    found = {}
    for one in described.told.values():
        old = one.extra.get("mcore_data")
        for name, told in old.items() if isinstance(old, dict) else ():
            shape = told.get(_FLATTENED) if isinstance(told, dict) else None
            if isinstance(shape, tuple | list):
                found[str(name)] = tuple(map(int, shape))
    return found


def _unflattened(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor in its own shape, of runs of elements of each cell."""
    *grid, flat = tensor.spec.shape
    pairs = list(zip(shape, grid, strict=False))
    cell = tuple(n // max(count, 1) for n, count in pairs)
    if len(grid) != len(shape) or prod(cell) != flat or any(n % max(count, 1) for n, count in pairs):
        raise CheckpointError(
            f"{tensor.name}: stored as {list(tensor.spec.shape)}, which are no cells of {list(shape)}"
        )
    spec = TensorSpec(tensor.spec.dtype, shape)
    shards = chain.from_iterable(_of_cell(shard, cell, spec.itemsize) for shard in tensor.shards)
    return tensor_of_shards(tensor.name, spec, shards)


def _of_cell(shard: Shard, cell: tuple[int, ...], itemsize: int) -> Iterator[Shard]:
    *places, _ = shard.box.start
    start, stop = shard.box.start[-1], shard.box.stop[-1]
    if any(n != 1 for n in shard.box.shape[:-1]):
        raise CheckpointError(f"a run of elements lies in several cells, at {list(shard.box.start)}")
    at = 0
    for box in boxes_of_range(cell, start, stop):
        held = tuple(Held(h.file, cut_extents(h.extents, at * itemsize, box.size * itemsize)) for h in shard.held)
        at += box.size
        yield Shard(_moved(box, tuple(p * n for p, n in zip(places, cell, strict=True))), held, shard.expected)


def _moved(box: Box, by: Mapping[int, int] | tuple[int, ...]) -> Box:
    return Box(*(tuple(n + m for n, m in zip(place, by, strict=True)) for place in (box.start, box.stop)))
