"""What torch and Python put into pickles, as values: tensors by storage, offset and strides; plain containers.

Source: torch 2.13, ``torch/_utils.py``, ``torch/serialization.py``, ``torch/storage.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from msgspec import Struct

from reshard.dtypes import ITEMSIZE
from reshard.errors import FormatError
from reshard.formats.pickle_names import code, may_take
from reshard.formats.pickle_objects import attributes
from reshard.formats.pickle_paths import within
from reshard.formats.pickled import GETATTR, Global, Meaning, More, Pickled, Record, Resolve, nothing_more, read_pickle
from reshard.index import MAX_DIMS, TensorSpec

_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
    "ComplexFloat": "complex64", "ComplexDouble": "complex128",
}  # fmt: skip
STORAGE_CLASSES = {dtype: f"{name}Storage" for name, dtype in _STORAGES.items()}
"""The class of the storage of a dtype, as in ``torch.FloatStorage``; newer dtypes have none."""

RAW_DTYPES = frozenset(
    {
        "uint16", "uint32", "uint64", "complex32", "float4_e2m1fn_x2", "float8_e4m3fn", "float8_e5m2",
        "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
    }
)  # fmt: skip
_UNTYPED = "uint8"
_QUANTISED = {"QInt8Storage": 1, "QInt32Storage": 4, "QUInt8Storage": 1, "QUInt4x2Storage": 1, "QUInt2x4Storage": 1}
"""Bytes of an element, by class; their tensors are not read, and other storages may follow them in a file."""
_MAX = 1 << 63


class StorageRef(Struct, frozen=True):
    """Elements of a record of the file, or a part of them.

    Attributes:
        key: names the record: ``data/<key>`` in a zip.
        dtype: of its elements.
        count: elements of the record.
        start, stop: the part that is meant; all of it but in very old files.
        place: the device that it was on, as in ``cuda:0``; ``meta`` has no bytes.
        raw: its elements are bytes, of whatever dtype the tensors in it are.
    """

    key: str
    dtype: str
    count: int
    start: int
    stop: int
    place: str
    raw: bool = False

    @property
    def nbytes(self) -> int:
        """Of the record."""
        return self.count * (_QUANTISED[self.dtype] if self.dtype in _QUANTISED else ITEMSIZE[self.dtype])


class TensorRef(Struct, frozen=True):
    """A view into a storage. ``offset`` and ``strides`` count elements of ``dtype``.

    Attributes:
        conjugated: the numbers are stored as their complex conjugates.
        negated: the numbers are stored with the opposite sign.
    """

    storage: StorageRef
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    conjugated: bool = False
    negated: bool = False

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def stop(self) -> int:
        """The element of the storage after the last that it reaches."""
        if not self.size:
            return self.offset
        return self.offset + 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))


def whole(key: str, spec: TensorSpec) -> TensorRef:
    """A tensor that has a storage of its own, row-major. Raises FormatError for a dtype that torch does not have.

    >>> whole("0", TensorSpec("float32", (3, 0, 2))).strides
    (2, 2, 1)
    """
    if spec.dtype not in STORAGE_CLASSES and spec.dtype not in RAW_DTYPES:
        raise FormatError(f"torch has no {spec.dtype}")
    strides = tuple(prod(max(n, 1) for n in spec.shape[dim + 1 :]) for dim in range(len(spec.shape)))
    raw = spec.dtype not in STORAGE_CLASSES
    count = spec.nbytes if raw else prod(spec.shape)
    storage = StorageRef(key, _UNTYPED if raw else spec.dtype, count, 0, count, "cpu", raw)
    return TensorRef(storage, spec.dtype, spec.shape, strides, 0)


def storage(pid: Any) -> StorageRef:
    """The storage of a persistent id of torch: ``("storage", class, key, location, elements[, part])``."""
    match pid:
        case ("storage", Global() as kind, str(key), str(place), int(count), *rest) if len(rest) < 2:
            part = rest[0] if rest else None
        case _:
            raise FormatError("the pickle refers to something that is no storage")
    dtype = _storage_dtype(kind)
    if not 0 <= count < _MAX:
        raise FormatError(f"storage {key!r} of {count} elements")
    raw = kind.name == "UntypedStorage"
    match part:
        case None:
            return StorageRef(key, dtype, count, 0, count, place, raw)
        case (str(), int(start), int(size)) if 0 <= start <= start + size <= count:
            return StorageRef(key, dtype, count, start, start + size, place, raw)
    raise FormatError(f"a part of storage {key!r} that does not lie within it")


def read_value(
    data: bytes,
    resolve: Resolve = storage,
    more: More = nothing_more,
    meanings: Mapping[Global, Meaning] = {},
) -> Pickled:
    """The value of a pickle as torch writes them: dicts, lists, texts and numbers, TensorRef and StorageRef, and
    Records for all other objects. Raises FormatError, also for a pickle that runs code when loaded, and for a tensor
    that is an attribute of a dict.

    Args:
        resolve: what a persistent id stands for.
        meanings: of more calls.
    """
    pickled = read_pickle(data, {**MEANINGS, **meanings}, resolve, more)
    seen: set[int] = set()
    for state in pickled.beside:
        for name, value in attributes(state).items():
            if any(isinstance(one, TensorRef) for one in within(value, seen)):
                raise FormatError(
                    f"a dict has a tensor as its attribute {name!r}, which no key names", hint="save it under a key"
                )
    return pickled


def _storage_dtype(kind: Global) -> str:
    if kind.name == "UntypedStorage" and kind.module in ("torch", "torch.storage"):
        return _UNTYPED
    name = kind.name.removesuffix("Storage")
    if kind.module in ("torch", "torch.cuda") and kind.name in _QUANTISED:
        return kind.name
    if kind.module not in ("torch", "torch.cuda") or name not in _STORAGES or name == kind.name:
        raise FormatError(f"a storage of class {kind}, which is unknown")
    return _STORAGES[name]


# ---- tensors: each function takes what the function of torch of a similar name is given


def _tensor_v1(args: tuple[Any, ...]) -> TensorRef:
    _expect("_rebuild_tensor", args, 4, 4)
    return _view(args[0], args[1], args[2], args[3], args[0].dtype if isinstance(args[0], StorageRef) else "")


def _tensor_v2(args: tuple[Any, ...]) -> TensorRef:
    _expect("_rebuild_tensor_v2", args, 6, 7)
    dtype = args[0].dtype if isinstance(args[0], StorageRef) else ""
    return _view(args[0], args[1], args[2], args[3], dtype, args[6] if len(args) > 6 else None)


def _tensor_v3(args: tuple[Any, ...]) -> TensorRef:
    _expect("_rebuild_tensor_v3", args, 7, 8)
    dtype = args[6].name if isinstance(args[6], Global) and args[6].module == "torch" else str(args[6])[:40]
    return _view(args[0], args[1], args[2], args[3], dtype, args[7] if len(args) > 7 else None)


def _view(source: Any, offset: Any, shape: Any, strides: Any, dtype: str, metadata: Any = None) -> TensorRef:
    if not isinstance(source, StorageRef):
        raise FormatError(f"a tensor whose storage is a {type(source).__name__}")
    if dtype not in ITEMSIZE or source.dtype not in ITEMSIZE:
        raise FormatError(f"a tensor in storage {source.key!r} is {dtype}, which is unknown")
    if not _is_count(offset) or not _are_counts(shape) or not _are_counts(strides) or len(shape) != len(strides):
        raise FormatError(f"a tensor in storage {source.key!r} has shape {shape}, strides {strides}, offset {offset}")
    marks = metadata or {}
    if not isinstance(marks, dict) or not set(marks) <= {"conj", "neg"}:
        raise FormatError(f"a tensor in storage {source.key!r} is marked with {marks}, which is unknown")
    found = TensorRef(source, dtype, shape, strides, offset, bool(marks.get("conj")), bool(marks.get("neg")))
    room = (source.stop - source.start) * ITEMSIZE[source.dtype]
    if found.stop * ITEMSIZE[dtype] > room and found.size:
        raise FormatError(
            f"a tensor of shape {list(shape)} reaches element {found.stop:,} of data/{source.key}, which has "
            f"{room // ITEMSIZE[dtype]:,}",
            hint="the file is damaged: copy it again",
        )
    return found


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX


def _are_counts(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_DIMS and all(map(_is_count, value))


def _expect(what: str, args: tuple[Any, ...], least: int, most: int) -> None:
    if not least <= len(args) <= most:
        raise FormatError(f"{what} is given {len(args)} arguments, it takes {least} to {most}")


def _first(what: str, least: int, most: int) -> Meaning:
    """A call that gives back its first argument, with attributes that say nothing of its numbers."""

    def meaning(args: tuple[Any, ...]) -> Any:
        _expect(what, args, least, most)
        return args[0]

    return meaning


def _from_type(args: tuple[Any, ...]) -> Any:
    """``func(*args)`` with a type to give the result, and attributes: plain where the type is one of torch's own."""
    _expect("_rebuild_from_type_v2", args, 4, 4)
    func, kind, given, _ = args
    known = isinstance(func, Global) and func.module == "torch._utils" and func in MEANINGS
    if known and kind in _PLAIN_TENSORS and isinstance(given, tuple):
        return MEANINGS[func](given)
    return Record(_FROM_TYPE, args[:3], args[3])


