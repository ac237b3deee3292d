"""MindSpore's ``.ckpt``: protobuf messages of one tensor each, one after the other.

    Checkpoint   { repeated Value value = 1 }
    Value        { string tag = 1; TensorProto tensor = 2 | MapTensorProto maptensor = 3 }
    TensorProto  { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }

A tensor over 512 MiB is cut into consecutive values of the same tag, each with the full dims. A file may end in
``crc_num`` and ten bytes of
big-endian CRC-32 of all before. Source: MindSpore 2.7.2, mindspore/train/serialization.py and checkpoint.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from msgspec import Struct

from reshard.dtypes import ITEMSIZE
from reshard.errors import FormatError
from reshard.formats.base import ByteRanges
from reshard.formats.header_cache import Kinds
from reshard.index import MAX_DIMS, Checksum, Contents, Extent, Frame, StatedCrc, Stored, TensorSpec
from reshard.wire import BYTES, VARINT, bytes_field, bytes_head, read_varint, signed, varint_field

_TYPES = {
    "Int8": "int8", "UInt8": "uint8", "Int16": "int16", "UInt16": "uint16", "Int32": "int32", "UInt32": "uint32",
    "Int64": "int64", "UInt64": "uint64", "Float16": "float16", "Float32": "float32", "Float64": "float64",
    "Bool": "bool", "BFloat16": "bfloat16", "Int4": "int4x2",
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_ENCRYPTED = {0x7F3A5ED8: "AES-GCM", 0x7F3A5ED9: "AES-CBC", 0x7F3A5EDA: "SM4-CBC"}
_CRC_MARK = b"crc_num"
_CRC_NBYTES = 10
_MAX_NAME_NBYTES = 65536
_WINDOW_NBYTES = 16384
_WIDEST_WINDOW_NBYTES = 1 << 20


class MindSporeCkpt(Struct, frozen=True):
    """``slice_nbytes``: a longer tensor is stored in pieces, as MindSpore does; ``crc``: new files end in one."""

    slice_nbytes: int = 512 << 20
    crc: bool = False
    name: str = "ckpt"
    suffix: str = ".ckpt"

    def read_index(self, source: ByteRanges) -> Contents:
        if source.nbytes == 0:
            raise FormatError("the file is empty", hint="copy the file again")
        known = _KINDS.find(source)
        if known is not None:
            return known
        _refuse_encrypted(source)
        stated = self.crcs(source)
        end = stated[0].of.end if stated else source.nbytes
        cursor = _Cursor(source, end)
        values: dict[str, list[_Value]] = {}
        last = ""
        while cursor.at < end:
            value = _read_value(cursor)
            if value.tag in values and value.tag != last:
                raise FormatError(f"tensor {value.tag!r} appears twice, the second time at byte {value.at}")
            values.setdefault(value.tag, []).append(value)
            last = value.tag
        texts = {tag: _text(cursor, found) for tag, found in values.items() if found[0].dtype == "str"}
        contents = Contents({tag: _stored(tag, found) for tag, found in values.items() if tag not in texts}, texts)
        if not texts:
            _remember([v for found in values.values() for v in found], source.nbytes, contents)
        return contents

    def frame(self, tensors: Mapping[str, TensorSpec], texts: Mapping[str, str], notes: Mapping[str, str]) -> Frame:
        if not tensors and not texts:
            raise FormatError(
                "a .ckpt without a tensor is an empty file, which nothing loads", hint="write safetensors"
            )
        pieces: list[tuple[int, bytes]] = []
        holes: dict[str, tuple[Extent, ...]] = {}
        at = 0
        if "" in tensors or "" in texts:
            raise FormatError(
                "a tensor without a name cannot be stored in .ckpt", hint="write safetensors, or --rename it"
            )
        for name, spec in tensors.items():
            dtype = _NAMES.get(spec.dtype)
            if dtype is None:
                raise FormatError(
                    f"tensor {name!r} is {spec.dtype}, which .ckpt cannot hold",
                    hint="write safetensors (--format safetensors), or cast with --dtype",
                )
            if spec.shape == (0,):
                raise FormatError(
                    f"tensor {name!r} is {spec}, which MindSpore reads from a .ckpt as the number 0",
                    hint="write safetensors, or leave it out with --exclude",
                )
            extents = []
            for start in range(0, max(spec.nbytes, 1), self.slice_nbytes):
                nbytes = min(self.slice_nbytes, spec.nbytes - start)
                head = _head(name, spec.shape, dtype, nbytes)
                pieces.append((at, head))
                extents.append(Extent(at + len(head), nbytes))
                at += len(head) + nbytes
            holes[name] = tuple(extents)
        for name, text in texts.items():
            content = text.encode("utf-32-le")
            piece = _head(name, (0,), "str", len(content)) + content
            pieces.append((at, piece))
            at += len(piece)
        if not self.crc:
            return Frame(at, tuple(pieces), holes)
        pieces.append((at, _CRC_MARK + bytes(_CRC_NBYTES)))
        checksum = Checksum(Extent(0, at), (at + len(_CRC_MARK),), _CRC_NBYTES, big_endian=True)
        return Frame(at + len(pieces[-1][1]), tuple(pieces), holes, (checksum,))

    def crcs(self, source: ByteRanges) -> tuple[StatedCrc, ...]:
        """That of the file's tail, if it has one."""
        content = source.nbytes - len(_CRC_MARK) - _CRC_NBYTES
        tail = source.read(content, len(_CRC_MARK) + _CRC_NBYTES) if content >= 0 else b""
        if not tail.startswith(_CRC_MARK):
            return ()
        return (StatedCrc("", Extent(0, content), int.from_bytes(tail[len(_CRC_MARK) :], "big")),)


