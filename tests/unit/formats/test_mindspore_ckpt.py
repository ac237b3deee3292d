from __future__ import annotations

import pytest

from making import array, ckpt_bytes, ckpt_value
from reshard.errors import FormatError
from reshard.formats.mindspore_ckpt import MindSporeCkpt
from reshard.index import Contents, Extent, StatedCrc, TensorSpec
from reshard.testing.formats import MemoryFile, held

CKPT = MindSporeCkpt()
ARRAYS = {
    "w": array((3, 4), "float32", 1),
    "s": array((), "int64", 2),
    "e": array((0, 3), "float16", 3),
    "b": array((5,), "bfloat16", 4),
}
TYPES = {
    "Int8": "int8", "UInt8": "uint8", "Int16": "int16", "UInt16": "uint16", "Int32": "int32", "UInt32": "uint32",
    "Int64": "int64", "UInt64": "uint64", "Float16": "float16", "Float32": "float32", "Float64": "float64",
    "Bool": "bool", "BFloat16": "bfloat16", "Int4": "int4x2",
}  # fmt: skip


def read(data: bytes) -> Contents:
    return CKPT.read_index(MemoryFile(data))


def test_tensors_by_name_in_the_order_of_the_file() -> None:
    data = ckpt_bytes(ARRAYS, {})
    found = read(data)
    assert list(found.tensors) == list(ARRAYS)
    assert {n: s.spec.shape for n, s in found.tensors.items()} == {n: a.shape for n, a in ARRAYS.items()}
    assert held(data, found) == {n: a.tobytes() for n, a in ARRAYS.items()}


@pytest.mark.parametrize(("stored", "dtype"), TYPES.items())
def test_types(stored: str, dtype: str) -> None:
    itemsize = TensorSpec(dtype, ()).nbytes
    found = read(ckpt_value("w", (2, 3), stored, bytes(6 * itemsize)))
    assert found.tensors["w"].spec == TensorSpec(dtype, (2, 3))


def test_a_type_that_is_unknown_is_named() -> None:
    with pytest.raises(FormatError, match="tensor 'w' has type 'Float8E5M2'"):
        read(ckpt_value("w", (2,), "Float8E5M2", bytes(2)))


@pytest.mark.parametrize("dims", [(), (0,)])
def test_a_scalar_in_both_spellings(dims: tuple[int, ...]) -> None:
    found = read(ckpt_value("s", dims, "Float32", bytes(4)))
    assert found.tensors["s"].spec == TensorSpec("float32", ())


def test_dims_zero_without_content_is_an_empty_vector() -> None:
    assert read(ckpt_value("s", (0,), "Float32", b"")).tensors["s"].spec == TensorSpec("float32", (0,))


def test_packed_dims() -> None:
    tensor = b"\x0a\x02\x02\x03" + b"\x12\x04Int8" + b"\x1a\x06" + bytes(6)
    value = b"\x0a\x01w" + b"\x12" + bytes([len(tensor)]) + tensor
    assert read(b"\x0a" + bytes([len(value)]) + value).tensors["w"].spec == TensorSpec("int8", (2, 3))


# --- pieces


