"""Values → a pickle of protocol 2, as torch.load reads it with ``weights_only``; the reverse of ``pickled``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import pack
from typing import Any

from reshard.formats.pickle_objects import NEW_OBJECT, Global, Record
from reshard.formats.torch_values import STORAGE_CLASSES, StorageRef, TensorRef

_ORDERED_DICT = Global("collections", "OrderedDict")
_UNTYPED = Global("torch.storage", "UntypedStorage")
_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
_RAW_TENSOR = Global("torch._utils", "_rebuild_tensor_v3")


def write_pickle(value: Any) -> bytes:
    """None, numbers, text, bytes, tuples, lists, dicts, TensorRefs, Globals and Records of these. What is shared is
    written again in each place; there are no cycles.

    >>> write_pickle({"a": (1, True)})
    b'\\x80\\x02}X\\x01\\x00\\x00\\x00aK\\x01\\x88\\x86s.'
    """
    out = bytearray(b"\x80\x02")
    _write(value, out.extend)
    return bytes(out + b".")


_Put = Callable[[bytes], None]


def _write(value: Any, put: _Put) -> None:
    match value:
        case None | bool() | int() | float() | str() | bytes():
            _write_plain(value, put)
        case tuple():
            _write_tuple(value, put)
        case list():
            put(b"]")
            _write_marked(value, b"e", put)
        case dict():
            put(b"}")
            _write_pairs(value.items(), put)
        case Global():
            put(f"c{value.module}\n{value.name}\n".encode())
        case TensorRef():
            _write(_call_for(value), put)
        case StorageRef(start=0) if value.stop == value.count:
            kind = _UNTYPED if value.raw else Global("torch", STORAGE_CLASSES[value.dtype])
            _write(("storage", kind, value.key, value.place, value.count), put)
            put(b"Q")
        case Record():
            _write_record(value, put)
        case _:
            raise TypeError(f"a {type(value).__name__} in a pickle")


def _write_plain(value: int | float | str | bytes | None, put: _Put) -> None:
    match value:
        case None:
            put(b"N")
        case bool():
            put(b"\x88" if value else b"\x89")
        case int() if 0 <= value < 256:
            put(b"K" + pack("<B", value))
        case int() if -(1 << 31) <= value < 1 << 31:
            put(b"J" + pack("<i", value))
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            put(b"\x8a" + pack("<B", len(data)) + data)
        case float():
            put(b"G" + pack(">d", value))
        case str():
            data = value.encode()
            put(b"X" + pack("<I", len(data)) + data)
        case bytes():  # protocol 2 has no opcode for them
            _write(Record(Global("_codecs", "encode"), (value.decode("latin-1"), "latin1")), put)


def _write_tuple(value: tuple[Any, ...], put: _Put) -> None:
    if not value:
        put(b")")
    elif len(value) > 3:
        _write_marked(value, b"t", put)
    else:
        for item in value:
            _write(item, put)
        put((b"\x85", b"\x86", b"\x87")[len(value) - 1])


def _write_marked(values: Iterable[Any], end: bytes, put: _Put) -> None:
    put(b"(")
    for value in values:
        _write(value, put)
    put(end)


def _write_pairs(pairs: Iterable[tuple[Any, Any]], put: _Put) -> None:
    for key, value in pairs:
        _write(key, put)
        _write(value, put)
        put(b"s")


def _write_record(value: Record, put: _Put) -> None:
    if value.factory == NEW_OBJECT:  # of a class, without a call of its __init__
        _write(value.args[0], put)
        _write(value.args[1:], put)
        put(b"\x81")
    else:
        _write(value.factory, put)
        _write(value.args, put)
        put(b"R")
    if value.items and isinstance(value.items[0], tuple):
        _write_pairs(value.items, put)
    elif value.items:
        _write_marked(value.items, b"e", put)
    if value.state is not None:
        _write(value.state, put)
        put(b"b")


def _call_for(tensor: TensorRef) -> Record:
    """The call that torch makes of a tensor: by its storage's class, or by its dtype where none has it."""
    common = (tensor.storage, tensor.offset, tensor.shape, tensor.strides, False, Record(_ORDERED_DICT))
    marks = {name: True for name, is_set in (("conj", tensor.conjugated), ("neg", tensor.negated)) if is_set}
    dtype = (Global("torch", tensor.dtype),) if tensor.storage.raw else ()
    return Record(_RAW_TENSOR if dtype else _TENSOR, (*common, *dtype, *((marks,) if marks else ())))
