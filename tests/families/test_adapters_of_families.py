"""An adapter beside a base of every family: what is merged out of it is what is merged out of one whole file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import reshard
from families.rows import FAMILIES
from making import read_file, same, write_file
from reshard.planning.lora_names import lora_name
from reshard.planning.names import is_state

OF_MATRICES = [name for name in FAMILIES if name != "Megatron, flattened ranges"]


@pytest.mark.parametrize("name", OF_MATRICES)
def test_an_adapter_is_merged(name: str, tmp_path: Path) -> None:
    made = FAMILIES[name](tmp_path / "row")
    whole = {n: a for n, a in made.full.items() if not is_state(n)}
    write_file(tmp_path / "whole.safetensors", whole)
    adapter = tmp_path / "adapter"
    factors: dict[str, np.ndarray] = {}
    random = np.random.default_rng(5)
    for weight, full in whole.items():
        if full.ndim == 2 and full.size and full.dtype.kind not in "iu" and lora_name(weight) is None:
            layer = f"base_model.model.{weight.removesuffix('.weight')}"
            factors[f"{layer}.lora_A.weight"] = random.standard_normal((2, full.shape[1]), np.float32)
            factors[f"{layer}.lora_B.weight"] = random.standard_normal((full.shape[0], 2), np.float32)
    write_file(adapter / "adapter_model.safetensors", factors)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3}))
    config = reshard.lora_config(adapter=str(adapter))
    reshard.merge_lora(tmp_path / "whole.safetensors", tmp_path / "wanted.safetensors", config, adapter=adapter)
    wanted = read_file(tmp_path / "wanted.safetensors")
    reshard.merge_lora(made.path, tmp_path / "ranks", config, made.options(tmp_path), adapter)
    assert any(not same(wanted[n], whole[n]) for n in whole)
    for rank in range(4):
        held = read_file(tmp_path / "ranks" / f"rank_{rank}" / f"checkpoint_{rank}.safetensors")
        assert held.keys() == wanted.keys()
        of_rank = {n: np.split(a, 4)[rank] if a.shape != held[n].shape else a for n, a in wanted.items()}
        assert [n for n in wanted if not same(held[n], of_rank[n])] == []