@pytest.mark.parametrize("slice_nbytes", [1, 5, 16, 47, 48, 1000])
def test_a_tensor_in_pieces_is_read_as_one(slice_nbytes: int) -> None:
    data = ckpt_bytes(ARRAYS, {}, slice_nbytes)
    found = read(data)
    assert held(data, found) == {n: a.tobytes() for n, a in ARRAYS.items()}
    assert len(found.tensors["w"].extents) == -(-48 // slice_nbytes)


@pytest.mark.parametrize("slice_nbytes", [1, 5, 16, 47, 48, 1000])
def test_large_tensors_are_laid_out_in_pieces(slice_nbytes: int) -> None:
    frame = MindSporeCkpt(slice_nbytes=slice_nbytes).frame({"w": TensorSpec("float32", (3, 4))}, {}, {})
    assert [e.nbytes for e in frame.holes["w"]] == [
        min(slice_nbytes, 48 - start) for start in range(0, 48, slice_nbytes)
    ]
    assert frame.nbytes == len(ckpt_bytes({"w": ARRAYS["w"]}, {}, slice_nbytes))


def test_mindspore_cuts_at_512_mib() -> None:
    frame = CKPT.frame({"w": TensorSpec("int8", ((512 << 20) + 1,))}, {}, {})
    assert [e.nbytes for e in frame.holes["w"]] == [512 << 20, 1]


def test_frame_is_what_mindspore_writes() -> None:
    specs = {n: TensorSpec(a.dtype.name, a.shape) for n, a in ARRAYS.items()}
    frame = CKPT.frame(specs, {"note": "né"}, {})
    made = frame.filled({name: a.tobytes() for name, a in ARRAYS.items()})
    assert made == ckpt_bytes(ARRAYS, {"note": "né"})


def test_pieces_that_disagree() -> None:
    data = ckpt_value("w", (8,), "Int8", bytes(4)) + ckpt_value("w", (4, 2), "Int8", bytes(4))
    with pytest.raises(FormatError, match="the pieces of tensor 'w' disagree"):
        read(data)


@pytest.mark.parametrize("nbytes", [7, 9])
def test_pieces_that_do_not_make_the_tensor(nbytes: int) -> None:
    data = ckpt_value("w", (8,), "Int8", bytes(4)) + ckpt_value("w", (8,), "Int8", bytes(nbytes - 4))
    with pytest.raises(FormatError, match=rf"'w' at byte 0 is Int8\[8\] and has {nbytes} bytes"):
        read(data)


def test_a_name_that_comes_back_after_another() -> None:
    value = ckpt_value("w", (1,), "Int8", b"x")
    with pytest.raises(FormatError, match="'w' appears twice"):
        read(value + ckpt_value("v", (1,), "Int8", b"x") + value)


def test_a_name_twice_in_a_row() -> None:
    with pytest.raises(FormatError, match="'w'"):
        read(ckpt_value("w", (1,), "Int8", b"x") * 2)


# --- strings


@pytest.mark.parametrize("text", ["", "AES", "步骤 é 🎉"])
def test_strings(text: str) -> None:
    found = read(ckpt_bytes({"w": ARRAYS["w"]}, {"note": text}))
    assert found.texts == {"note": text}
    assert list(found.tensors) == ["w"]


def test_a_string_that_is_not_utf_32() -> None:
    with pytest.raises(FormatError, match="string 'note' at byte 0 is not UTF-32"):
        read(ckpt_value("note", (0,), "str", b"abcde"))


# --- the CRC tail


def test_crc_tail_is_no_tensor() -> None:
    data = ckpt_bytes(ARRAYS, {})
    sealed = data + b"crc_num" + (7).to_bytes(10, "big")
    assert list(read(sealed).tensors) == list(ARRAYS)
    assert CKPT.crcs(MemoryFile(sealed)) == (StatedCrc("", Extent(0, len(data)), 7),)
    assert CKPT.crcs(MemoryFile(data)) == ()
    assert CKPT.crcs(MemoryFile(b"crc_num")) == ()


def test_a_frame_with_crc_leaves_room_for_it() -> None:
    specs = {"w": TensorSpec("int8", (4,))}
    sealed, bare = MindSporeCkpt(crc=True).frame(specs, {}, {}), CKPT.frame(specs, {}, {})
    assert bare.checksums == ()
    assert sealed.nbytes == bare.nbytes + 17
    (checksum,) = sealed.checksums
    assert (checksum.of, checksum.places) == (Extent(0, bare.nbytes), (bare.nbytes + 7,))
    assert checksum.bytes_for(7) == (7).to_bytes(10, "big")


# --- what is refused


@pytest.mark.parametrize(
    ("magic", "cipher"), [(0x7F3A5ED8, "AES-GCM"), (0x7F3A5ED9, "AES-CBC"), (0x7F3A5EDA, "SM4-CBC")]
)
def test_encrypted_files_are_refused_by_the_cipher_s_name(magic: int, cipher: str) -> None:
    with pytest.raises(FormatError, match=f"encrypted with {cipher}"):
        read(magic.to_bytes(4, "little") + bytes(64))


def test_a_map_tensor_is_refused_by_name() -> None:
    value = b"\x0a\x05table" + b"\x1a\x00"
    with pytest.raises(FormatError, match="table is a MapTensor"):
        read(b"\x0a" + bytes([len(value)]) + value)


@pytest.mark.parametrize("texts", [{}, {"": "x"}])
def test_a_tensor_or_a_text_without_a_name(texts: dict[str, str]) -> None:
    tensors = {"w": TensorSpec("float32", (2,)), **({} if texts else {"": TensorSpec("float32", (2,))})}
    with pytest.raises(FormatError, match="without a name"):
        CKPT.frame(tensors, texts, {})


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "complex64"])
def test_what_it_cannot_hold_is_refused_by_name(dtype: str) -> None:
    with pytest.raises(FormatError, match=f"tensor 'w' is {dtype}, which .ckpt cannot hold"):
        CKPT.frame({"w": TensorSpec(dtype, (2,))}, {}, {})


