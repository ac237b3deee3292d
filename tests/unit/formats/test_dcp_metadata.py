"""``.metadata`` of other releases and programs: the same by other classes; and what is none."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from reshard.errors import FormatError
from reshard.formats.dcp_metadata import DcpMetadata, read_dcp_metadata
from reshard.formats.dcp_written import WrittenChunk, metadata_bytes
from reshard.formats.pickle_objects import Global, Record
from reshard.formats.pickling import write_pickle
from reshard.index import Extent, TensorSpec

TORCH = "torch.distributed.checkpoint.metadata"
OLD = "torch.distributed._shard.sharded_tensor.metadata"
NEW = Global("copyreg", "__newobj__")


def made(kind: str, state: Any, module: str = TORCH) -> Record:
    return Record(NEW, (Global(module, kind),), state)


def size(*sizes: int) -> Record:
    return Record(Global("torch", "Size"), (sizes,))


def properties(module: str = TORCH, encoding: Any = None) -> Record:
    strided = Record(Global("torch.serialization", "_get_layout"), ("torch.strided",))
    encoding = encoding or Record(Global(TORCH, "_MEM_FORMAT_ENCODING"), (0,))
    return made("TensorProperties", (Global("torch", "bfloat16"), strided, False, encoding, False), module)


def metadata(
    module: str = TORCH, told: Any = None, place: str = "torch.distributed.checkpoint.filesystem", **more: Any
) -> Record:
    chunk = made("ChunkStorageMetadata", {"offsets": size(0, 0), "sizes": size(4, 2)}, module)
    tensor = {"properties": told or properties(), "size": size(4, 2), "chunks": [chunk]}
    index = made("MetadataIndex", {"fqn": "w", "offset": size(0, 0), "index": 0}, module)
    info = made("_StorageInfo", {"relative_path": "__0_0.distcp", "offset": 8, "length": 900}, place)
    fields = {
        "state_dict_metadata": {
            "w": made("TensorStorageMetadata", tensor, module),
            "lr": made("BytesStorageMetadata", {}, module),
        },
        "planner_data": None,
        "storage_data": {index: info},
        **more,
    }
    return made("Metadata", fields, module)


def read(value: Record) -> DcpMetadata:
    return read_dcp_metadata(write_pickle(value))


def is_right(found: DcpMetadata, dtype: str = "bfloat16") -> None:
    assert (found.tensors["w"].dtype, found.tensors["w"].shape) == (dtype, (4, 2))
    assert [(chunk.offsets, chunk.sizes) for chunk in found.tensors["w"].chunks] == [((0, 0), (4, 2))]
    place = found.places["w"][0, 0]
    assert (place.path, place.offset, place.length, place.transforms) == ("__0_0.distcp", 8, 900, None)
    assert found.others == ("lr",)


def test_torch_s_own() -> None:
    found = read(metadata(version="1.0.0"))
    is_right(found)
    assert found.version == "1.0.0"
    assert found.unknown == {}


@pytest.mark.parametrize(
    "encoding",
    [
        Record(Global(OLD, "MEM_FORMAT_ENCODING"), (0,)),
        Record(Global("builtins", "getattr"), (Global(OLD, "MEM_FORMAT_ENCODING"), "TORCH_CONTIGUOUS")),
    ],
)
def test_of_torch_before_2_3(encoding: Record) -> None:
    is_right(read(metadata(told=properties(OLD, encoding))))
    by_name = made("TensorProperties", {"dtype": Global("torch", "bfloat16"), "pin_memory": False}, OLD)
    is_right(read(metadata(told=by_name)))


def test_what_megatron_adds() -> None:
    plan = made("SavePlan", {"items": []}, "torch.distributed.checkpoint.planner")
    found = read(metadata(all_local_plans=[plan], mcore_data={"w": {"nd_reformulated_orig_global_shape": (4, 2)}}))
    is_right(found)
    assert found.extra["mcore_data"] == {"w": {"nd_reformulated_orig_global_shape": (4, 2)}}
    assert found.unknown == {}


def test_another_program_s_classes_are_told_by_their_attributes() -> None:
    other = "hyper_parallel.core.distributed_checkpoint.metadata"
    found = read(metadata(other, made("TensorProperties", {"dtype": "BFloat16"}, other), other))
    is_right(found, dtype="")
    assert any(name.startswith(other) for name in found.unknown)


def test_attributes_in_slots() -> None:
    chunk = made("ChunkStorageMetadata", (None, {"offsets": size(0), "sizes": size(3)}))
    tensor = made("TensorStorageMetadata", {"properties": properties(), "size": size(3), "chunks": [chunk]})
    found = read(made("Metadata", {"state_dict_metadata": {"w": tensor}, "storage_data": {}}))
    assert found.tensors["w"].chunks[0].sizes == (3,)


def test_what_we_write_is_read() -> None:
    chunks = [
        WrittenChunk((0, 0), (2, 3), "__0_0.distcp", Extent(0, 900)),
        WrittenChunk((2, 0), (1, 3), "b", Extent(9, 8)),
    ]
    content = metadata_bytes({"a.b": (TensorSpec("float8_e4m3fn", (3, 3)), chunks)}, {"note": ("b", Extent(1, 2))})
    found = read_dcp_metadata(content)
    assert found.tensors["a.b"].dtype == "float8_e4m3fn"
    assert [(c.offsets, c.sizes) for c in found.tensors["a.b"].chunks] == [((0, 0), (2, 3)), ((2, 0), (1, 3))]
    assert found.places["a.b"][2, 0].path == "b"
    assert found.places["note"][None].length == 2
    assert found.unknown == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": None}, "w: its size"),
        ({"size": Record(Global("torch", "Size"), ((-1, 2),))}, "w: its size"),
        ({"chunks": None}, "w: its size"),
        ({"chunks": [7]}, "w: a chunk at None"),
        ({"properties": made("TensorProperties", (Global("torch", "qint8"),))}, r"torch\.qint8"),
    ],
)
def test_what_is_no_tensor_is_told_by_name(change: dict[str, Any], said: str) -> None:
    chunk = made("ChunkStorageMetadata", {"offsets": size(0, 0), "sizes": size(4, 2)})
    fields = {"properties": properties(), "size": size(4, 2), "chunks": [chunk], **change}
    content = made("Metadata", {"state_dict_metadata": {"w": made("T", fields)}, "storage_data": {}})
    with pytest.raises(FormatError, match=said):
        read(content)


@pytest.mark.parametrize("state", [{"relative_path": 3, "offset": 0, "length": 1}, {"relative_path": "a"}, {}])
def test_a_place_that_is_none(state: dict[str, Any]) -> None:
    index = made("MetadataIndex", {"fqn": "w", "offset": size(0), "index": 0})
    place = made("_StorageInfo", state, "torch.distributed.checkpoint.filesystem")
    with pytest.raises(FormatError, match="w: it lies in"):
        read(made("Metadata", {"state_dict_metadata": {}, "storage_data": {index: place}}))


def test_two_places_of_one_chunk() -> None:
    indices = [made("MetadataIndex", {"fqn": "w", "offset": size(0), "index": n}) for n in range(2)]
    state = {"relative_path": "a", "length": 9}
    places = [made("_StorageInfo", {**state, "offset": n}, "torch.distributed.checkpoint.filesystem") for n in range(2)]
    fields = {"state_dict_metadata": {}, "storage_data": dict(zip(indices, places, strict=True))}
    with pytest.raises(FormatError, match=r"w: what begins at \(0,\) lies in a and in a"):
        read(made("Metadata", fields))


def test_damaged_ones_are_told() -> None:
    content = write_pickle(metadata())
    for stop in range(0, len(content) - 1, 7):
        with pytest.raises(FormatError):
            read_dcp_metadata(content[:stop])
    for value in ({}, [], None, 3, "x", {"state_dict_metadata": {}}):
        with pytest.raises(FormatError, match="no metadata"):
            read_dcp_metadata(pickle.dumps(value))
