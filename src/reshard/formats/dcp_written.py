"""``.metadata`` as it is written: what torch's ``dcp.load``, torchtitan and Megatron need to find each chunk.

Source: torch 2.13, ``torch/distributed/checkpoint/metadata.py``; its loader takes any chunks that tile their tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from reshard.formats.pickle_objects import NEW_OBJECT, Global, Record
from reshard.formats.pickling import write_pickle
from reshard.index import Extent, TensorSpec

_MODULE = "torch.distributed.checkpoint.metadata"
_SIZE = Global("torch", "Size")
_VERSION = "1.0.0"


class WrittenChunk(Struct, frozen=True):
    """A box of a tensor, and the bytes of the file that its item takes."""

    start: tuple[int, ...]
    sizes: tuple[int, ...]
    path: str
    item: Extent


def metadata_bytes(
    tensors: Mapping[str, tuple[TensorSpec, Sequence[WrittenChunk]]], objects: Mapping[str, tuple[str, Extent]]
) -> bytes:
    """Pickle what lies where: tensors with their full shapes, and objects, which are entries of bytes.

    Names are one step of a path each, whatever dots they have: as of a flat dict.
    """
    stored: dict[Any, Any] = {}
    told: dict[str, Any] = {}
    for name, (spec, chunks) in tensors.items():
        told[name] = _object(
            "TensorStorageMetadata",
            properties=_properties(spec.dtype),
            size=_size(spec.shape),
            chunks=[_object("ChunkStorageMetadata", offsets=_size(c.start), sizes=_size(c.sizes)) for c in chunks],
        )
        for number, chunk in enumerate(chunks):
            stored[_index(name, _size(chunk.start), number)] = _place(chunk.path, chunk.item)
    for name, (path, item) in objects.items():
        told[name] = _object("BytesStorageMetadata")
        stored[_index(name, None, None)] = _place(path, item)
    return write_pickle(
        _object(
            "Metadata",
            state_dict_metadata=told,
            planner_data={name: (name,) for name in told},
            storage_data=stored,
            storage_meta=_object("StorageMeta", checkpoint_id=None, save_id=None, load_id=None, modules=[]),
            version=_VERSION,
        )
    )


def _object(kind: str, module: str = _MODULE, /, **fields: Any) -> Record:
    return Record(NEW_OBJECT, (Global(module, kind),), fields)


def _size(sizes: tuple[int, ...]) -> Record:
    return Record(_SIZE, (sizes,))


def _index(name: str, start: Record | None, number: int | None) -> Record:
    return _object("MetadataIndex", fqn=name, offset=start, index=number)


def _place(path: str, item: Extent) -> Record:
    module = "torch.distributed.checkpoint.filesystem"
    return _object("_StorageInfo", module, relative_path=path, offset=item.offset, length=item.nbytes)


def _properties(dtype: str) -> Record:
    """As the class states itself: dtype, layout, whether it requires a gradient, format of memory, pinned or not."""
    strided = Record(Global("torch.serialization", "_get_layout"), ("torch.strided",))
    contiguous = Record(Global(_MODULE, "_MEM_FORMAT_ENCODING"), (0,))
    state = (Global("torch", dtype), strided, False, contiguous, False)
    return Record(NEW_OBJECT, (Global(_MODULE, "TensorProperties"),), state)