def _head(tag: str, dims: tuple[int, ...], dtype: str, nbytes: int) -> bytes:
    """All of a one-value message that stands before its content."""
    tensor = b"".join(varint_field(1, n) for n in dims) + bytes_field(2, dtype.encode())
    tensor += bytes_head(3, nbytes)
    value = bytes_field(1, tag.encode()) + bytes_head(2, len(tensor) + nbytes)
    return bytes_head(1, len(value) + len(tensor) + nbytes) + value + tensor


def _refuse_encrypted(source: ByteRanges) -> None:
    if source.nbytes >= 4:
        cipher = _ENCRYPTED.get(int.from_bytes(source.read(0, 4), "little"))
        if cipher:
            raise FormatError(
                f"the file is encrypted with {cipher}",
                hint="load it with its key in MindSpore and save it without enc_key",
            )


class _Value(Struct, frozen=True):
    """One stored value: a whole tensor, or a piece of one. ``head`` are its bytes without the content."""

    at: int
    head: bytes
    tag: str
    dims: tuple[int, ...]
    dtype: str
    content: Extent


_KINDS = Kinds()


def _remember(values: list[_Value], nbytes: int, contents: Contents) -> None:
    """A file of plain values alone, each with its content last, as all writers lay them out."""
    at = 0
    for value in values:
        if value.at != at or value.content.offset != at + len(value.head):
            return
        at = value.content.end
    if at == nbytes:
        _KINDS.add(nbytes, tuple((value.at, value.head) for value in values), contents)


class _Cursor:
    """A place in a file that reads small fields through a window and passes over large ones.

    The window widens while small tensors follow one another, for each read may cost a round trip; after a large one
    it is narrow again.
    """

    def __init__(self, source: ByteRanges, end: int) -> None:
        self.source = source
        self.end = end
        self.at = 0
        self._window = b""
        self._base = 0
        self._ahead = _WINDOW_NBYTES // 2
        self._taken: list[bytes] = []

    def _need(self, nbytes: int) -> int:
        """Have ``nbytes`` from here in the window, or as many as the file has; gives the place in the window."""
        place = self.at - self._base
        if place < 0 or place + nbytes > len(self._window):
            passed = place - len(self._window)
            self._ahead = min(2 * self._ahead, _WIDEST_WINDOW_NBYTES) if passed < self._ahead else _WINDOW_NBYTES
            length = min(max(nbytes, self._ahead), self.end - self.at)
            self._window, self._base = self.source.read(self.at, length), self.at
            return 0
        return place

    def varint(self) -> int:
        place = self._need(min(10, self.end - self.at))
        value, after = read_varint(self._window, place)
        self.at += after - place
        self._taken.append(self._window[place:after])
        return value

    def taken(self) -> bytes:
        """What was read since this was asked last."""
        taken = b"".join(self._taken)
        self._taken.clear()
        return taken

    def length(self, end: int) -> int:
        """The length of a field that must end by ``end``."""
        nbytes = self.varint()
        if nbytes > end - self.at:
            raise FormatError(
                f"file has {end - self.at} bytes from byte {self.at}, a field of {nbytes} is announced",
                hint="the file is cut short or damaged: copy it again",
            )
        return nbytes

    def bytes(self, nbytes: int) -> bytes:
        place = self._need(nbytes)
        self.at += nbytes
        self._taken.append(self._window[place : place + nbytes])
        return self._taken[-1]

    def text(self, end: int) -> str:
        nbytes = self.length(end)
        if nbytes > _MAX_NAME_NBYTES:
            raise FormatError(f"a name of {nbytes} bytes at byte {self.at}")
        try:
            return self.bytes(nbytes).decode()
        except UnicodeDecodeError:
            raise FormatError(f"a name at byte {self.at - nbytes} is not UTF-8") from None


