"""Adapters of MindFormers' PyNative trainer: experts, and what it writes beside those that it saves alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import reshard
from checkpoint2 import write_checkpoint2
from making import Arrays, read_file, same
from reshard import Options
from reshard.errors import PlanError
from reshard.layout.tensor import Sharding
from reshard.ops.lora import lora_config

QKV, FC1, FC2 = (
    "decoder.layers.0.self_attention.linear_qkv",
    "layers.0.mlp.experts.weight1",
    "layers.0.mlp.experts.weight2",
)
SHAPES = {
    f"{QKV}.weight": (8, 6), FC1: (4, 6, 10), FC2: (4, 6, 6),
    f"{QKV}.lora_a": (2, 6), f"{QKV}.lora_b": (8, 2),
    f"{FC1}_lora_a": (4, 6, 2), f"{FC1}_lora_b": (4, 2, 10), f"{FC2}_lora_a": (4, 6, 2), f"{FC2}_lora_b": (4, 2, 6),
}  # fmt: skip
RNG = np.random.default_rng(5)
MODEL: Arrays = {name: RNG.integers(-4, 5, shape).astype(np.float32) for name, shape in SHAPES.items()}
BASE = {name: value for name, value in MODEL.items() if "lora" not in name}
FACTORS = {name: value for name, value in MODEL.items() if "lora" in name}
BESIDE = {
    "format": "mindformers_pynative_lora_adapter_v1",
    "base_load_path": "/base",
    "base_fingerprint": None,
    "lora_config": {"target_modules": ".*", "exclude_layers": None, "lora_rank": 2, "lora_alpha": 6},
    "global_step": 7,
    "consumed_samples": 56,
}


def saved(root: Path, full: Arrays) -> Path:
    """Experts are shared out whole, of other weights rows."""
    rows = {name: Sharding((2, 2), ((0,), *((),) * (value.ndim - 1))) for name, value in full.items()}
    write_checkpoint2(root, full, [rows])
    return root


def wanted(scaling: int) -> Arrays:
    experts = {name: BASE[name] + scaling * MODEL[f"{name}_lora_a"] @ MODEL[f"{name}_lora_b"] for name in (FC1, FC2)}
    return {
        f"{QKV}.weight": BASE[f"{QKV}.weight"] + scaling * MODEL[f"{QKV}.lora_b"] @ MODEL[f"{QKV}.lora_a"],
        **experts,
    }


def test_one_that_was_saved_alone(tmp_path: Path) -> None:
    base, adapter = saved(tmp_path / "base", BASE), saved(tmp_path / "adapter", FACTORS)
    (adapter / "mindformers_adapter_config.json").write_text(json.dumps(BESIDE))
    how = lora_config(adapter=str(adapter))
    reshard.merge_lora(base, tmp_path / "m.safetensors", how, Options(fsync=False), adapter)
    found = read_file(tmp_path / "m.safetensors")
    assert found.keys() == BASE.keys()
    assert [name for name, value in wanted(3).items() if not same(found[name], value)] == []
    assert lora_config(adapter=str(adapter), scaling="5").scaling.of(QKV, 2) == 5


def test_one_in_its_model(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("lora_config: {lora_rank: 2, lora_alpha: 2, target_modules: .*}\n")
    how = lora_config(config=str(tmp_path / "run.yaml"))
    reshard.merge_lora(saved(tmp_path / "all", MODEL), tmp_path / "m.safetensors", how, Options(fsync=False))
    found = read_file(tmp_path / "m.safetensors")
    assert [name for name, value in wanted(1).items() if not same(found[name], value)] == []


def test_half_a_pair_of_experts(tmp_path: Path) -> None:
    source = saved(tmp_path / "all", {name: value for name, value in MODEL.items() if name != f"{FC1}_lora_b"})
    with pytest.raises(PlanError, match="weight1_lora_a: its other factor is missing"):
        reshard.merge_lora(source, tmp_path / "m.safetensors", lora_config(scaling="1"))
