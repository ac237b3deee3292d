"""What every file format must do, whatever its bytes look like."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import ClassVar

import pytest

from reshard.dtypes import ITEMSIZE
from reshard.errors import FormatError, StorageError
from reshard.formats.base import Format
from reshard.index import Contents, Extent, Frame, TensorSpec
from reshard.testing.sealed import Sealed

DTYPES = tuple(sorted(ITEMSIZE))
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (0,), (3, 0, 2), (1, 1, 1), (7,), (4, 5), (2, 3, 4, 5))
NAMES = (
    "w",
    "model.layers.0.attention.wq.weight",
    "a/b\\c",
    "with space",
    "权重.é.🎉",
    "quotes\"and'",
    "tab\tnewline\n",
    "n" * 500,
)
_MIXED = {
    "w": TensorSpec("float32", (3, 4)),
    "scalar": TensorSpec("int64", ()),
    "empty": TensorSpec("float16", (0, 3)),
    "odd": TensorSpec("int8", (5,)),
    "b": TensorSpec("bfloat16", (2, 3)),
}


class MemoryFile:
    """A file that is bytes in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.read_nbytes = 0

    @property
    def nbytes(self) -> int:
        return len(self.content)

    def read(self, offset: int, nbytes: int) -> bytes:
        if offset < 0 or nbytes < 0 or offset + nbytes > len(self.content):
            raise StorageError(f"{nbytes} bytes at {offset} of a file of {len(self.content)}")
        self.read_nbytes += nbytes
        return self.content[offset : offset + nbytes]


