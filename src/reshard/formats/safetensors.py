"""``.safetensors``: eight bytes of header length, a JSON header, then the bytes of every tensor without gaps.

Source: github.com/huggingface/safetensors README ("Format"). MindSpore's additions live in ``__metadata__``:
``format`` is ``ms``,
``remove_redundancy`` says whether replicas were dropped, and ``<tensor>: "Int4"`` marks packed int4 stored as I8.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from reshard.errors import FormatError
from reshard.formats.base import SHARDING, ByteRanges, Phases
from reshard.formats.phase import ALIGNED_NBYTES, in_phase, width
from reshard.index import Contents, Extent, Frame, StatedCrc, Stored, TensorSpec

_TYPES = {
    "BOOL": "bool", "I8": "int8", "U8": "uint8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_CODES = {dtype: code for code, dtype in _TYPES.items()} | {"int4x2": "I8"}
_PACKED = {"F4": ("float4_e2m1fn_x2", 2), "F6_E2M3": ("float6_e2m3fn_x4", 4), "F6_E3M2": ("float6_e3m2fn_x4", 4)}
"""Values of less than a byte: one of our elements is as many of them as fill whole bytes."""
_PACKS = {dtype: (code, values) for code, (dtype, values) in _PACKED.items()}
_MAX_HEADER_NBYTES = 100_000_000  # the official library's limit
_WINDOW_NBYTES = 65536
_COMMON_HEADER_NBYTES = 1 << 20
_METADATA = "__metadata__"
_INT4 = "Int4"
_Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
NOTES = frozenset({"format", "remove_redundancy", "crc_num", SHARDING, "DCP_VERSION"})
"""Keys of ``__metadata__`` that speak of the file; all others are texts of its owner."""


class Safetensors(Struct, frozen=True):
    name: str = "safetensors"
    suffix: str = ".safetensors"

    def read_index(self, source: ByteRanges) -> Contents:
        header = _read_header(source)
        read = _read_again if len(header) <= _COMMON_HEADER_NBYTES else _read_last
        return read(header, source.nbytes)

    def frame(self, tensors: Mapping[str, TensorSpec], texts: Mapping[str, str], notes: Mapping[str, str]) -> Frame:
        # widest elements first, so that each tensor begins at a multiple of its element size
        order = sorted(tensors, key=lambda name: (-width(tensors[name]), name))
        return _framed({name: tensors[name] for name in order}, texts, notes, (ALIGNED_NBYTES, 0))

    def frame_in_phase(
        self, tensors: Mapping[str, TensorSpec], texts: Mapping[str, str], notes: Mapping[str, str], phases: Phases
    ) -> Frame:
        """As ``frame``, but in such an order, and with so many spaces after the header, that tensors lie in phase."""
        begin, order = in_phase(tensors, phases)
        return _framed({name: tensors[name] for name in order}, texts, notes, (phases.block_nbytes, begin))

    def crcs(self, source: ByteRanges) -> tuple[StatedCrc, ...]:
        return ()


def _framed(
    tensors: Mapping[str, TensorSpec], texts: Mapping[str, str], notes: Mapping[str, str], begin: tuple[int, int]
) -> Frame:
    """Tensors in this order. ``begin``: bytes of a block, and where in one the first tensor begins."""
    if _METADATA in tensors:
        raise FormatError("a tensor named '__metadata__' cannot be stored in safetensors", hint="--rename it")
    taken = sorted(n for n in texts if n in NOTES or n in tensors)
    if taken:
        raise FormatError(
            f"string {taken[0]!r} would be taken for something else in safetensors", hint="--rename or --exclude it"
        )
    marks = {name: _INT4 for name, spec in tensors.items() if spec.dtype == "int4x2"}
    metadata = {**texts, **marks, **notes}
    header: dict[str, Any] = {_METADATA: metadata} if metadata else {}
    at = 0
    places = {}
    for name, spec in tensors.items():
        nbytes = spec.nbytes
        places[name] = at, nbytes
        code, shape = _written(name, spec)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": (at, at + nbytes)}
        at += nbytes
    text = msgspec.json.encode(header)
    block_nbytes, place = begin
    text += b" " * ((place - 8 - len(text)) % block_nbytes)
    if len(text) > _MAX_HEADER_NBYTES:
        raise FormatError(
            f"a header of {len(text):,} bytes, readers take {_MAX_HEADER_NBYTES:,} at most",
            hint="write several files: --max-shard-size 5GiB",
        )
    head = len(text).to_bytes(8, "little") + text
    holes = {name: (Extent(len(head) + first, nbytes),) for name, (first, nbytes) in places.items()}
    return Frame(len(head) + at, ((0, head),), holes)


def _written(name: str, spec: TensorSpec) -> tuple[str, tuple[int, ...]]:
    """Type and shape as a header has them."""
    if spec.dtype in _CODES:
        return _CODES[spec.dtype], spec.shape
    if spec.dtype not in _PACKS:
        raise FormatError(
            f"tensor {name!r} is {spec.dtype}, which safetensors cannot hold",
            hint="leave it out with --exclude, or write a torch file (--format torch)",
        )
    code, values = _PACKS[spec.dtype]
    if not spec.shape:
        raise FormatError(f"tensor {name!r} is {spec}: values of less than a byte have no place without a row")
    return code, (*spec.shape[:-1], spec.shape[-1] * values)


class _HeaderEntry(Struct):
    dtype: Any
    shape: tuple[_Size, ...]
    data_offsets: tuple[_Size, _Size]


_HEADER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENTRY = msgspec.json.Decoder(_HeaderEntry)
_TEXTS = msgspec.json.Decoder(dict[str, str] | None)


def _contents(content: bytes, nbytes: int) -> Contents:
    """What a header says of a file of so many bytes."""
    entries, start = _entries(content), 8 + len(content)
    metadata = _metadata(entries.pop(_METADATA, None))
    tensors = {name: _stored(name, entry, start, metadata) for name, entry in entries.items()}
    _check_tiling(tensors, start, nbytes)
    texts = {k: v for k, v in metadata.items() if k not in NOTES and k not in tensors}
    return Contents(tensors, texts, {k: v for k, v in metadata.items() if k in NOTES})


_read_again = lru_cache(maxsize=32)(_contents)
"""The ranks of a pipeline stage have the same header: it is understood once."""
_read_last = lru_cache(maxsize=1)(_contents)
"""What a header of many tensors says takes room: one alone is kept."""


def _read_header(source: ByteRanges) -> bytes:
    if source.nbytes < 8:
        raise FormatError(f"file has {source.nbytes} bytes, a header needs 8", hint="copy the file again")
    start = source.read(0, min(source.nbytes, _WINDOW_NBYTES))  # the whole header of most files
    length = int.from_bytes(start[:8], "little")
    if length > source.nbytes - 8:
        raise FormatError(
            f"a header of {length:,} bytes is announced, the file has {source.nbytes:,}",
            hint="not a safetensors file, or cut short: copy it again",
        )
    if length > _MAX_HEADER_NBYTES:
        raise FormatError(
            f"a header of {length:,} bytes, {_MAX_HEADER_NBYTES:,} bytes at most are read, here and elsewhere",
            hint="write the model in several files, each with a smaller header",
        )
    rest = 8 + length - len(start)
    return start[8 : 8 + length] + (source.read(len(start), rest) if rest > 0 else b"")


def _entries(content: bytes) -> dict[str, msgspec.Raw]:
    """As they stand, by name. Raises FormatError for a key that stands twice."""
    try:
        content.decode()  # what is decoded later is not looked at before
        entries = _HEADER.decode(content)
        if b"\\" in content or _colons(content, entries) != _colons_of(entries):
            json.loads(content, object_pairs_hook=_unique)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"the header is not JSON of tensors: {error}", hint="copy the file again") from None
    return entries


def _colons(content: bytes, entries: Mapping[str, msgspec.Raw]) -> int:
    """How many there are besides those in names and metadata: one for each key, also one that stands twice."""
    return content.count(b":") - "".join(entries).count(":") - bytes(entries.get(_METADATA, b"")).count(b":")


def _colons_of(entries: Mapping[str, msgspec.Raw]) -> int:
    """How many there are where each key stands once."""
    return len(entries) + len(_HeaderEntry.__struct_fields__) * (len(entries) - (_METADATA in entries))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        times = Counter(name for name, _ in pairs)
        raise FormatError(f"{next(name for name in times if times[name] > 1)!r} appears twice in the header")
    return made


def _metadata(entry: msgspec.Raw | None) -> dict[str, str]:
    if entry is None:
        return {}
    try:
        texts = _TEXTS.decode(entry)
    except msgspec.MsgspecError as error:
        raise FormatError(f"__metadata__ is not a map of strings: {error}") from None
    json.loads(bytes(entry), object_pairs_hook=_unique)
    return texts or {}


def _stored(name: str, raw: msgspec.Raw, start: int, metadata: Mapping[str, str]) -> Stored:
    try:
        entry = _ENTRY.decode(raw)
    except msgspec.MsgspecError as error:
        raise FormatError(f"the entry of tensor {name!r} is not dtype, shape and data_offsets: {error}") from None
    code, shape, (begin, end) = entry.dtype, entry.shape, entry.data_offsets
    int4 = code == "I8" and metadata.get(name) == _INT4
    spec = TensorSpec("int4x2", shape) if int4 else _spec(name, code, shape)
    if spec.nbytes != end - begin:
        raise FormatError(f"tensor {name!r} is {code}{list(shape)} and has {end - begin} bytes")
    return Stored(spec, (Extent(start + begin, end - begin),))


@lru_cache(maxsize=1024)
def _spec_of(dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    """Of equal tensors the same object."""
    return TensorSpec(dtype, shape)


def _spec(name: str, code: object, shape: tuple[int, ...]) -> TensorSpec:
    """What a header's type and shape are here. Raises FormatError by tensor name."""
    if isinstance(code, str) and code in _TYPES:
        return _spec_of(_TYPES[code], shape)
    if not isinstance(code, str) or code not in _PACKED:
        raise FormatError(f"tensor {name!r} is {code!r}: an unknown type")
    dtype, values = _PACKED[code]
    if not shape or shape[-1] % values:
        raise FormatError(f"tensor {name!r} is {code}{list(shape)}: a row of it does not come out on whole bytes")
    return TensorSpec(dtype, (*shape[:-1], shape[-1] // values))


def _check_tiling(tensors: Mapping[str, Stored], start: int, end: int) -> None:
    """Every byte after the header belongs to exactly one tensor. Raises FormatError."""
    at, before = start, "the header"
    places = [(stored.extents[0].offset, stored.extents[0].nbytes, name) for name, stored in tensors.items()]
    for offset, nbytes, name in sorted(places):
        if offset != at:
            fault = "overlap" if offset < at else "leave a hole"
            raise FormatError(f"{before!r} and {name!r} {fault} at byte {min(at, offset)}")
        at, before = offset + nbytes, name
    if at != end:
        raise FormatError(f"file has {end} bytes, header describes {at}", hint="copy the file again")
