"""The number of the same weights is the same under any convention of names."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import reshard
from hub_model import llama, qwen3, write_hub
from making import write_file
from reshard.names.wishes import Naming
from reshard.ops.fingerprint import fingerprint
from reshard.ops.options import Options
from reshard.planning.names import NameRules


@pytest.mark.parametrize("to", ["megatron", "torch_dist", "dcp"])
def test_as_hugging_face_has_them(tmp_path: Path, to: str) -> None:
    hub = write_hub(tmp_path / "hub", qwen3())
    ranks = {"tp": 2, "pp": 2} if to == "megatron" else {}
    reshard.convert(hub, tmp_path / "made", Options(to=to, **ranks))
    naming = Naming(dst="hf", model=str(hub / "config.json"))
    found = fingerprint(tmp_path / "made", naming=naming)
    assert (found.number, found.nbytes) == (fingerprint(hub).number, fingerprint(hub).nbytes)
    assert {p.name for p in found.tensors} == set(qwen3())


def test_of_what_was_left_in_by_name(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub", llama(), model_type="llama")
    reshard.convert(hub, tmp_path / "titan", Options(to="parts", naming=Naming(dst="torchtitan")))
    rules, naming = NameRules(exclude=("tok_embeddings",)), Naming(dst="hf", model=str(hub / "config.json"))
    without = fingerprint(hub, rules=NameRules(exclude=("embed_tokens",)))
    assert fingerprint(tmp_path / "titan", rules=rules, naming=naming).number == without.number


def test_codes_count_as_their_products(tmp_path: Path) -> None:
    codes = np.arange(-8, 8, dtype=np.float32).reshape(4, 4).astype(ml_dtypes.float8_e4m3fn)
    scales = np.array([[2.0], [0.5], [1.0], [4.0]], np.float32)
    write_file(tmp_path / "codes.safetensors", {"w.weight": codes, "w.weight_scale": scales})
    products = (codes.astype(np.float32) * scales).astype(ml_dtypes.bfloat16)
    write_file(tmp_path / "plain.safetensors", {"w.weight": products})
    found = fingerprint(tmp_path / "codes.safetensors", naming=Naming(dequantize=True))
    plain = fingerprint(tmp_path / "plain.safetensors")
    assert (found.number, found.nbytes) == (plain.number, plain.nbytes)
