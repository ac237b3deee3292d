from __future__ import annotations

import pickle
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import reshard
from making import read_file
from reshard import Options
from reshard.errors import FormatError
from reshard.families.source import Source
from reshard.formats.pickled import Global, Pickled, Record
from reshard.formats.pickling import write_pickle
from reshard.formats.torch_file import TorchFile, contents, extents, torch_bytes, torch_frame
from reshard.formats.torch_records import TorchRecords
from reshard.formats.torch_values import StorageRef, TensorRef, read_value, whole
from reshard.index import Coding, Extent, TensorSpec
from reshard.ops.diff import diff
from reshard.storage.disk import DiskFile
from reshard.testing.formats import MemoryFile, fill


def records(value: object, *, big_endian: bool = False, **places: int) -> TorchRecords:
    return TorchRecords(
        Pickled(value, 100, {}), 100, {key: Extent(1000, nbytes) for key, nbytes in places.items()}, {}, big_endian
    )


def view(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, dtype: str = "float32") -> TensorRef:
    return replace(whole("k", TensorSpec(dtype, (1000,))), shape=shape, strides=strides, offset=offset)


@pytest.mark.parametrize(
    ("found", "runs"),
    [
        (view((4, 5), (5, 1), 3), [(12, 80)]),
        (view((4, 1, 5), (5, 777, 1)), [(0, 80)]),
        (view((2, 3), (10, 1)), [(0, 12), (40, 12)]),
        (view((2, 2), (1, 2)), [(0, 4), (8, 4), (4, 4), (12, 4)]),
        (view((3, 2), (0, 1)), [(0, 8)] * 3),
        (view((), ()), [(0, 4)]),
        (view((0, 3), (3, 1), 999), [(0, 0)]),
    ],
)
def test_a_view_lies_in_few_runs(found: TensorRef, runs: list[tuple[int, int]]) -> None:
    assert extents(found, records({}, k=4000)) == tuple(Extent(1000 + at, nbytes) for at, nbytes in runs)


def test_a_view_in_many_runs_is_refused_by_name() -> None:
    wide = replace(whole("k", TensorSpec("int8", (600 * 300,))), shape=(300, 300), strides=(600, 2))
    with pytest.raises(FormatError, match=r"tensor 'w': a view .* 90,000 runs"):
        contents(records({"w": wide}, k=180_000))


@pytest.mark.parametrize(
    ("dtype", "conjugated", "negated", "big_endian", "coding"),
    [
        ("float32", False, False, True, Coding(4)),
        ("int8", False, False, True, None),
        ("complex64", False, False, True, Coding(4)),
        ("complex64", True, False, False, Coding(1, bytes([0, 0, 0, 0, 0, 0, 0, 128]))),
        ("complex64", False, True, False, Coding(1, bytes([0, 0, 0, 128] * 2))),
        ("complex64", True, True, True, Coding(4, bytes([0, 0, 0, 128, 0, 0, 0, 0]))),
        ("bfloat16", False, True, False, Coding(1, bytes([0, 128]))),
    ],
)
def test_how_numbers_lie(dtype: str, conjugated: bool, negated: bool, big_endian: bool, coding: Coding | None) -> None:
    found = replace(whole("k", TensorSpec(dtype, (2,))), conjugated=conjugated, negated=negated)
    (extent,) = extents(found, records({}, big_endian=big_endian, k=TensorSpec(dtype, (2,)).nbytes))
    assert extent.coded == coding


@pytest.mark.parametrize(
    ("dtype", "mark"), [("int32", "negated"), ("float8_e5m2", "negated"), ("float32", "conjugated")]
)
def test_marks_that_say_nothing_are_refused(dtype: str, mark: str) -> None:
    found = replace(whole("k", TensorSpec(dtype, (2,))), **{mark: True})
    with pytest.raises(FormatError, match=mark):
        extents(found, records({}, k=TensorSpec(dtype, (2,)).nbytes))


