"""Where a training was: by ``common.json`` of a Checkpoint 2.0, or by numbers that older checkpoints hold."""

from __future__ import annotations

import struct
from math import prod

from reshard.index import cut_extents
from reshard.planning.catalog import Catalog, Tensor
from reshard.storage.storages import storage_of

PROGRESS = frozenset({"epoch_num", "step_num", "loss_scale"})
"""Numbers that MindSpore's older checkpoints hold as tensors and Checkpoint 2.0 in ``common.json`` alone."""

_CODES = {
    "int32": "<i",
    "int64": "<q",
    "uint32": "<I",
    "uint64": "<Q",
    "float16": "<e",
    "float32": "<f",
    "float64": "<d",
}


def progress_of(source: Catalog) -> dict[str, int | float | None]:
    """By the keys of ``common.json``, what a source says of it; of ranks that differ the first counts."""
    if source.progress:
        return dict(source.progress)
    tensors = (source.tensors.get(name) for name in ("epoch_num", "step_num", "global_step", "loss_scale"))
    return {tensor.name: _value(source, tensor) for tensor in tensors if tensor is not None and _is_number(tensor)}


def _is_number(tensor: Tensor) -> bool:
    shard = next(iter(tensor.shards))
    return prod(tensor.spec.shape) == 1 and tensor.spec.dtype in _CODES and bool(shard.held) and shard.held[0].file >= 0


def _value(source: Catalog, tensor: Tensor) -> int | float:
    shard = next(iter(tensor.shards))
    held = shard.held[0]
    (extent,) = cut_extents(held.extents_of(shard.box, tensor.spec.itemsize), 0, tensor.spec.itemsize)
    path = source.files[held.file].path
    file = storage_of(path).open(path)
    try:
        content = file.read(extent.offset, extent.nbytes)
    finally:
        file.close()
    value: int | float = struct.unpack(
        _CODES[tensor.spec.dtype], extent.coded.decoded(content) if extent.coded else content
    )[0]
    return value
