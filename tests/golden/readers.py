"""Readers of both weight formats and of protobuf strategies that share no line with reshard.

They hold whole files in memory and check nothing; the tests compare what they give with what reshard gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Value(NamedTuple):
    """A stored tensor: element type as MindSpore calls it, shape, bytes. A string is of type ``str``."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes


SAFETENSORS_TYPES = {
    "BOOL": "Bool", "I8": "Int8", "U8": "UInt8", "I16": "Int16", "U16": "UInt16", "I32": "Int32", "U32": "UInt32",
    "I64": "Int64", "U64": "UInt64", "F16": "Float16", "BF16": "BFloat16", "F32": "Float32", "F64": "Float64",
}  # fmt: skip


def messages(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message in order: number, then an int or the bytes of a nested one."""
    view = memoryview(data)
    place = 0

    def number() -> int:
        nonlocal place
        groups = []
        while True:
            groups.append(view[place])
            place += 1
            if not groups[-1] & 0x80:
                return sum((g & 0x7F) << (7 * i) for i, g in enumerate(groups))

    while place < len(view):
        field, kind = divmod(number(), 8)
        if kind == 0:
            yield field, number()
        elif kind == 2:
            end = number() + place
            assert end <= len(view), f"field {field} ends at {end} of {len(view)}"
            yield field, bytes(view[place:end])
            place = end
        else:
            raise AssertionError(f"wire type {kind} in field {field}")


def read_ckpt(path: Path) -> dict[str, Value]:
    """The tensors of a ``.ckpt`` in file order, pieces joined, the CRC tail passed over."""
    data = path.read_bytes()
    if data[-17:-10] == b"crc_num":
        data = data[:-17]
    found: dict[str, Value] = {}
    for _, one in messages(data):
        assert isinstance(one, bytes)
        value = dict(messages(one))
        name, body = value[1], value[2]
        assert isinstance(name, bytes)
        assert isinstance(body, bytes)
        parts = list(messages(body))
        dims = tuple(n for k, n in parts if k == 1 and isinstance(n, int))
        dtype = b"".join(v for k, v in parts if k == 2 and isinstance(v, bytes)).decode()
        content = b"".join(v for k, v in parts if k == 3 and isinstance(v, bytes))
        if dims == (0,) and content and dtype != "str":  # a scalar of older writers
            dims = ()
        before = found[name.decode()].content if name.decode() in found else b""
        found[name.decode()] = Value(dtype, dims, before + content)
    return found


def read_safetensors(path: Path) -> dict[str, Value]:
    """The tensors of a ``.safetensors``."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            dtype = SAFETENSORS_TYPES.get(entry["dtype"], entry["dtype"])
            found[name] = Value(dtype, tuple(entry["shape"]), data[start + begin : start + end])
    return found


def read_metadata(path: Path) -> dict[str, str]:
    """``__metadata__`` of a ``.safetensors``."""
    data = path.read_bytes()
    made: dict[str, str] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    return made


def read_weights(path: Path) -> dict[str, Value]:
    return (read_safetensors if path.suffix == ".safetensors" else read_ckpt)(path)


def weight_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in (".ckpt", ".safetensors")) if folder.is_dir() else []


def read_items(path: Path) -> tuple[dict[str, object], dict[str, object]]:
    """Layout items and operator items of a strategy file by name, as they stand there."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        return content["parallel_layout_item"], content["parallel_strategy_item"]
    items: dict[int, dict[str, object]] = {2: {}, 3: {}}
    for field, item in messages(path.read_bytes()):
        if isinstance(item, bytes):
            parts = dict(messages(item))
            name = parts[1]
            assert isinstance(name, bytes)
            items[field][name.decode()] = item
    return items[3], items[2]


def tensor_names(strategy: Path) -> set[str]:
    """Names that a strategy file or folder lays out, without the stage in front."""
    files = [strategy]
    if strategy.is_dir():
        files = sorted(p for p in strategy.iterdir() if p.suffix in (".ckpt", ".json") and p.name != "how.json")
    return {re.sub(r"^\d+-", "", name) for file in files for name in read_items(file)[0]}
