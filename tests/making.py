"""Checkpoints and strategies made and read for tests, apart from the code that is tested.

Shards are cut by NumPy from MindSpore's convention as it is written down (see ``shard_of``); safetensors files are
written and read by the official library, ``.ckpt`` files by the few lines below. Strategy files come from reshard's
own encoder, whose output tests/oracle and tests/golden judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from reshard.layout.tensor import Sharding
from reshard.strategy.protobuf import encode_layout, encode_made, write_protobuf

Arrays = Mapping[str, np.ndarray]

_SAFETENSORS = {
    "bool": "bool", "int8": "int8", "uint8": "uint8", "int16": "int16", "uint16": "uint16", "int32": "int32",
    "uint32": "uint32", "int64": "int64", "uint64": "uint64", "float16": "float16", "float32": "float32",
    "float64": "float64", "bfloat16": "bfloat16", "float8_e4m3fn": "float8_e4m3fn", "float8_e5m2": "float8_e5m2",
}  # fmt: skip
_CODES = {
    "BOOL": "bool", "I8": "int8", "U8": "uint8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
_CKPT = {
    "bool": "Bool", "int8": "Int8", "uint8": "UInt8", "int16": "Int16", "uint16": "UInt16", "int32": "Int32",
    "uint32": "UInt32", "int64": "Int64", "uint64": "UInt64", "float16": "Float16", "float32": "Float32",
    "float64": "Float64", "bfloat16": "BFloat16",
}  # fmt: skip
_FROM_CKPT = {name: dtype for dtype, name in _CKPT.items()}


def dtype_named(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def array(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Random bits, so NaNs with payloads, infinities and subnormals are among them."""
    made = np.random.default_rng(seed).integers(0, 256, prod(shape) * dtype_named(dtype).itemsize, np.uint8)
    if dtype == "bool":
        made &= 1
    return made.view(dtype_named(dtype)).reshape(shape)


def counted(*shape: int, dtype: str = "float32") -> np.ndarray:
    """0, 1, 2, … in this shape."""
    return np.arange(prod(shape)).astype(dtype_named(dtype)).reshape(shape)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal in dtype, shape and every bit."""
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def differing(found: Arrays, wanted: Arrays) -> list[str]:
    """Names that one of them lacks, and those whose values are not the same."""
    both = found.keys() & wanted.keys()
    return sorted((found.keys() ^ wanted.keys()) | {name for name in both if not same(found[name], wanted[name])})


# --- MindSpore's convention, once more and by hand


def shard_of(full: np.ndarray, sharding: Sharding, rank: int) -> np.ndarray:
    """What a rank of the stage holds.

    Ranks run row-major over the device matrix. Axis ``a`` of a tensor map is device dim ``len(matrix) - 1 - a``. Of
    several axes on a dim the first cuts coarsest. An optimizer shard cuts dim 0 of that once more: ranks with the
    same shard take its parts in ascending order, and begin anew after ``opt_shard`` of them (-1: never).
    """
    mine = _parts(sharding, rank)
    index = []
    for size, (part, parts) in zip(full.shape, mine, strict=True):
        rows = size // parts
        index.append(slice(part * rows, (part + 1) * rows))
    shard = full[tuple(index)]
    if sharding.opt_shard:
        group = [r for r in range(prod(sharding.device_matrix)) if _parts(sharding, r) == mine]
        count = len(group) if sharding.opt_shard == -1 else sharding.opt_shard
        if count > 1:
            rows = shard.shape[0] // count
            place = group.index(rank) % count
            shard = shard[place * rows : (place + 1) * rows]
    return np.ascontiguousarray(shard).reshape(shard.shape)


def _parts(sharding: Sharding, rank: int) -> list[tuple[int, int]]:
    matrix = sharding.device_matrix
    coordinates = [int(c) for c in np.unravel_index(rank, matrix)]
    found = []
    for axes in sharding.tensor_map:
        part, parts = 0, 1
        for axis in axes:
            dim = len(matrix) - 1 - axis
            part, parts = part * matrix[dim] + coordinates[dim], parts * matrix[dim]
        found.append((part, parts))
    return found


# --- strategies

Stages = list[dict[str, Sharding]]


def stage_bytes(stage: int, shardings: Mapping[str, Sharding]) -> bytes:
    """The strategy file of one pipeline stage."""
    layouts = {name: encode_layout(sharding) for name, sharding in shardings.items()}
    return write_protobuf([encode_made(stage)], layouts, stage)


def write_strategy(folder: Path, stages: Stages) -> Path:
    """A folder with the strategy file of the first rank of every stage."""
    folder.mkdir(parents=True)
    devices = next(iter(stages[0].values())).devices
    for number, shardings in enumerate(stages):
        path = folder / f"ckpt_strategy_rank_{number * devices}.ckpt"
        path.write_bytes(stage_bytes(number, shardings))
    return folder


# --- weight files


def write_file(path: Path, arrays: Arrays, texts: Mapping[str, str] | None = None, slice_nbytes: int = 1 << 29) -> Path:
    """A weight file of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".ckpt":
        path.write_bytes(ckpt_bytes(arrays, texts or {}, slice_nbytes))
    else:
        raw = {
            n: {"dtype": _SAFETENSORS[a.dtype.name], "shape": list(a.shape), "data": a.tobytes()}
            for n, a in arrays.items()
        }
        path.write_bytes(safetensors.serialize(raw, {"format": "ms", **(texts or {})}))
    return path