# ---- Python's own


def _mapping(args: tuple[Any, ...]) -> Any:
    """OrderedDict and Counter: of nothing, of a dict, or of pairs."""
    match args:
        case ():
            return {}
        case (dict() as given,):
            return dict(given)
        case (list() | tuple() as pairs,) if all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
            return {_plain(key): value for key, value in pairs}
        case _:
            raise FormatError("a dict is built of what are no pairs")


def _default_dict(args: tuple[Any, ...]) -> Any:
    return _mapping(args[1:])


def _set(args: tuple[Any, ...]) -> Any:
    match args:
        case ():
            return set()
        case (list() | tuple() as items,):
            return {_plain(item) for item in items}
        case _:
            raise FormatError("a set is built of what is no list")


def _frozen_set(args: tuple[Any, ...]) -> Any:
    return frozenset(_set(args))


def _plain(key: Any) -> Any:
    if not isinstance(key, str | int | float | bytes | None | Global | Record):
        raise FormatError(f"a {type(key).__name__} as a key")
    return key


def _size(args: tuple[Any, ...]) -> Any:
    match args:
        case ():
            return ()
        case (list() | tuple() as sizes,):
            return tuple(sizes)
        case _:
            raise FormatError("a torch.Size of what are no sizes")


def _encoded(args: tuple[Any, ...]) -> Any:
    """Bytes, as protocol 2 spells them: text of which each character is one."""
    match args:
        case (str(text), "latin1" | "latin-1") if all(ord(character) < 256 for character in text):
            return text.encode("latin-1")
        case ():
            return b""
        case (bytes(data),):
            return data
        case _:
            raise FormatError("bytes are built of what are no bytes")


