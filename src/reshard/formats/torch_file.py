"""``pytorch_model.bin``, ``.pt``, ``.pth``: what ``torch.save`` writes, read without torch, and none of it run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import product
from math import prod
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from reshard.dtypes import ITEMSIZE
from reshard.errors import FormatError
from reshard.formats.base import ByteRanges
from reshard.formats.pickle_paths import paths, within
from reshard.formats.pickled import Global, Record
from reshard.formats.pickling import write_pickle
from reshard.formats.torch_records import TorchRecords, read_torch_records
from reshard.formats.torch_values import StorageRef, TensorRef, whole
from reshard.formats.zip_frame import zip_frame
from reshard.formats.zip_records import STORED, ZIP_MARK, zip_records
from reshard.index import Coding, Contents, Extent, Frame, StatedCrc, Stored, TensorSpec

_FOLDER = "archive"
_MAX_RUNS = 1 << 16
_MAX_RUNS_OF_FILE = 1 << 20
_KINDS_TOLD = 6
_SIGNED = frozenset({"float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"})
_SPECIAL = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor on the device 'meta', which has no numbers",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_device_tensor_from_numpy": "a tensor kept as a NumPy array",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}


_FROM_TYPE = "_rebuild_from_type_v2"


class TorchFile(Struct, frozen=True):
    name: str = "torch"
    suffix: str = ".bin"

    def read_index(self, source: ByteRanges) -> Contents:
        return contents(read_torch_records(source))

    def frame(self, tensors: Mapping[str, TensorSpec], texts: Mapping[str, str], notes: Mapping[str, str]) -> Frame:
        taken = sorted(tensors.keys() & texts.keys())
        if taken:
            raise FormatError(f"a tensor and a string are both called {taken[0]!r}", hint="--rename or --exclude it")
        keys = {name: str(number) for number, name in enumerate(tensors)}
        laid = torch_frame(
            {**{name: _whole(name, keys[name], spec) for name, spec in tensors.items()}, **texts},
            {keys[name]: spec.nbytes for name, spec in tensors.items()},
        )
        return replace(laid, holes={name: laid.holes[key] for name, key in keys.items()})

    def crcs(self, source: ByteRanges) -> tuple[StatedCrc, ...]:
        """Those of a zip file's records; 0 is what writers give that compute none."""
        if source.nbytes < len(ZIP_MARK) or source.read(0, len(ZIP_MARK)) != ZIP_MARK:
            return ()
        return tuple(
            StatedCrc(name.partition("/")[2], Extent(record.start, record.packed_nbytes), record.crc)
            for name, record in zip_records(source).items()
            if record.crc and record.method == STORED
        )


def torch_frame(value: Any, storages: Mapping[str, int]) -> Frame:
    """Lay out a file of a value whose TensorRefs lie in these storages, by key with their lengths in bytes; by
    key are its holes, too.

    Equal input gives equal files, whatever the numbers are.
    """
    data = write_pickle(value)
    number = int.from_bytes(sha256(data).digest()[:16], "big")
    records: list[tuple[str, bytes | int]] = [
        ("data.pkl", data), (".format_version", b"1"), (".storage_alignment", b"64"), ("byteorder", b"little"),
        *((f"data/{key}", nbytes) for key, nbytes in storages.items()),
        ("version", b"3\n"), (".data/serialization_id", f"{number:040d}".encode()),
    ]  # fmt: skip
    laid = zip_frame([(f"{_FOLDER}/{name}", content) for name, content in records])
    return replace(laid, holes={key: laid.holes[f"{_FOLDER}/data/{key}"] for key in storages})


def torch_bytes(value: Any, storages: Mapping[str, bytes]) -> bytes:
    """A whole small file of a value whose TensorRefs lie in these storages."""
    return torch_frame(value, {key: len(content) for key, content in storages.items()}).filled(storages)


def _whole(name: str, key: str, spec: TensorSpec) -> TensorRef:
    try:
        return whole(key, spec)
    except FormatError:
        raise FormatError(
            f"tensor {name!r} is {spec.dtype}, which torch does not have",
            hint="leave it out with --exclude, or write another format (--format)",
        ) from None


def contents(records: TorchRecords) -> Contents:
    """Tensors and texts by their paths. Raises FormatError for a tensor that is not plain, by its name."""
    tensors: dict[str, Stored] = {}
    texts: dict[str, str] = {}
    other: Counter[str] = Counter()
    seen: set[int] = set()
    runs = 0
    for name, value in paths(records.pickled.value, records.nbytes):
        if isinstance(value, TensorRef | str) and (name in tensors or name in texts):
            raise FormatError(f"two values are called {name!r}, as dots join the keys of nested dicts")
        if isinstance(value, TensorRef):
            tensors[name] = _stored(name, value, records)
            runs += len(tensors[name].extents)
            if runs > _MAX_RUNS_OF_FILE:
                raise FormatError(f"its tensors lie in more than {_MAX_RUNS_OF_FILE:,} runs of bytes")
        elif isinstance(value, str):
            texts[name] = value
        else:
            refuse_special(name, value, seen)
            other[_kind(value)] += 1
    return Contents(tensors, texts, {}, tuple(_warnings(other, records.pickled.unknown)))


