from __future__ import annotations

import json
from math import prod
from typing import Any

import pytest
import safetensors

from making import array
from reshard.errors import FormatError
from reshard.formats.safetensors import Safetensors
from reshard.index import Contents, TensorSpec
from reshard.testing.formats import MemoryFile, held

FORM = Safetensors()
W = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def made(header: Any, nbytes: int = 0) -> bytes:
    """A file of this header and so many bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(nbytes)


def read(data: bytes) -> Contents:
    return FORM.read_index(MemoryFile(data))


def test_what_the_official_library_writes() -> None:
    w = array((3, 4))
    raw = {
        "w": {"dtype": "float32", "shape": [3, 4], "data": w.tobytes()},
        "s": {"dtype": "bfloat16", "shape": [], "data": b"ab"},
        "e": {"dtype": "int64", "shape": [0, 3], "data": b""},
    }
    data = safetensors.serialize(raw, {"format": "ms"})
    found = read(data)
    assert {n: s.spec for n, s in found.tensors.items()} == {
        "w": TensorSpec("float32", (3, 4)),
        "s": TensorSpec("bfloat16", ()),
        "e": TensorSpec("int64", (0, 3)),
    }
    assert held(data, found) == {"w": w.tobytes(), "s": b"ab", "e": b""}


def test_what_we_write_the_official_library_reads() -> None:
    specs = {"e": TensorSpec("int64", (0, 3)), "w": TensorSpec("float32", (2,)), "b": TensorSpec("bool", (3,))}
    frame = FORM.frame(specs, {"note": "é"}, {"format": "ms"})
    found = dict(safetensors.deserialize(frame.filled({name: bytes(spec.nbytes) for name, spec in specs.items()})))
    assert {n: (e["dtype"], e["shape"]) for n, e in found.items()} == {
        "e": ("I64", [0, 3]),
        "w": ("F32", [2]),
        "b": ("BOOL", [3]),
    }


def test_every_tensor_begins_at_a_multiple_of_its_element() -> None:
    specs = {str(i): TensorSpec(d, (3,)) for i, d in enumerate(["int8", "float64", "float16", "bool", "float32"])}
    frame = FORM.frame(specs, {}, {})
    for name, (extent,) in frame.holes.items():
        assert extent.offset % TensorSpec(specs[name].dtype, ()).nbytes == 0


# --- metadata


def test_notes_and_texts_are_told_apart() -> None:
    metadata = {"format": "ms", "remove_redundancy": "True", "crc_num": "1", "author": "me"}
    found = read(made({"__metadata__": metadata, "w": W}, 8))
    assert found.notes == {"format": "ms", "remove_redundancy": "True", "crc_num": "1"}
    assert found.texts == {"author": "me"}


def test_packed_int4_there_and_back() -> None:
    frame = FORM.frame({"w": TensorSpec("int4x2", (4,)), "v": TensorSpec("int8", (2,))}, {}, {})
    data = frame.pieces[0][1] + bytes(6)
    assert b'"I8"' in data
    assert b'"w":"Int4"' in data
    found = read(data)
    assert {n: s.spec.dtype for n, s in found.tensors.items()} == {"w": "int4x2", "v": "int8"}
    assert not found.texts


@pytest.mark.parametrize("metadata", ["x", ["x"], {"a": 1}, {"a": None}])
def test_metadata_that_is_no_map_of_strings(metadata: Any) -> None:
    with pytest.raises(FormatError, match="__metadata__"):
        read(made({"__metadata__": metadata, "w": W}, 8))


def test_a_tensor_called_metadata_cannot_be_written() -> None:
    with pytest.raises(FormatError, match="__metadata__"):
        FORM.frame({"__metadata__": TensorSpec("int8", (1,))}, {}, {})


@pytest.mark.parametrize("metadata", [None, {}])
def test_metadata_of_nothing(metadata: Any) -> None:
    found = read(made({"__metadata__": metadata, "w": W}, 8))
    assert (set(found.tensors), found.texts, found.notes) == ({"w"}, {}, {})


def test_a_file_without_a_tensor() -> None:
    assert read(made({"__metadata__": None})) == Contents({}, {}, {})
    assert read(made({})) == Contents({}, {}, {})


def test_keys_that_later_writers_may_add_to_an_entry() -> None:
    found = read(made({"w": {**W, "strides": [1], "quant": {"group": 32}}}, 8))
    assert found.tensors["w"].spec == TensorSpec("float32", (2,))


@pytest.mark.parametrize(
    ("code", "shape", "bits", "held_as"),
    [
        ("F4", [4, 8], 4, TensorSpec("float4_e2m1fn_x2", (4, 4))),
        ("F4", [6], 4, TensorSpec("float4_e2m1fn_x2", (3,))),
        ("F4", [3, 0], 4, TensorSpec("float4_e2m1fn_x2", (3, 0))),
        ("F6_E2M3", [4, 8], 6, TensorSpec("float6_e2m3fn_x4", (4, 2))),
        ("F6_E3M2", [2, 3, 4], 6, TensorSpec("float6_e3m2fn_x4", (2, 3, 1))),
    ],
)
def test_elements_of_less_than_a_byte_there_and_back(
    code: str, shape: list[int], bits: int, held_as: TensorSpec
) -> None:
    """Sizes of small elements are in bits."""
    nbytes = prod(shape) * bits // 8
    data = made({"w": {"dtype": code, "shape": shape, "data_offsets": [0, nbytes]}}, nbytes)
    found = read(data)
    assert found.tensors["w"].spec == held_as
    head = FORM.frame({"w": held_as}, {}, {}).pieces[0][1]
    assert json.loads(head[8:])["w"] == {"dtype": code, "shape": shape, "data_offsets": [0, nbytes]}


def test_elements_of_three_bytes_disturb_no_other_places() -> None:
    specs = {
        "a": TensorSpec("float6_e2m3fn_x4", (1,)),
        "b": TensorSpec("bfloat16", (1,)),
        "c": TensorSpec("int8", (3,)),
    }
    holes = FORM.frame(specs, {}, {}).holes
    assert (holes["b"][0].offset % 2, holes["a"][0].offset) == (0, holes["b"][0].end)


# --- what is refused


@pytest.mark.parametrize(
    ("code", "shape"), [("F4", [3, 1]), ("F4", []), ("F6_E2M3", [2, 6]), ("F6_E3M2", [4, 2]), ("F6_E3M2", [2, 2])]
)
def test_rows_of_small_elements_that_do_not_come_out_on_whole_bytes(code: str, shape: list[int]) -> None:
    with pytest.raises(FormatError, match=rf"tensor 'w' is {code}\[.*whole bytes"):
        read(made({"w": {"dtype": code, "shape": shape, "data_offsets": [0, 9]}}, 9))


@pytest.mark.parametrize("code", ["F128", "", "f32", None, 5, ["F32"]])
def test_an_unknown_type_is_named(code: Any) -> None:
    with pytest.raises(FormatError, match=r"tensor 'w' is .*: an unknown type"):
        read(made({"w": {**W, "dtype": code}}, 8))


def entry(begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "I8", "shape": [end - begin], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ((0, 4), (2, 8), "overlap at byte"),
        ((0, 4), (0, 8), "overlap at byte"),
        ((0, 3), (4, 8), "leave a hole at byte"),
        ((1, 4), (4, 8), "leave a hole at byte"),
        ((0, 4), (4, 7), "file has .* bytes, header describes"),
        ((0, 4), (4, 9), "file has .* bytes, header describes"),
    ],
)
def test_bytes_that_belong_to_none_or_to_two(a: tuple[int, int], b: tuple[int, int], said: str) -> None:
    with pytest.raises(FormatError, match=said):
        read(made({"a": entry(*a), "b": entry(*b)}, 8))


def test_empty_tensors_share_a_place() -> None:
    assert len(read(made({"a": entry(0, 0), "b": entry(0, 8), "c": entry(8, 8)}, 8)).tensors) == 3


@pytest.mark.parametrize(
    "broken",
    [
        {"shape": [3]},
        {"shape": [-2]},
        {"shape": [2.0]},
        {"shape": [True, 2]},
        {"shape": 2},
        {"shape": [1 << 70]},
        {"shape": [1 << 40, 1 << 40]},
        {"data_offsets": [0]},
        {"data_offsets": [0, 4, 8]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [-8, 0]},
        {"data_offsets": None},
    ],
)
def test_entries_that_lie(broken: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="'w'"):
        read(made({"w": {**W, **broken}}, 8))


@pytest.mark.parametrize("header", [[], "x", 5, None, {"w": []}, {"w": {"dtype": "F32"}}])
def test_headers_of_another_kind(header: Any) -> None:
    with pytest.raises(FormatError):
        read(made(header, 8))


@pytest.mark.parametrize("header", [b"", b"{", b"\xff\xfe", b'{"w": 1e', b"[" * 100_000])
def test_headers_that_are_not_json(header: bytes) -> None:
    with pytest.raises(FormatError, match="not JSON"):
        read(made(header))


@pytest.mark.parametrize(
    ("header", "twice"),
    [
        ('{"w": W, "w": W}', "w"),
        ('{"w": null, "w": W}', "w"),
        ('{"w": {}, "w": W}', "w"),
        ('{"w:0": 1, "w:0": W}', "w:0"),
        ('{"__metadata__": {"a": ":"}, "w": W, "__metadata__": {"a": ":"}}', "__metadata__"),
        ('{"__metadata__": {"a": "1", "a": "1"}, "w": W}', "a"),
        ('{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "dtype": "F32"}}', "dtype"),
    ],
)
def test_a_key_that_stands_twice(header: str, twice: str) -> None:
    with pytest.raises(FormatError, match=f"'{twice}' appears twice"):
        read(made(header.replace("W", json.dumps(W)).encode(), 8))


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 100_000_001, 200_000])
def test_absurd_header_lengths(length: int) -> None:
    source = MemoryFile(length.to_bytes(8, "little") + bytes(100_000))
    with pytest.raises(FormatError, match="is announced"):
        FORM.read_index(source)
    assert source.read_nbytes == 65536


def test_every_truncation_is_told() -> None:
    frame = FORM.frame({"w": TensorSpec("float32", (2,)), "s": TensorSpec("int8", ())}, {"t": "x"}, {"format": "ms"})
    data = frame.pieces[0][1] + bytes(9)
    read(data)
    for nbytes in range(len(data)):
        with pytest.raises(FormatError):
            read(data[:nbytes])


def test_any_byte_changed_is_read_or_told_and_nothing_else() -> None:
    frame = FORM.frame({"w": TensorSpec("float32", (2,)), "s": TensorSpec("int8", ())}, {"t": "x"}, {"format": "ms"})
    data = frame.pieces[0][1] + bytes(9)
    for at in range(len(data) - 9):
        for byte in (0, ord('"'), ord("0"), 0xFF, data[at] ^ 1):
            try:
                found = read(data[:at] + bytes([byte]) + data[at + 1 :])
            except FormatError:
                continue
            assert all(e.end <= len(data) for s in found.tensors.values() for e in s.extents)


def test_a_name_that_no_encoding_holds() -> None:
    with pytest.raises(FormatError):
        read(made(b'{"\\ud800": ' + json.dumps(W).encode() + b"}", 8))


def test_a_text_that_no_encoding_holds() -> None:
    with pytest.raises(FormatError):
        read(made(b'{"__metadata__": {"t": "\\ud800"}, "w": ' + json.dumps(W).encode() + b"}", 8))