def _complex(args: tuple[Any, ...]) -> Any:
    match args:
        case (float(real), float(imaginary)):
            return complex(real, imaginary)
        case _:
            raise FormatError("a complex number is built of what are no numbers")


def _member(args: tuple[Any, ...]) -> Any:
    """``getattr``, by which old protocols name what lies within a class; any other use of it is a way to run code."""
    match args:
        case (Global() as kind, str(name)) if may_take(str(kind), name):
            return Global(kind.module, f"{kind.name}.{name}")
        case _:
            raise code(GETATTR.module, GETATTR.name)


_FROM_TYPE = Global("torch._tensor", "_rebuild_from_type_v2")
_PLAIN_TENSORS = frozenset(
    {
        Global("torch", "Tensor"), Global("torch._tensor", "Tensor"), Global("torch.nn.parameter", "Parameter"),
        Global("torch.nn.parameter", "Buffer"),
    }
)  # fmt: skip

MEANINGS: dict[Global, Meaning] = {
    Global("torch._utils", "_rebuild_tensor"): _tensor_v1,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    Global("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    Global("torch._utils", "_rebuild_parameter"): _first("_rebuild_parameter", 3, 3),
    Global("torch._utils", "_rebuild_parameter_with_state"): _first("_rebuild_parameter_with_state", 4, 4),
    Global("torch.nn.parameter", "Parameter"): _first("Parameter", 1, 2),
    _FROM_TYPE: _from_type,
    Global("torch", "Size"): _size,
    Global("collections", "OrderedDict"): _mapping,
    Global("collections", "Counter"): _mapping,
    Global("collections", "defaultdict"): _default_dict,
    Global("builtins", "dict"): _mapping,
    Global("builtins", "set"): _set,
    Global("builtins", "frozenset"): _frozen_set,
    Global("builtins", "bytearray"): _encoded,
    Global("builtins", "bytes"): _encoded,
    Global("_codecs", "encode"): _encoded,
    Global("builtins", "complex"): _complex,
    GETATTR: _member,
}
"""The calls that are understood; each is answered with a value, none is made."""