def test_two_tensors_of_one_name_are_refused() -> None:
    w = whole("k", TensorSpec("int8", (2,)))
    with pytest.raises(FormatError, match=r"two values are called 'a\.b'"):
        contents(records({"a.b": w, "a": {"b": w}}, k=2))
    with pytest.raises(FormatError, match=r"two values are called 'a\.b'"):
        contents(records({"a.b": w, "a": {"b": "text"}}, k=2))


class _Noted(dict[str, object]):
    """A dict with attributes, which pickle tells of as it does those of ``OrderedDict``."""

    def __reduce__(self) -> tuple[object, ...]:
        return OrderedDict, (), self.__dict__, None, iter(self.items())


def test_a_tensor_that_is_an_attribute_of_a_dict_does_not_go_missing() -> None:
    noted = _Noted(w="text")
    noted._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    assert read_value(pickle.dumps(noted, protocol=2)).value == {"w": "text"}
    noted.mask = [Fraction(1, 2)]  # type: ignore[attr-defined]
    meanings = {Global("fractions", "Fraction"): lambda _: view((2,), (1,))}
    with pytest.raises(FormatError, match="a dict has a tensor as its attribute 'mask', which no key names"):
        read_value(pickle.dumps(noted, protocol=2), meanings=meanings)


def test_what_attributes_of_dicts_share_is_looked_at_once() -> None:
    """Walked anew for each of them this would take hours."""
    noted, shared = _Noted(), [[number] for number in range(30_000)]
    noted.__dict__.update({f"a{number}": [shared] for number in range(30_000)})
    assert read_value(pickle.dumps(noted, protocol=2)).value == {}


def test_an_object_that_many_refer_to_is_looked_at_once() -> None:
    """A file of a megabyte may refer to a thousand objects from a thousand places."""
    inner: list[object] = [Record(Global("mine", "Leaf")) for _ in range(30_000)]
    shared = Record(Global("mine", "Node"), (inner,))
    value = {str(i): Record(Global("mine", "Ref"), (shared,)) for i in range(30_000)}
    found = contents(TorchRecords(Pickled(value, 1 << 20, {}), 1 << 20, {}))
    assert "30,000 mine.Ref" in found.warnings[0]


def test_a_tensor_of_a_strange_class_is_refused_by_name() -> None:
    inner = Record(Global("mine", "Packed"), (whole("k", TensorSpec("int8", (2,))),))
    with pytest.raises(FormatError, match=r"tensor 'layer\.w' lies in an object of class mine\.Packed"):
        contents(records({"layer": {"w": inner}}, k=2))


@pytest.mark.parametrize(
    ("func", "words"),
    [
        ("_rebuild_meta_tensor_no_storage", "on the device 'meta'"),
        ("_rebuild_tensor_v2", r"a tensor of class mine\.Scaled"),
    ],
)
def test_a_tensor_of_a_class_of_its_own_is_refused_though_no_plain_one_lies_in_it(func: str, words: str) -> None:
    given = (Global("torch._utils", func), Global("mine", "Scaled"), ())
    value = Record(Global("torch._tensor", "_rebuild_from_type_v2"), given)
    with pytest.raises(FormatError, match=f"tensor 'w' is .*{words}"):
        contents(records({"w": value}))


@pytest.mark.parametrize("nbytes", [1 << 32, 3 << 32])
def test_files_beyond_four_gibibytes(nbytes: int) -> None:
    """Laid out, and read back from the header pieces alone."""
    specs = {
        "before": TensorSpec("int8", (5,)),
        "huge": TensorSpec("uint8", (nbytes,)),
        "after": TensorSpec("int8", (7,)),
    }
    frame = TorchFile().frame(specs, {}, {})

    class Sparse:
        nbytes = frame.nbytes

        def read(self, offset: int, nbytes: int) -> bytes:
            assert nbytes < 1 << 20
            out = bytearray(nbytes)
            for at, piece in frame.pieces:
                first, last = max(at, offset), min(at + len(piece), offset + nbytes)
                if first < last:
                    out[first - offset : last - offset] = piece[first - at : last - at]
            return bytes(out)

    found = TorchFile().read_index(Sparse())
    assert {name: stored.extents for name, stored in found.tensors.items()} == dict(frame.holes)
    for checksum in frame.checksums:
        assert all(place >= checksum.of.end for place in checksum.places)