def _read_value(cursor: _Cursor) -> _Value:
    at = cursor.at
    if cursor.varint() != (1 << 3 | BYTES):
        raise FormatError(
            f"no tensor where one should begin, at byte {at}",
            hint="a strategy? reshard strategy show reads those; a damaged checkpoint: copy it again",
        )
    length = cursor.length(cursor.end)
    end = cursor.at + length
    tag: str | None = None
    tensor: tuple[tuple[int, ...], str, Extent] | None = None
    while cursor.at < end:
        key = cursor.varint()
        if key == (1 << 3 | BYTES) and tag is None:
            tag = cursor.text(end)
        elif key == (2 << 3 | BYTES) and tensor is None:
            length = cursor.length(end)
            tensor = _read_tensor(cursor, cursor.at + length)
        elif key == (3 << 3 | BYTES):
            raise FormatError(f"{tag or 'a value'} is a MapTensor, which is not a plain tensor", hint="export it")
        else:
            raise FormatError(f"unknown field {key >> 3} in the value at byte {at}")
    if not tag or tensor is None or cursor.at != end:
        raise FormatError(f"the value at byte {at} lacks a name or a tensor", hint="copy the file again")
    return _Value(at, cursor.taken(), tag, *tensor)


def _read_tensor(cursor: _Cursor, end: int) -> tuple[tuple[int, ...], str, Extent]:
    at = cursor.at
    dims: list[int] = []
    dtype = ""
    content: Extent | None = None
    while cursor.at < end:
        key = cursor.varint()
        if key == (1 << 3 | VARINT):
            dims.append(signed(cursor.varint()))
        elif key == (1 << 3 | BYTES):
            length = cursor.length(end)
            stop = cursor.at + length
            while cursor.at < stop:
                dims.append(signed(cursor.varint()))
        elif key == (2 << 3 | BYTES):
            dtype = cursor.text(end)
        elif key == (3 << 3 | BYTES) and content is None:
            length = cursor.length(end)
            content = Extent(cursor.at, length)
            cursor.at += length
        else:
            raise FormatError(f"unknown field {key >> 3} in the tensor at byte {at}")
        if len(dims) > MAX_DIMS:
            raise FormatError(f"more than {MAX_DIMS} dims in the tensor at byte {at}")
    if cursor.at != end or content is None or not dtype:
        raise FormatError(f"the tensor at byte {at} lacks a type or content", hint="copy the file again")
    return tuple(dims), dtype, content


def _text(cursor: _Cursor, found: list[_Value]) -> str:
    content = b"".join(cursor.source.read(v.content.offset, v.content.nbytes) for v in found)
    try:
        return content.decode("utf-32-le")
    except UnicodeDecodeError:
        raise FormatError(f"string {found[0].tag!r} at byte {found[0].at} is not UTF-32") from None


def _stored(tag: str, found: list[_Value]) -> Stored:
    first = found[0]
    if first.dtype not in _TYPES:
        raise FormatError(f"tensor {tag!r} has type {first.dtype!r}, which is unknown")
    if any((v.dims, v.dtype) != (first.dims, first.dtype) for v in found):
        raise FormatError(f"the pieces of tensor {tag!r} disagree on shape or type")
    dtype = _TYPES[first.dtype]
    nbytes = sum(v.content.nbytes for v in found)
    # a scalar of older writers has dims [0]
    shape = () if first.dims == (0,) and nbytes == ITEMSIZE[dtype] else first.dims
    if any(n < 0 for n in shape) or nbytes != prod(shape) * ITEMSIZE[dtype]:
        raise FormatError(
            f"tensor {tag!r} at byte {first.at} is {first.dtype}{list(shape)} and has {nbytes} bytes",
            hint="the file is damaged: copy it again",
        )
    return Stored(TensorSpec(dtype, shape), tuple(v.content for v in found))
