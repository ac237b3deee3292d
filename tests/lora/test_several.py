"""Several adapters and initial ones from Python, and tensors of an adapter that PEFT saves under names of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import reshard
from making import read_file, write_file
from reshard.errors import PlanError, UsageError
from reshard.ops.adapters import AdapterAt

FRONT = "base_model.model."
BASE = {
    "q.weight": np.full((4, 6), 10, np.float32),
    "q.bias": np.zeros(4, np.float32),
    "norm.bias": np.zeros(6, np.float32),
}
Arrays = dict[str, np.ndarray]


def save_adapter(folder: Path, tensors: Arrays, **config: object) -> str:
    folder.mkdir()
    write_file(folder / "adapter_model.safetensors", {FRONT + name: array for name, array in tensors.items()})
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return str(folder)


def ones(scale: float) -> Arrays:
    """Factors whose product is ``2 * scale`` everywhere."""
    a, b = np.ones((2, 6), np.float32), np.full((4, 2), scale, np.float32)
    return {"q.lora_A.weight": a, "q.lora_B.weight": b}


def merged(tmp_path: Path, adapters: list[AdapterAt], **how: str) -> Arrays:
    write_file(tmp_path / "base.safetensors", BASE)
    out = tmp_path / "out.safetensors"
    reshard.merge_lora(tmp_path / "base.safetensors", out, adapters, **how)  # type: ignore[arg-type]
    return read_file(out)


ROOT = np.sqrt(0.5)  # by which each factor of the second counts, A's with the sign
SUMS = {"cat": 10 + 2 - 3, "linear": 10 + 2 * (1 + 3 * ROOT) * (1 - ROOT)}


@pytest.mark.parametrize("combination", SUMS)
def test_several_each_with_its_weight(tmp_path: Path, combination: str) -> None:
    paths = [save_adapter(tmp_path / "a", ones(1)), save_adapter(tmp_path / "b", ones(3))]
    adapters = [
        reshard.AdapterAt(path, reshard.lora_config(adapter=path), weight)
        for path, weight in zip(paths, (1.0, -0.5), strict=True)
    ]
    found = merged(tmp_path, adapters, combination=combination)["q.weight"]
    np.testing.assert_allclose(found, np.full((4, 6), SUMS[combination]), rtol=1e-6)


def test_initial_with_a_trained_bias(tmp_path: Path) -> None:
    """The copy of the weight beside the factors is what was left of it; that of the bias was trained."""
    more = {"q.base_layer.weight": np.ones((4, 6), np.float32), "q.base_layer.bias": np.full(4, 7, np.float32)}
    path = save_adapter(tmp_path / "a", {**ones(2), **more}, init_lora_weights="pissa", bias="all")
    initial = save_adapter(tmp_path / "i", ones(1), init_lora_weights="pissa")
    config = reshard.lora_config(adapter=path, initial=True)
    found = merged(tmp_path, [AdapterAt(path, config, initial=initial)])
    np.testing.assert_array_equal(found["q.weight"], np.full((4, 6), 10 + 4 - 2))
    np.testing.assert_array_equal(found["q.bias"], np.full(4, 7))


def test_what_cannot_be_told_apart_is_a_usage_error(tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "a", ones(1))
    config = reshard.lora_config(adapter=path)
    begun = AdapterAt(path, config, initial=path)
    with pytest.raises(UsageError, match="of one adapter, and several"):
        merged(tmp_path, [begun, AdapterAt(path, config)])
    with pytest.raises(UsageError, match=r"--weights 0\.5 with --initial"):
        merged(tmp_path, [AdapterAt(path, config, 0.5, path)])
    with pytest.raises(UsageError, match="'svd'"):
        merged(tmp_path, [AdapterAt(path, config)], combination="svd")
    with pytest.raises(UsageError, match="besides the adapters"):
        reshard.merge_lora(tmp_path / "base.safetensors", tmp_path / "out", [AdapterAt(path, config)], adapter=path)
    with pytest.raises(UsageError, match="is nan"):
        AdapterAt(path, config, float("nan"))
    with pytest.raises(PlanError, match="no LoRA tensors"):
        merged(tmp_path, [])


def test_weights_of_adapters_that_peft_counts_otherwise(tmp_path: Path) -> None:
    """It keeps the first's use_rslora for the sum of all."""
    paths = [save_adapter(tmp_path / "a", ones(1), use_rslora=True), save_adapter(tmp_path / "b", ones(3))]
    adapters = [AdapterAt(path, reshard.lora_config(adapter=path)) for path in paths]
    found = merged(tmp_path, adapters)["q.weight"]
    np.testing.assert_allclose(found, np.full((4, 6), 10 + 2 * np.sqrt(2) + 6), rtol=1e-6)
    weighted = [AdapterAt(each.path, each.config, 0.5) for each in adapters]
    for given, how in ((weighted, "cat"), (adapters, "linear")):
        with pytest.raises(UsageError, match="the first says use_rslora"):
            merged(tmp_path, given, combination=how)
    (tmp_path / "other").mkdir()
    assert merged(tmp_path / "other", weighted[::-1])["q.weight"].shape == (4, 6)


def test_a_bias_trained_whole_is_saved_twice(tmp_path: Path) -> None:
    whole = np.full(6, 5, np.float32)
    twice = {"norm.bias": whole, "norm.modules_to_save.bias": whole, "norm.original_module.bias": whole * 0}
    for number, tensors in enumerate((twice, {"norm.modules_to_save.bias": whole})):
        (tmp_path / str(number)).mkdir()
        path = save_adapter(tmp_path / str(number) / "a", {**ones(1), **tensors}, bias="all")
        found = merged(tmp_path / str(number), [AdapterAt(path, reshard.lora_config(adapter=path))])
        np.testing.assert_array_equal(found["norm.bias"], whole)


def test_patterns_know_a_parameter_by_its_name(tmp_path: Path) -> None:
    """``target_parameters`` of a layer's weight: its key ends in the parameter's name, a module's does not."""
    pattern = {"alpha_pattern": {"q.weight": 20}}
    path = save_adapter(tmp_path / "a", ones(1), target_parameters=["q.weight"], **pattern)
    other = save_adapter(tmp_path / "b", ones(1), **pattern)
    for number, (adapter, wanted) in enumerate(((path, 10 + 20), (other, 10 + 2))):
        (tmp_path / str(number)).mkdir()
        found = merged(tmp_path / str(number), [AdapterAt(adapter, reshard.lora_config(adapter=adapter))])
        np.testing.assert_array_equal(found["q.weight"], np.full((4, 6), wanted))