def test_any_value_may_be_framed() -> None:
    """As other kinds of checkpoints need them: nested, with objects of classes."""
    args = Record(Global("argparse", "Namespace"), (), {"tp": 2, "ratio": -1.5, "big": 1 << 70, "none": None})
    w = whole("0", TensorSpec("uint16", (2, 3)))
    value = {
        "model": {"w": w},
        "args": args,
        "list": [1, (True, b"\0\xff"), ()],
        "size": Record(Global("torch", "Size"), ((2, 3),)),
    }
    content = fill(torch_frame(value, {"0": 12}))
    assert set(TorchFile().read_index(MemoryFile(content)).tensors) == {"model.w"}
    found = read_value(write_pickle(value)).value
    assert found["model"] == {"w": w}
    assert (found["args"].factory, found["args"].fields) == (args.factory, args.state)
    assert (found["list"], found["size"]) == ([1, (True, b"\0\xff"), ()], (2, 3))


def stream(value: object, keys: list[str], numbers: bytes) -> bytes:
    """A file of torch before 1.6, of one storage or none."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
    return b"".join(pickle.dumps(one, 2) for one in head) + write_pickle(value) + pickle.dumps(keys, 2) + numbers


def test_a_storage_of_nothing_is_of_any_dtype_in_a_stream() -> None:
    """torch saves views of it in several dtypes, and of no other storage."""
    nothing = {d: TensorRef(StorageRef("7", d, 0, 0, 0, "cpu"), d, (0, 3), (3, 1), 0) for d in ("float32", "int64")}
    content = stream(nothing, ["7"], bytes(8))
    found = TorchFile().read_index(MemoryFile(content)).tensors
    assert {name: stored.spec for name, stored in found.items()} == {d: TensorSpec(d, (0, 3)) for d in nothing}


def test_a_storage_of_two_dtypes_is_refused_in_a_stream() -> None:
    some = [whole("7", TensorSpec(dtype, (1,))) for dtype in ("float32", "int64")]
    with pytest.raises(FormatError, match="storage '7' is said to be 1 int64 and 1 float32"):
        TorchFile().read_index(MemoryFile(stream(some, ["7"], bytes(12))))


def test_a_part_of_a_storage_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="StorageRef"):
        write_pickle(StorageRef("0", "float32", 4, 1, 4, "cpu"))


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((300, 400), (1, 300), 0),  # transposed
        ((300, 400), (1, 320), 7),  # a part of what was transposed
        ((40, 50, 60), (1, 2400, 40), 0),
        ((1, 300, 400), (5, 1, 300), 0),
        ((300, 400, 1), (1, 300, 1), 0),
    ],
)
def test_a_view_in_very_many_runs_is_read_in_the_order_in_which_it_lies(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = offset + 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    numbers = np.arange(count, dtype=np.float32)
    tensor = TensorRef(StorageRef("0", "float32", count, 0, count, "cpu"), "float32", shape, strides, offset)
    path = tmp_path / "m.pt"
    path.write_bytes(torch_bytes({"w": tensor, "b": tensor}, {"0": numbers.tobytes()}))
    wanted = np.lib.stride_tricks.as_strided(numbers[offset:], shape, [4 * s for s in strides])
    assert len(TorchFile().read_index(DiskFile(str(path))).tensors["w"].extents) <= 2500
    monkeypatch.setattr("reshard.ops.options._MAX_BLOCK_NBYTES", 4096)
    monkeypatch.setattr("reshard.ops.options._MAX_TURNED_BLOCK_NBYTES", 4096)
    reshard.convert(path, tmp_path / "m.safetensors", Options(fsync=False))
    found = read_file(tmp_path / "m.safetensors")
    assert np.array_equal(found["w"], wanted)
    assert np.array_equal(np.asarray(reshard.open(path)["b"].read()), wanted)
    assert reshard.fingerprint(path).number == reshard.fingerprint(tmp_path / "m.safetensors").number
    assert diff(Source(str(path)), Source(str(tmp_path / "m.safetensors"))).equal
