"""The official safetensors library reads every kind of safetensors file that reshard writes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors

import reshard
from golden.cases import run_reshard, unpack
from golden.readers import SAFETENSORS_TYPES, Value, read_metadata, read_safetensors

CODES = {
    "bool": "BOOL", "int8": "I8", "uint8": "U8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
"""Types that the library writes and reads, and that reshard does."""


def by_library(path: Path) -> dict[str, Value]:
    """All tensors; the library checks the header, the offsets, and that nothing is left over."""
    found = {}
    for name, entry in safetensors.deserialize(path.read_bytes()):
        dtype = SAFETENSORS_TYPES.get(entry["dtype"], entry["dtype"])
        found[name] = Value(dtype, tuple(entry["shape"]), bytes(entry["data"]))
    with safetensors.safe_open(path, framework="np") as file:
        assert set(file.keys()) == found.keys()
        assert (file.metadata() or {}) == read_metadata(path)
    return found


def everything(path: Path) -> dict[str, Value]:
    """A file that the library wrote: every type, 0-d, empty, 1-d, 3-d, long and foreign names."""
    dice = np.random.default_rng(7)
    arrays: dict[str, tuple[str, tuple[int, ...]]] = {f"t.{code}": (dtype, (3, 5)) for dtype, code in CODES.items()}
    arrays |= {f"zero_d.{code}": (dtype, ()) for dtype, code in CODES.items()}
    arrays |= {"empty": ("float32", (0,)), "empty_rows": ("int8", (0, 4)), "empty_columns": ("bfloat16", (4, 0))}
    arrays |= {"权重.ünïcode": ("float16", (2, 3, 4)), "n" * 500: ("uint8", (1,)), 'quoted "\\ name': ("int32", (1, 1))}
    raw = {}
    for name, (dtype, shape) in arrays.items():
        itemsize = np.dtype(getattr(ml_dtypes, dtype, None) or dtype).itemsize
        nbytes = int(np.prod(shape, dtype=int)) * itemsize
        data = dice.integers(0, 2 if dtype == "bool" else 256, nbytes, np.uint8).tobytes()
        raw[name] = {"dtype": dtype, "shape": list(shape), "data": data}
    path.write_bytes(
        safetensors.serialize(raw, {"format": "pt", "owner": 'she said "so"', "remove_redundancy": "False"})
    )
    return {
        name: Value(SAFETENSORS_TYPES.get(CODES[e["dtype"]], CODES[e["dtype"]]), tuple(e["shape"]), e["data"])
        for name, e in raw.items()
    }


def test_every_type_and_shape(tmp_path: Path) -> None:
    values = everything(tmp_path / "from.safetensors")
    reshard.convert(str(tmp_path / "from.safetensors"), str(tmp_path / "to.safetensors"))
    assert by_library(tmp_path / "to.safetensors") == values
    checkpoint = reshard.open(tmp_path / "to.safetensors")
    assert {dtype: checkpoint[f"t.{code}"].dtype for dtype, code in CODES.items()} == {dtype: dtype for dtype in CODES}
    assert read_metadata(tmp_path / "to.safetensors")["owner"] == 'she said "so"'


def test_parts_of_a_full_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = everything(tmp_path / "from.safetensors")
    command = ["convert", str(tmp_path / "from.safetensors"), str(tmp_path / "out"), "--max-shard-size", "300"]
    assert run_reshard(command) == 0, capsys.readouterr().err
    parts = sorted((tmp_path / "out").rglob("*.safetensors"))
    assert len(parts) > 3
    assert {name: value for part in parts for name, value in by_library(part).items()} == values


@pytest.mark.parametrize(
    ("case_name", "options"),
    [
        ("full_to_dp2mp2pp2", []),
        ("full_to_layout_tuple_opt", []),
        ("dp2mp2pp2_to_dp1mp4pp2", []),
        ("dp2mp2pp2_to_full_accu", ["--max-shard-size", "10KiB"]),
        ("full_to_dp4mp2_optshard", ["--drop-redundancy"]),
        ("err_string_append", []),
        ("st_full_to_dp2mp4", ["--dtype", "bfloat16"]),
    ],
)
def test_conversions(case_name: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = unpack(case_name, tmp_path / "case")
    strategies = [w for s in ("src", "dst") if (p := case.strategy(s)) for w in (f"--{s}-strategy", str(p))]
    command = ["convert", str(case.folder / "src"), str(tmp_path / "out"), "--format", "safetensors"]
    assert run_reshard([*command, "--missing", "drop", *strategies, *options]) == 0, capsys.readouterr().err
    files = sorted((tmp_path / "out").rglob("*.safetensors"))
    assert files
    for file in files:
        assert by_library(file) == read_safetensors(file)


def test_unified_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = unpack("unified_dp2mp2pp2_opt", tmp_path / "case")
    command = ["unify", str(case.folder / "src"), str(tmp_path / "out"), "--src-strategy", str(case.strategy("src"))]
    assert run_reshard([*command, "--max-shard-size", "20KiB"]) == 0, capsys.readouterr().err
    files = sorted((tmp_path / "out").rglob("*.safetensors"))
    assert len(files) > 2
    for file in files:
        assert by_library(file) == read_safetensors(file)