def write_ranks(folder: Path, full: Arrays, stages: Stages, suffix: str = ".ckpt", slice_nbytes: int = 1 << 29) -> Path:
    """``rank_r/model_r`` of every rank, cut as the strategy says."""
    devices = next(iter(stages[0].values())).devices
    for rank in range(devices * len(stages)):
        cuts = stages[rank // devices]
        shards = {name: shard_of(full[name], s, rank % devices) for name, s in cuts.items()}
        write_file(folder / f"rank_{rank}" / f"model_{rank}{suffix}", shards, slice_nbytes=slice_nbytes)
    return folder


def read_file(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    if path.suffix == ".ckpt":
        return _from_ckpt(data)
    return {
        name: np.frombuffer(bytearray(e["data"]), dtype_named(_CODES[e["dtype"]])).reshape(e["shape"])
        for name, e in safetensors.deserialize(data)
    }


def read_rank(folder: Path, rank: int) -> dict[str, np.ndarray]:
    """What the one weight file of a rank holds."""
    (path,) = (folder / f"rank_{rank}").iterdir()
    return read_file(path)


def ckpt_bytes(arrays: Arrays, texts: Mapping[str, str], slice_nbytes: int = 1 << 29) -> bytes:
    """Message by message, as checkpoint.proto has it."""
    out = b""
    for name, a in arrays.items():
        data = a.tobytes()
        for start in range(0, max(len(data), 1), slice_nbytes):
            out += ckpt_value(name, a.shape, _CKPT[a.dtype.name], data[start : start + slice_nbytes])
    for name, text in texts.items():
        out += ckpt_value(name, (0,), "str", text.encode("utf-32-le"))
    return out


def ckpt_value(name: str, dims: tuple[int, ...], dtype: str, content: bytes) -> bytes:
    tensor = b"".join(b"\x08" + _varint(n) for n in dims) + _field(2, dtype.encode()) + _field(3, content)
    return _field(1, _field(1, name.encode()) + _field(2, tensor))


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _from_ckpt(data: bytes) -> dict[str, np.ndarray]:
    found: dict[str, tuple[list[int], str, bytes]] = {}
    for _, value in _fields(data):
        parts = dict(_fields(value))
        fields = list(_fields(parts[2]))
        dims = [v for k, v in fields if k == 1]
        dtype, content = (next(v for k, v in fields if k == n) for n in (2, 3))
        name = parts[1].decode()
        before = found[name][2] if name in found else b""
        found[name] = (dims, dtype.decode(), before + content)
    return {
        name: np.frombuffer(bytearray(content), dtype_named(_FROM_CKPT[dtype])).reshape(dims)
        for name, (dims, dtype, content) in found.items()
        if dtype != "str"
    }


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        number, kind = data[at] >> 3, data[at] & 7
        value, at = _read_varint(data, at + 1)
        if kind == 2:
            yield number, data[at : at + value]
            at += value
        else:
            yield number, value


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 128:
        value, shift, at = value | (data[at] & 127) << shift, shift + 7, at + 1
    return value | data[at] << shift, at + 1


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, apart from our own in ``.reshard``."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".reshard" not in p.relative_to(folder).parts
    }
