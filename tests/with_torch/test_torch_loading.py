"""PyTorch, by the official safetensors library, loads what we write, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from making import array, shard_of, write_file, write_strategy
from reshard import Options
from reshard.layout.tensor import Sharding

torch = pytest.importorskip("torch", reason="no torch here; make test-torch has an environment with it")
pytestmark = pytest.mark.torch
DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip
FULL = {
    **{dtype: array((4, 6), dtype, seed) for seed, dtype in enumerate(DTYPES)},
    "scalar": np.array(7.5, np.float32),
    "empty": np.empty((0, 3), np.float32),
}


def bits(tensor: Any) -> bytes:
    contiguous = tensor.detach().contiguous()
    return bytes(contiguous.reshape(-1).view(torch.uint8).numpy().tobytes()) if contiguous.numel() else b""


def assert_equal(loaded: dict[str, Any], wanted: dict[str, np.ndarray]) -> None:
    assert loaded.keys() == wanted.keys()
    for name, array_ in wanted.items():
        tensor = loaded[name]
        assert (str(tensor.dtype), tuple(tensor.shape)) == (f"torch.{array_.dtype}", array_.shape), name
        assert bits(tensor) == array_.tobytes(), name


def test_slices_of_each_rank(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    cut = {name: Sharding((2,), ((0,), *[()] * (a.ndim - 1))) for name, a in FULL.items() if a.size > 1}
    whole = {name: Sharding((2,), ((),) * a.ndim) for name, a in FULL.items()}
    shardings = {**whole, **cut}
    source = write_file(tmp_path / "full.safetensors", FULL)
    strategy = write_strategy(tmp_path / "strategy", [shardings])
    reshard.convert(source, tmp_path / "out", Options(dst_strategy=str(strategy)))
    for rank in range(2):
        (path,) = (tmp_path / "out" / f"rank_{rank}").glob("*.safetensors")
        wanted = {name: shard_of(FULL[name], sharding, rank) for name, sharding in shardings.items()}
        assert_equal(load_file(path), wanted)
