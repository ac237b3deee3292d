"""Torch files as a source and as a target: single and in parts."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import reshard
from making import array, read_file, same, write_file, write_strategy
from reshard.errors import CheckpointError, FormatError
from reshard.formats.torch_file import TorchFile
from reshard.index import TensorSpec
from reshard.layout.tensor import Sharding
from reshard.ops.diff import diff
from reshard.ops.options import Options
from reshard.planning.names import NameRules
from reshard.testing.formats import MemoryFile, held

FULL = {
    "w": array((40, 6)), "b": array((8, 2), "bfloat16", 1), "scalar": array((), "int64", 2),
    "empty": array((0, 3), "int8"), "权重 x": array((5,), "float16", 3),
}  # fmt: skip
PLAIN = Options(fsync=False, workers=2)
GOLDEN = Path(__file__).parents[2] / "golden" / "torch_files"


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return write_file(tmp_path / "full.safetensors", FULL, {"note": "hello"})


def assert_same(path: Path) -> None:
    found = read_file(path)
    assert set(found) == set(FULL)
    assert all(same(found[name], FULL[name]) for name in FULL)
    assert reshard.open(path).texts == {"note": "hello"}


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.pth"])
def test_there_and_back(full: Path, tmp_path: Path, name: str) -> None:
    reshard.convert(full, tmp_path / name, PLAIN)
    reshard.convert(tmp_path / name, tmp_path / "back.safetensors", PLAIN)
    assert_same(tmp_path / "back.safetensors")


@pytest.mark.parametrize("name", ["nested", "stream_views"])
def test_a_torch_file_that_is_called_ckpt_is_one(name: str, tmp_path: Path) -> None:
    """As Lightning calls its own."""
    made = tmp_path / "epoch=0-step=4.ckpt"
    made.write_bytes((GOLDEN / f"{name}.pt").read_bytes())
    assert diff(str(made), str(GOLDEN / f"{name}.pt")).differences == ()
    made.write_bytes(made.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"step=4\.ckpt: .*(records at its end|storages end)"):
        reshard.open(made)


def test_a_torch_file_without_tensors_that_is_called_ckpt_is_none(tmp_path: Path) -> None:
    made = tmp_path / "a.ckpt"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
        archive.writestr("archive/version", "3")
    with pytest.raises(FormatError, match=r"a\.ckpt: it is a PyTorch file .*, not ckpt"):
        reshard.open(made)


def test_records_have_the_crc_of_their_bytes(full: Path, tmp_path: Path) -> None:
    reshard.convert(full, tmp_path / "a.pt", replace(PLAIN, max_memory_nbytes=120 << 20))
    with zipfile.ZipFile(tmp_path / "a.pt") as file:
        assert file.testzip() is None
        assert all(info.CRC for info in file.infolist() if info.file_size)
        assert all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())


def test_parts_have_the_names_of_hugging_face(full: Path, tmp_path: Path) -> None:
    reshard.convert(full, tmp_path / "out", replace(PLAIN, format="torch", max_shard_nbytes=1000))
    parts = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    names = sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_file())
    assert names == [*parts, "pytorch_model.bin.index.json"]
    index = json.loads((tmp_path / "out" / "pytorch_model.bin.index.json").read_text())
    assert set(index["weight_map"]) == set(FULL)
    reshard.convert(tmp_path / "out", tmp_path / "back.safetensors", PLAIN)
    assert_same(tmp_path / "back.safetensors")


def test_one_part_needs_no_index(full: Path, tmp_path: Path) -> None:
    reshard.convert(full, tmp_path / "out", replace(PLAIN, format="torch", max_shard_nbytes=1 << 20))
    assert [p.name for p in (tmp_path / "out").iterdir() if p.is_file()] == ["pytorch_model.bin"]


def test_a_flipped_bit_is_told_where_it_is_asked_for(full: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    reshard.convert(full, path, PLAIN)
    data = path.read_bytes()
    at = data.index(FULL["w"].tobytes()) + 5
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    reshard.convert(path, tmp_path / "b.safetensors", PLAIN)
    with pytest.raises(CheckpointError, match=r"a\.pt: data/1"):
        reshard.convert(path, tmp_path / "c.safetensors", replace(PLAIN, crc=True))


def test_a_crc_of_zero_is_none(tmp_path: Path) -> None:
    reshard.convert(GOLDEN / "no_crc.pt", tmp_path / "a.safetensors", replace(PLAIN, crc=True))


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    warnings = reshard.plan(GOLDEN / "nested.pt", tmp_path / "a.safetensors", PLAIN).warnings
    assert any("nested.pt" in w and "1 float" in w for w in warnings)


def test_ranks_of_torch_files_are_safetensors(full: Path, tmp_path: Path) -> None:
    reshard.convert(full, tmp_path / "a.bin", PLAIN)
    strategy = write_strategy(tmp_path / "s", [{"w": Sharding((2,), ((0,), ()))}])
    options = replace(PLAIN, dst_strategy=str(strategy), names=NameRules(include=("w",)))
    plan = reshard.plan(tmp_path / "a.bin", tmp_path / "out", options)
    assert {Path(file.path).suffix for file in plan.files} == {".safetensors"}


@pytest.mark.parametrize("name", ["big_endian", "marked", "stream_marked", "views", "stream_views", "dtypes"])
@pytest.mark.parametrize("block_nbytes", [0, 120 << 20])
def test_numbers_that_lie_otherwise_come_out_as_torch_has_them(tmp_path: Path, name: str, block_nbytes: int) -> None:
    """Big-endian, conjugated and negated ones, views of all kinds; also in the smallest blocks."""
    options = replace(PLAIN, max_memory_nbytes=block_nbytes or None)
    reshard.convert(GOLDEN / f"{name}.pt", tmp_path / "a.pt", options)
    content = (tmp_path / "a.pt").read_bytes()
    values = held(content, TorchFile().read_index(MemoryFile(content)))
    told = {tensor: hashlib.sha256(data).hexdigest() for tensor, data in values.items()}
    answers = json.loads((GOLDEN / "answers.json").read_text())[name]
    assert told == {tensor: answer["sha256"] for tensor, answer in answers.items()}


def test_what_no_safetensors_file_would_hold_is_loaded(tmp_path: Path) -> None:
    """What is loaded is put into no file."""
    values = np.array([1 + 2j, 3 - 4j], np.complex128)
    names = ("w", "__metadata__")
    frame = TorchFile().frame(dict.fromkeys(names, TensorSpec("complex128", (2,))), {"format": "odd"}, {})
    (tmp_path / "a.pt").write_bytes(frame.filled(dict.fromkeys(names, values.tobytes())))
    opened = reshard.open(tmp_path / "a.pt")
    loaded = opened.load()
    for name in names:
        assert same(opened[name].read(), values)
        assert same(loaded[name], values)
    assert opened.texts == {"format": "odd"}