def test_an_empty_file() -> None:
    with pytest.raises(FormatError, match="empty"):
        read(b"")


def test_every_truncation_is_told_or_ends_between_tensors() -> None:
    data = ckpt_bytes(ARRAYS, {"note": "x"})
    ends = {len(ckpt_bytes(dict(list(ARRAYS.items())[:n]), {})) for n in range(1, len(ARRAYS) + 1)}
    for nbytes in range(len(data)):
        if nbytes in ends:
            assert len(read(data[:nbytes]).tensors) < len(ARRAYS) + 1
        else:
            with pytest.raises(FormatError):
                read(data[:nbytes])


def test_a_truncated_piece_is_told_also_between_pieces() -> None:
    data = ckpt_bytes({"w": ARRAYS["w"]}, {}, 16)
    for nbytes in range(len(data)):
        with pytest.raises(FormatError):
            read(data[:nbytes])


def test_any_byte_changed_is_read_or_told_and_nothing_else() -> None:
    data = ckpt_bytes({"w": ARRAYS["w"], "s": ARRAYS["s"]}, {"note": "x"})
    for at in range(len(data)):
        for byte in (0, 0x7F, 0x80, 0xFF, data[at] ^ 1):
            changed = data[:at] + bytes([byte]) + data[at + 1 :]
            try:
                found = read(changed)
            except FormatError:
                continue
            assert all(e.end <= len(changed) for s in found.tensors.values() for e in s.extents)


HUGE = b"\xff\xff\xff\xff\xff\xff\xff\x7f"


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a" + HUGE + b"\x0a\x01w",  # a message of 2**56 bytes
        b"\x0a\x20\x0a" + HUGE + bytes(32),  # a name of 2**56
        b"\x0a\x20\x0a\x01w\x12" + HUGE + bytes(32),  # a tensor of 2**56
        ckpt_value("w", (1 << 62, 1 << 62), "Int8", b""),
        ckpt_value("w", ((1 << 64) - 1,), "Int8", b""),  # a dim of -1
        ckpt_value("w", (1,) * 100, "Int8", b"x"),  # a hundred dims
        ckpt_value("w" * 70_000, (1,), "Int8", b"x"),
        ckpt_value("", (1,), "Int8", b"x"),
        ckpt_value("w", (1,), "", b"x"),
    ],
)
def test_absurd_values(data: bytes) -> None:
    source = MemoryFile(data)
    with pytest.raises(FormatError):
        CKPT.read_index(source)
    assert source.read_nbytes < 200_000


def test_a_name_that_is_not_utf_8() -> None:
    data = ckpt_value("name", (1,), "Int8", b"x").replace(b"name", b"\xff\xfe\xfd\xfc")
    with pytest.raises(FormatError, match="not UTF-8"):
        read(data)


def test_tensor_bytes_are_passed_over() -> None:
    source = MemoryFile(ckpt_bytes({str(i): array((250_000,)) for i in range(4)}, {}))
    CKPT.read_index(source)
    assert source.read_nbytes < 100_000