def pattern(name: str, nbytes: int) -> bytes:
    """Bytes that tell tensors apart."""
    seed = sum(name.encode()) + 1
    period = bytes((seed + 7 * i) % 251 for i in range(251))
    return (period * (nbytes // 251 + 1))[:nbytes]


def fill(frame: Frame) -> bytes:
    """The file of a frame, with ``pattern`` in its holes. Fails where a byte belongs to none or to two."""
    parts = list(frame.pieces)
    for name, extents in frame.holes.items():
        data, at = pattern(name, sum(e.nbytes for e in extents)), 0
        for extent in extents:
            parts.append((extent.offset, data[at : at + extent.nbytes]))
            at += extent.nbytes
    out = []
    at = 0
    for offset, data in sorted(p for p in parts if p[1]):
        assert offset == at, f"bytes {min(at, offset)} to {max(at, offset)} belong to none or to two"
        out.append(data)
        at += len(data)
    assert at == frame.nbytes, f"the parts cover {at} of {frame.nbytes} bytes"
    content = bytearray(b"".join(out))
    for checksum in frame.checksums:
        crc = zlib.crc32(content[checksum.of.offset : checksum.of.end])
        for place in checksum.places:
            assert place >= checksum.of.end, f"a sum at {place} of bytes to {checksum.of.end}"
            assert not any(content[place : place + checksum.nbytes]), f"a sum at {place} where there are bytes"
            content[place : place + checksum.nbytes] = checksum.bytes_for(crc)
    return bytes(content)


def held(content: bytes, found: Contents) -> dict[str, bytes]:
    """The bytes of each tensor where its extents say."""
    return {n: b"".join(_bytes_of(content, e) for e in s.extents) for n, s in found.tensors.items()}


def _bytes_of(content: bytes, extent: Extent) -> bytes:
    data = content[extent.offset : extent.end]
    return extent.coded.decoded(data) if extent.coded else data


class FormatTests(Sealed):
    """Subclass and set ``format``; ``refused``, ``refused_shapes`` and ``refused_scalars`` are what the format cannot
    hold: types, shapes, and types that it cannot hold without a dim.
    """

    format: ClassVar[Format]
    refused: ClassVar[frozenset[str]] = frozenset()
    refused_shapes: ClassVar[frozenset[tuple[int, ...]]] = frozenset()
    refused_scalars: ClassVar[frozenset[str]] = frozenset()

    def _there_and_back(self, tensors: Mapping[str, TensorSpec], texts: Mapping[str, str]) -> Contents:
        content = fill(self.format.frame(tensors, texts, {}))
        found = self.format.read_index(MemoryFile(content))
        assert {n: s.spec for n, s in found.tensors.items()} == dict(tensors)
        assert held(content, found) == {n: pattern(n, t.nbytes) for n, t in tensors.items()}
        assert dict(found.texts) == dict(texts)
        return found

    def test_it_has_a_name_and_a_suffix(self) -> None:
        assert self.format.name.isidentifier()
        assert self.format.suffix.startswith(".")

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_dtype_and_shape_there_and_back_or_refused_by_name(self, dtype: str) -> None:
        for shape in SHAPES:
            self._there_and_back_or_refused({"odd": TensorSpec("uint8", (3,)), "it": TensorSpec(dtype, shape)})

    def _there_and_back_or_refused(self, tensors: Mapping[str, TensorSpec]) -> None:
        dtype, shape = tensors["it"].dtype, tensors["it"].shape
        if dtype in self.refused or shape in self.refused_shapes or (dtype in self.refused_scalars and not shape):
            with pytest.raises(FormatError) as caught:
                self.format.frame(tensors, {}, {})
            assert "'it'" in caught.value.message
            assert dtype in caught.value.message
        else:
            self._there_and_back(tensors, {})

    @pytest.mark.parametrize("name", NAMES, ids=ascii)
    def test_every_name_there_and_back(self, name: str) -> None:
        self._there_and_back({name: TensorSpec("float32", (2,)), "other": TensorSpec("float32", ())}, {})

    def test_many_tensors(self) -> None:
        tensors = {f"layers.{i}.w": TensorSpec("float32" if i % 2 else "int8", (i % 7, 3)) for i in range(3000)}
        self._there_and_back(tensors, {})

    @pytest.mark.parametrize("text", ["", "plain", "é 权重 🎉", "a\nb\0c"], ids=ascii)
    def test_texts_there_and_back(self, text: str) -> None:
        self._there_and_back({"w": TensorSpec("float32", (2,))}, {"note": text, "备注": "x"})

    def test_no_tensors(self) -> None:
        """A file of nothing is laid out whole, or refused where the format has none."""
        try:
            frame = self.format.frame({}, {}, {})
        except FormatError:
            return
        assert len(fill(frame)) == frame.nbytes
        assert not frame.holes

    def test_stated_crcs_are_those_of_the_bytes(self) -> None:
        frame = self.format.frame(_MIXED, {"note": "x"}, {})
        content = fill(frame)
        stated = self.format.crcs(MemoryFile(content))
        assert {checksum.of for checksum in frame.checksums} <= {one.of for one in stated}
        for one in stated:
            assert one.crc == zlib.crc32(content[one.of.offset : one.of.end]), one.what

    def test_only_headers_are_read(self) -> None:
        tensors = {f"t{i}": TensorSpec("float32", (100_000,)) for i in range(3)}
        file = MemoryFile(fill(self.format.frame(tensors, {}, {})))
        self.format.read_index(file)
        assert file.read_nbytes < file.nbytes // 4

    def test_a_frame_is_the_same_every_time(self) -> None:
        assert self.format.frame(_MIXED, {"note": "x"}, {}) == self.format.frame(_MIXED, {"note": "x"}, {})

    def test_a_frame_grows_by_the_bytes_of_its_tensors(self) -> None:
        huge = TensorSpec("float32", (1 << 18, 5 << 10))
        frame = self.format.frame({"huge": huge}, {}, {})
        assert sum(e.nbytes for e in frame.holes["huge"]) == huge.nbytes
        assert huge.nbytes < frame.nbytes < huge.nbytes * 1.01

    def test_every_truncation_is_told_or_leaves_a_whole_file(self) -> None:
        frame = self.format.frame(_MIXED, {"note": "x"}, {})
        content = fill(frame)
        ends = {checksum.of.end for checksum in frame.checksums}
        for nbytes in range(len(content)):
            found = _read(self.format, content[:nbytes])
            if found is not None:
                whole = {n: pattern(n, _MIXED[n].nbytes) for n in found.tensors}
                assert held(content[:nbytes], found) == whole
                assert len(found.tensors) + len(found.texts) <= len(_MIXED) or nbytes in ends

    @pytest.mark.parametrize(
        "changed",
        [lambda byte: 0, lambda byte: 255, lambda byte: byte ^ 1, lambda byte: byte ^ 128],
        ids=["0", "255", "low bit", "high bit"],
    )
    def test_any_changed_byte_is_told_or_keeps_to_the_file(self, changed: Callable[[int], int]) -> None:
        content = fill(self.format.frame(_MIXED, {"note": "x"}, {}))
        for at, byte in enumerate(content):
            found = _read(self.format, content[:at] + bytes([changed(byte)]) + content[at + 1 :])
            for stored in found.tensors.values() if found else ():
                assert sum(e.nbytes for e in stored.extents) == stored.spec.nbytes
                assert all(e.end <= len(content) for e in stored.extents)

    @pytest.mark.parametrize("content", [b"", b"\0", b"\xff" * 64, b"\0" * 64, b"{}" * 40, b"PK\x03\x04" * 16])
    def test_what_is_no_file_of_this_kind(self, content: bytes) -> None:
        with pytest.raises(FormatError):
            self.format.read_index(MemoryFile(content))


def _read(form: Format, content: bytes) -> Contents | None:
    """What a file holds, None where it is refused; any error but FormatError is a fault of the format."""
    try:
        return form.read_index(MemoryFile(content))
    except FormatError:
        return None
