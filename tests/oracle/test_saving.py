"""reshard reads what MindSpore saves: every type, scalars, appended Python values, CRC tails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_loading import SHAPES, TYPES

import reshard
from golden.cases import run_reshard
from making import array, same

pytestmark = pytest.mark.oracle

APPENDED = {"epoch": 12, "big": -(1 << 62), "rate": 0.1, "flag": True, "note": "naïve 权重 🙂"}
APPENDED_ARRAYS = {
    "epoch": np.array(12), "big": np.array(-(1 << 62)), "rate": np.array(0.1, np.float32), "flag": np.array(True),
}  # fmt: skip


def everything() -> dict[str, np.ndarray[Any, Any]]:
    """Random bits; bfloat16 goes to MindSpore by way of float32, where NaNs lose their bits, so it has none."""
    made = {}
    for dtype in TYPES:
        for i, (name, shape) in enumerate(SHAPES.items()):
            values = array(shape, dtype, seed=i)
            if dtype == "bfloat16":
                values = array(shape, "int16", seed=i).astype(np.float32).astype(values.dtype)
            made[f"{dtype}.{name}"] = values
    return made


def request(path: Path, form: str, arrays: dict[str, np.ndarray[Any, Any]], **options: Any) -> tuple[str, Any]:
    tensors = {name: [TYPES[a.dtype.name], list(a.shape), a.tobytes().hex()] for name, a in arrays.items()}
    return "save", {"path": str(path), "format": form, "tensors": tensors, **options}


def assert_reads(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    checkpoint = reshard.open(path)
    assert checkpoint.keys() == arrays.keys()
    for name, expected in arrays.items():
        assert same(np.asarray(checkpoint[name].read()), expected), name


@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_every_type_and_shape(form: str, tmp_path: Path, ask: Any) -> None:
    arrays = everything()
    path = tmp_path / f"saved.{form}"
    assert ask([request(path, form, arrays)]) == [{}]
    assert_reads(path, arrays)


def test_appended_values(tmp_path: Path, ask: Any) -> None:
    arrays = {"w": array((3, 2))}
    no_text = {name: value for name, value in APPENDED.items() if name != "note"}
    ckpt, safetensors = tmp_path / "saved.ckpt", tmp_path / "saved.safetensors"
    requests = [
        request(ckpt, "ckpt", arrays, append_dict=APPENDED),
        request(safetensors, "safetensors", arrays, append_dict=no_text),  # it cannot save text there
    ]
    assert ask(requests) == [{}, {}]
    assert_reads(ckpt, arrays | APPENDED_ARRAYS)
    assert reshard.open(ckpt).texts == {"note": APPENDED["note"]}
    assert_reads(safetensors, arrays | APPENDED_ARRAYS)


@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_crc(form: str, tmp_path: Path, ask: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The tail or note is no tensor; ``--crc`` finds the file whole, and finds one changed bit of it."""
    arrays = everything()
    if form == "safetensors":  # its CRC fails on bfloat16; it takes a 0-d integer for a number of zeros
        arrays = {n: a for n, a in arrays.items() if a.ndim and a.dtype.name != "bfloat16"}
        arrays |= {"epoch_num": np.array(12), "big": np.array(70_000, np.uint32), "none": np.array(0, np.int8)}
    path = tmp_path / f"saved.{form}"
    assert ask([request(path, form, arrays, crc_check=True)]) == [{}]
    assert_reads(path, arrays)
    assert run_reshard(["convert", str(path), str(tmp_path / f"made.{form}"), "--crc"]) == 0
    assert "without a CRC-32" not in capsys.readouterr().err
    assert_reads(tmp_path / f"made.{form}", arrays)
    data = bytearray(path.read_bytes())
    data[data.index(b"Float64") + 30 if form == "ckpt" else -1] ^= 1
    spoilt = tmp_path / f"spoilt.{form}"
    spoilt.write_bytes(data)
    assert run_reshard(["convert", str(spoilt), str(tmp_path / f"no.{form}"), "--crc"]) == 3
    assert "crc" in capsys.readouterr().err.lower()
