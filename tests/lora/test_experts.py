"""Adapters of fused experts, of bases that have their experts one by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import reshard
from making import read_file, shard_of, write_file, write_ranks, write_strategy
from reshard import Options
from reshard.errors import PlanError
from reshard.layout.tensor import Sharding

HIDDEN, INNER, EXPERTS, RANK = 6, 4, 3, 2
SHAPES = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
NAMES = {"mlp": ("gate_proj", "up_proj", "down_proj"), "block_sparse_moe": ("w1", "w3", "w2")}
RNG = np.random.default_rng(8)
FUSED = {name: RNG.standard_normal((EXPERTS, *shape), np.float32) for name, shape in SHAPES.items()}
LAYER = "model.layers.0.mlp.experts"
Arrays = dict[str, np.ndarray]


def apart(fused: Arrays, called: str) -> Arrays:
    gate, up, down = NAMES[called]
    found = {}
    for expert in range(EXPERTS):
        there = f"model.layers.0.{called}.experts.{expert}"
        found[f"{there}.{gate}.weight"], found[f"{there}.{up}.weight"] = np.split(fused["gate_up_proj"][expert], 2)
        found[f"{there}.{down}.weight"] = fused["down_proj"][expert]
    return found


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Of both parameters, and of what chooses experts."""
    tensors: Arrays = {
        "base_model.model.model.layers.0.mlp.gate.lora_A.weight": RNG.standard_normal((RANK, HIDDEN), np.float32),
        "base_model.model.model.layers.0.mlp.gate.lora_B.weight": RNG.standard_normal((EXPERTS, RANK), np.float32),
    }
    for end, (out, inner) in zip((".base_layer", ""), SHAPES.values(), strict=True):
        there = f"base_model.model.{LAYER}{end}"
        tensors[f"{there}.lora_A.weight"] = RNG.standard_normal((EXPERTS * RANK, inner), np.float32)
        tensors[f"{there}.lora_B.weight"] = RNG.standard_normal((out, EXPERTS * RANK), np.float32)
    write_file(tmp_path / "adapter" / "adapter_model.safetensors", tensors)
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "alpha_pattern": {"experts.down_proj": 6},
            "target_parameters": [f"mlp.experts.{name}" for name in SHAPES]}  # fmt: skip
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    return tmp_path / "adapter"


def merged(src: Path, adapter: Path, dst: Path, **options: str) -> None:
    config = reshard.lora_config(adapter=str(adapter))
    reshard.merge_lora(src, dst, config, Options(fsync=False, **options), adapter)  # type: ignore[arg-type]


def wanted(adapter: Path, called: str) -> Arrays:
    """What is merged of fused experts, one by one."""
    gate = RNG.standard_normal((EXPERTS, HIDDEN), np.float32)
    fused = {f"{LAYER}.{name}": array for name, array in FUSED.items()}
    write_file(adapter.parent / "fused.safetensors", {**fused, "model.layers.0.mlp.gate.weight": gate})
    write_file(
        adapter.parent / "base.safetensors", {**apart(FUSED, called), f"model.layers.0.{called}.gate.weight": gate}
    )
    merged(adapter.parent / "fused.safetensors", adapter, adapter.parent / "of_fused.safetensors")
    found = read_file(adapter.parent / "of_fused.safetensors")
    of_experts = apart({name: found[f"{LAYER}.{name}"] for name in SHAPES}, called)
    return {**of_experts, f"model.layers.0.{called}.gate.weight": found["model.layers.0.mlp.gate.weight"]}


@pytest.mark.parametrize("called", NAMES)
def test_experts_one_by_one(called: str, adapter: Path, tmp_path: Path) -> None:
    expected = wanted(adapter, called)
    merged(tmp_path / "base.safetensors", adapter, tmp_path / "out.safetensors")
    found = read_file(tmp_path / "out.safetensors")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_experts_in_slices(adapter: Path, tmp_path: Path) -> None:
    expected = wanted(adapter, "mlp")
    cut = {name: Sharding((2,), ((), (0,))) for name in expected}
    write_ranks(tmp_path / "ranks", read_file(tmp_path / "base.safetensors"), [cut])
    rows = {n: Sharding((2,), ((0,), ()) if a.shape[0] % 2 == 0 else ((), ())) for n, a in expected.items()}
    strategies = [str(write_strategy(tmp_path / name, [each])) for name, each in (("cut", cut), ("rows", rows))]
    options = {"src_strategy": strategies[0], "dst_strategy": strategies[1], "format": "safetensors"}
    merged(tmp_path / "ranks", adapter, tmp_path / "out", **options)
    for rank in range(2):
        found = read_file(tmp_path / "out" / f"rank_{rank}" / f"checkpoint_{rank}.safetensors")
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], shard_of(array, rows[name], rank), err_msg=name)


def test_an_expert_that_lacks_a_part_is_refused(adapter: Path, tmp_path: Path) -> None:
    wanted(adapter, "mlp")
    base = read_file(tmp_path / "base.safetensors")
    del base[f"{LAYER}.1.up_proj.weight"]
    write_file(tmp_path / "base.safetensors", base)
    with pytest.raises(PlanError, match=r"experts\.base_layer\.lora_A\.weight: its weight is missing"):
        merged(tmp_path / "base.safetensors", adapter, tmp_path / "out.safetensors")


@pytest.mark.parametrize("in_out", [False, True])
@pytest.mark.parametrize("first", SHAPES)
def test_square_parameters_are_stored_as_those_beside_them(tmp_path: Path, first: str, *, in_out: bool) -> None:
    """As gpt-oss has them, whose ``down_proj`` is square: PEFT takes all parameters of a layer alike."""
    square: Arrays = {"gate_up_proj": RNG.standard_normal((EXPERTS, 2 * HIDDEN, HIDDEN), np.float32),
                      "down_proj": RNG.standard_normal((EXPERTS, HIDDEN, HIDDEN), np.float32)}  # fmt: skip
    factors: Arrays = {}
    expected: Arrays = {}
    for name, weight in square.items():
        a = RNG.standard_normal((EXPERTS * RANK, HIDDEN), np.float32)
        b = RNG.standard_normal((weight.shape[1], EXPERTS * RANK), np.float32)
        there = f"base_model.model.{LAYER}{'.base_layer' if name == first else ''}"
        factors |= {f"{there}.lora_A.weight": a, f"{there}.lora_B.weight": b}
        ranks = (a.reshape(EXPERTS, RANK, HIDDEN), b.reshape(-1, RANK, EXPERTS))
        expected[f"{LAYER}.{name}"] = weight + 2 * np.einsum("erh,ore->eoh", *ranks)
    if in_out:
        square, expected = ({n: np.swapaxes(a, 1, 2).copy() for n, a in each.items()} for each in (square, expected))
    write_file(tmp_path / "base.safetensors", {f"{LAYER}.{name}": array for name, array in square.items()})
    write_file(tmp_path / "adapter" / "adapter_model.safetensors", factors)
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_parameters": [f"experts.{n}" for n in SHAPES]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    merged(tmp_path / "base.safetensors", tmp_path / "adapter", tmp_path / "out.safetensors")
    found = read_file(tmp_path / "out.safetensors")
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