def _warnings(other: Counter[str], unknown: Mapping[str, int]) -> Iterator[str]:
    if other:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in other.most_common(_KINDS_TOLD))
        more = f" and {len(other) - _KINDS_TOLD} other kinds" if len(other) > _KINDS_TOLD else ""
        yield f"what is neither tensor nor text is left out: {kinds}{more}"
    for name, count in sorted(unknown.items()):
        yield f"{name} is a class that we do not know: what is of it ({count:,}) was not built, and is left out"


def _kind(value: Any) -> str:
    if isinstance(value, Record):
        return str(value.factory)
    return "storage" if isinstance(value, StorageRef) else type(value).__name__


def refuse_special(name: str, value: Any, seen: set[int]) -> None:
    """Raises FormatError for a tensor that is not plain numbers, and for an object that holds tensors.

    ``seen`` are objects found to be neither; they are not looked at again.
    """
    for one in within(value, seen):
        special = _special(one) if isinstance(one, Record) else None
        if special is not None:
            raise FormatError(f"tensor {name!r} is {special[0]} ({special[1]})")
        if isinstance(one, TensorRef) and one is not value:
            kind = value.factory if isinstance(value, Record) else type(value).__name__
            module = str(kind).startswith("torch.nn.modules.")
            raise FormatError(
                f"tensor {name!r} lies in an object of class {kind}"
                + (": a whole module was saved" if module else ", which is not read as a plain tensor"),
                hint="save its state_dict() instead" if module else "save plain tensors, without it",
            )


def _special(one: Record) -> tuple[str, Global] | None:
    """What tensor that is not plain numbers an object is, and the call that makes it."""
    if one.factory.name != _FROM_TYPE:
        return (_SPECIAL[one.factory.name], one.factory) if one.factory.name in _SPECIAL else None
    func, kind = one.args[:2]
    return _SPECIAL.get(getattr(func, "name", ""), f"a tensor of class {kind}"), one.factory


def _stored(name: str, found: TensorRef, records: TorchRecords) -> Stored:
    shape = found.shape
    try:
        order = _order(found)
        if order:
            found = replace(
                found, shape=tuple(found.shape[d] for d in order), strides=tuple(found.strides[d] for d in order)
            )
        return Stored(TensorSpec(found.dtype, shape), extents(found, records), order)
    except FormatError as error:
        raise FormatError(f"tensor {name!r}: {error.message}", hint=error.hint) from None


def _order(found: TensorRef) -> tuple[int, ...]:
    """Of a view that lies in very many runs, and in few with its dims in another order: that order."""
    by_stride = tuple(sorted(range(len(found.shape)), key=lambda dim: (-found.strides[dim], dim)))
    shape, strides = (tuple(of[dim] for dim in by_stride) for of in (found.shape, found.strides))
    if _count(found.shape, found.strides) <= _MAX_RUNS or _count(shape, strides) > _MAX_RUNS:
        return ()
    return by_stride


def _runs(shape: Sequence[int], strides: Sequence[int]) -> tuple[list[tuple[int, int]], int]:
    """Dims along which runs of elements follow one another, and the elements of a run."""
    dims = [(n, stride) for n, stride in zip(shape, strides, strict=True) if n > 1]
    run = 1
    while dims and dims[-1][1] == run:
        run *= dims.pop()[0]
    return dims, run


def _count(shape: Sequence[int], strides: Sequence[int]) -> int:
    return prod(n for n, _ in _runs(shape, strides)[0])


def extents(found: TensorRef, records: TorchRecords) -> tuple[Extent, ...]:
    """The bytes of a view, row-major. Raises FormatError where they are not in the file or scattered too widely."""
    storage, coded = records.place(found.storage), _coding(found, big_endian=records.big_endian)
    itemsize = ITEMSIZE[found.dtype]
    start = storage.offset + found.storage.start * ITEMSIZE[found.storage.dtype] + found.offset * itemsize
    if not found.size:
        return (Extent(storage.offset, 0),)
    dims, run = _runs(found.shape, found.strides)
    count = prod(n for n, _ in dims)
    if count > _MAX_RUNS:
        raise FormatError(
            f"a view of shape {list(found.shape)} and strides {list(found.strides)} lies in {count:,} runs of bytes",
            hint="make it contiguous() before it is saved",
        )
    return tuple(Extent(start + at * itemsize, run * itemsize, coded) for at in _offsets(dims))


def _coding(found: TensorRef, *, big_endian: bool) -> Coding | None:
    """Marks of conjugation and negation are signs that the numbers lack; of a complex number each part has its own."""
    itemsize = ITEMSIZE[found.dtype]
    is_complex = found.dtype.startswith("complex")
    width = itemsize // 2 if is_complex else itemsize
    if (found.conjugated and not is_complex) or (found.negated and found.dtype not in _SIGNED):
        raise FormatError(f"it is {found.dtype}, and marked as {'conjugated' if found.conjugated else 'negated'}")
    sign = bytes(width - 1) + b"\x80"
    parts = [found.negated] * (itemsize // width)
    parts[-1] ^= found.conjugated
    flipped = b"".join(sign if part else bytes(width) for part in parts) if any(parts) else b""
    width = width if big_endian else 1
    return Coding(width, flipped) if width > 1 or flipped else None


def _offsets(dims: list[tuple[int, int]]) -> Iterator[int]:
    return map(sum, product(*(range(0, n * stride, stride) if stride else (0,) * n for n, stride in dims)))
