"""``.metadata`` of PyTorch's distributed checkpoints: tensors, the chunks that they lie in, and where each chunk is.

Source: torch 2.13, ``torch/distributed/checkpoint/metadata.py`` and ``filesystem.py``; folders of torch 2.0 to 2.14,
Megatron-Core and hyper-parallel hold the same by other classes, which are told by their attributes.

A folder of 1,024 ranks has a million chunks: what is kept of one is a few small objects, and its state is emptied as
soon as it was told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from reshard.dtypes import ITEMSIZE
from reshard.errors import FormatError
from reshard.formats.pickle_objects import Global, Record, Told, attributes
from reshard.formats.pickled import Meaning
from reshard.formats.torch_values import read_value

_Shape = tuple[int, ...]
_MAX = 1 << 63


class DcpChunk(Told, eq=False):
    """A box of a tensor that lies in one place: where it begins, and its sizes."""

    offsets: Any = None
    sizes: Any = None

    def told(self, state: Any) -> None:
        found = _taken(state)
        self.offsets, self.sizes = found.get("offsets"), found.get("sizes")


class DcpIndex(Told, eq=False):
    """What a place is of: a tensor's chunk by where it begins; None for what is no tensor."""

    fqn: Any = None
    offset: Any = None

    def told(self, state: Any) -> None:
        found = _taken(state)
        self.fqn, self.offset = found.get("fqn"), found.get("offset")


class DcpStretch(Told, eq=False):
    """Bytes of a file, and what was done to them before they were written."""

    path: Any = None
    offset: Any = None
    length: Any = None
    transforms: Any = None

    def told(self, state: Any) -> None:
        found = _taken(state)
        self.path, self.offset, self.length = found.get("relative_path"), found.get("offset"), found.get("length")
        self.transforms = found.get("transform_descriptors")


class DcpTensor(Struct, frozen=True):
    """``dtype`` is "" where the metadata tell none that we know."""

    dtype: str
    shape: _Shape
    chunks: tuple[DcpChunk, ...]


class DcpMetadata(Struct, frozen=True):
    """What one file says.

    Attributes:
        others: names of what is no tensor.
        places: of each name, where what begins at an offset lies.
        unknown: classes nobody told us of, with how many objects each.
    """

    tensors: Mapping[str, DcpTensor]
    others: tuple[str, ...]
    places: Mapping[str, Mapping[_Shape | None, DcpStretch]]
    version: str
    extra: Mapping[str, Any]
    unknown: Mapping[str, int]


def _taken(state: Any) -> dict[str, Any]:
    """The attributes of an object that is told of them once: no other refers to the dict, which would stay for long."""
    found = attributes(state)
    if isinstance(state, dict):
        state.clear()
    return found


_MODULE = "torch.distributed.checkpoint.metadata"
_MEANINGS: dict[Global, Meaning] = {
    Global(_MODULE, "ChunkStorageMetadata"): lambda _: DcpChunk(),
    Global(_MODULE, "MetadataIndex"): lambda _: DcpIndex(),
    Global("torch.distributed.checkpoint.filesystem", "_StorageInfo"): lambda _: DcpStretch(),
}
_KNOWN = ("state_dict_metadata", "storage_data", "planner_data", "storage_meta", "version")


def read_dcp_metadata(data: bytes) -> DcpMetadata:
    """Raises FormatError for what is no such metadata, is damaged, or runs code when it is loaded."""
    pickled = read_value(data, meanings=_MEANINGS)
    found = pickled.value.fields if isinstance(pickled.value, Record) else {}
    tensors, places = found.get("state_dict_metadata"), found.get("storage_data")
    if not isinstance(tensors, dict) or not isinstance(places, dict):
        raise FormatError("it holds no metadata of a distributed checkpoint", hint="bring the file again")
    made: dict[str, DcpTensor] = {}
    others: list[str] = []
    for name, value in tensors.items():
        fields = value.fields if isinstance(value, Record) else {}
        if "chunks" in fields:
            made[str(name)] = _tensor(str(name), fields)
        else:
            others.append(str(name))
    extra = {key: value for key, value in found.items() if key not in _KNOWN}
    return DcpMetadata(made, tuple(others), _places(places), str(found.get("version", "")), extra, pickled.unknown)


def _tensor(name: str, fields: Mapping[str, Any]) -> DcpTensor:
    shape, chunks = fields.get("size"), fields["chunks"]
    if not isinstance(shape, tuple) or not _is_shape(shape) or not isinstance(chunks, list | tuple):
        raise FormatError(f"{name}: its size is {str(shape)[:80]}")
    made = tuple(map(_chunk, chunks))
    for chunk in made:
        if not _is_shape(chunk.offsets) or not _is_shape(chunk.sizes) or len(chunk.offsets) != len(chunk.sizes):
            raise FormatError(f"{name}: a chunk at {str(chunk.offsets)[:80]} of sizes {str(chunk.sizes)[:80]}")
    return DcpTensor(_dtype(name, fields.get("properties")), shape, made)


def _chunk(value: Any) -> DcpChunk:
    return value if isinstance(value, DcpChunk) else DcpChunk(**_some(value, "offsets", "sizes"))


def _index(value: Any) -> DcpIndex:
    return value if isinstance(value, DcpIndex) else DcpIndex(**_some(value, "fqn", "offset"))


def _stretch(value: Any) -> DcpStretch:
    if isinstance(value, DcpStretch):
        return value
    found = _some(value, "relative_path", "offset", "length", "transform_descriptors")
    return DcpStretch(*found.values())


def _some(value: Any, *names: str) -> dict[str, Any]:
    """Attributes of an object of a class that we do not know."""
    fields = value.fields if isinstance(value, Record) else {}
    return {name: fields.get(name) for name in names}


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(n) is int and 0 <= n < _MAX for n in value)


def _dtype(name: str, properties: Any) -> str:
    """What the properties say, by name or first in order. Raises FormatError for a dtype of torch that is no plain
    number's.
    """
    state = properties.state if isinstance(properties, Record) else None
    told = state[0] if isinstance(state, tuple) and state else attributes(state).get("dtype")
    if not isinstance(told, Global) or told.module != "torch":
        return ""
    if told.name not in ITEMSIZE:
        raise FormatError(f"{name}: it is {told}, which is not known")
    return told.name


def _places(found: Mapping[Any, Any]) -> dict[str, dict[_Shape | None, DcpStretch]]:
    places: dict[str, dict[_Shape | None, DcpStretch]] = {}
    for key, value in found.items():
        index, stretch = _index(key), _stretch(value)
        offset = index.offset
        if not isinstance(index.fqn, str) or not (offset is None or _is_shape(offset)):
            raise FormatError(f"it tells of a place of {str(index.fqn)[:80]!r} at {str(offset)[:80]}")
        if not isinstance(stretch.path, str) or type(stretch.offset) is not int or type(stretch.length) is not int:
            raise FormatError(f"{index.fqn}: it lies in {str(stretch.path)[:80]!r} at {stretch.offset}")
        of_name = places.setdefault(index.fqn, {})
        other = of_name.setdefault(offset, stretch)
        if (other.path, other.offset) != (stretch.path, stretch.offset):
            raise FormatError(f"{index.fqn}: what begins at {offset} lies in {other.path} and in {stretch.path}")
    return places
