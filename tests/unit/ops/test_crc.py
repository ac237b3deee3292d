"""``--crc`` of safetensors: numbers that MindSpore 2.7.2 wrote, and files that do not fit them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import reshard
from making import write_file, write_ranks, write_strategy
from reshard.errors import CheckpointError
from reshard.layout.tensor import Sharding
from reshard.ops.options import Options

ONE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
MANY = {
    "z.10": np.arange(6, dtype=np.int64),
    "z.9": np.array(3.5, np.float32),
    "a": np.zeros((0, 3), np.float32),
    "Z": np.ones(3, bool),
    "é": np.ones(2, np.int8),
}
EXTRA = {"w": np.arange(6, dtype=np.float32), "epoch_num": np.array(3), "lr": np.array(0.5, np.float32)}
CRC = Options(fsync=False, crc=True)


@pytest.mark.parametrize(
    ("arrays", "crc"),
    [
        (ONE, "1185765979"),
        (MANY, "1418284214"),
        (EXTRA, "692181237"),  # an integer without dims counts as so many zeros
        (EXTRA, "252669455"),  # or, of writers that are not MindSpore, as its bytes
    ],
    ids=["one", "many", "zeros", "bytes"],
)
def test_what_mindspore_states_is_checked(arrays: dict[str, np.ndarray], crc: str, tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", arrays, {"crc_num": crc})
    reshard.convert(path, tmp_path / "y.safetensors", CRC)
    made = reshard.plan(tmp_path / "y.safetensors", tmp_path / "out", CRC)
    assert "--crc: 1 file of 1 without a CRC-32 to check" in made.warnings  # it is not copied
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="CRC-32 does not fit") as caught:
        reshard.convert(path, tmp_path / "z.safetensors", CRC)
    assert str(path) in caught.value.message
    assert not (tmp_path / "z.safetensors").exists()


@pytest.mark.parametrize("crc", ["1185765978", "-1", "", "words", "0x46AD6E9B"])
def test_another_number_does_not_fit(crc: str, tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", ONE, {"crc_num": crc})
    with pytest.raises(CheckpointError, match="CRC-32 does not fit"):
        reshard.plan(path, tmp_path / "out", CRC)


@pytest.mark.parametrize("value", [-1, 1 << 62])
def test_an_integer_that_mindspore_could_not_have_saved(value: int, tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", {"n": np.array(value)}, {"crc_num": "1"})
    with pytest.raises(CheckpointError, match="CRC-32 does not fit"):
        reshard.plan(path, tmp_path / "out", CRC)


def test_every_rank_is_checked(tmp_path: Path) -> None:
    cut = {"w": Sharding((2,), ((0,), ()))}
    write_strategy(tmp_path / "strategy", [cut])
    write_ranks(tmp_path / "src", ONE, [cut], suffix=".safetensors")
    write_file(tmp_path / "src/rank_1/model_1.safetensors", {"w": ONE["w"][1:]}, {"crc_num": "7"})
    with pytest.raises(CheckpointError, match="rank_1") as caught:
        reshard.plan(tmp_path / "src", tmp_path / "out", Options(str(tmp_path / "strategy"), crc=True))
    assert "rank_0" not in caught.value.message


def test_a_file_of_which_an_index_takes_a_part_is_checked_whole(tmp_path: Path) -> None:
    """The index takes ``w`` from elsewhere; the sum is of all that lies in the file."""
    v, both = np.ones(3, np.float32), "1523142310"
    write_file(tmp_path / "src" / "a.safetensors", {"v": v, "w": ONE["w"]}, {"crc_num": both})
    write_file(tmp_path / "src" / "b.safetensors", ONE, {"crc_num": "1185765979"})
    index = {"metadata": {}, "weight_map": {"v": "a.safetensors", "w": "b.safetensors"}}
    (tmp_path / "src" / "model.safetensors.index.json").write_text(json.dumps(index))
    reshard.plan(tmp_path / "src", tmp_path / "out", CRC)
    write_file(tmp_path / "src" / "a.safetensors", {"v": v, "w": ONE["w"] + 1}, {"crc_num": both})
    with pytest.raises(CheckpointError, match="CRC-32 does not fit"):
        reshard.plan(tmp_path / "src", tmp_path / "out", CRC)
