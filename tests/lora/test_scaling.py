"""Where the scaling of a LoRA product comes from."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path

import pytest

from reshard.errors import InputError, UsageError
from reshard.ops.lora import lora_config
from reshard.ops.scaling import parse_scaling, read_config


def test_a_number_or_a_quotient() -> None:
    assert parse_scaling("2").value == 2.0
    assert parse_scaling("16/8").value == 2.0


@pytest.mark.parametrize("text", ["", "x", "1/0", "inf", "nan", "1/2/3"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_scaling(text)


def test_none_given_is_an_error_and_never_one() -> None:
    with pytest.raises(UsageError, match="no scaling was given"):
        lora_config()


def test_two_given_contradict() -> None:
    with pytest.raises(UsageError, match="several"):
        lora_config(scaling="2", alpha=16, rank=8)


def test_alpha_without_rank() -> None:
    with pytest.raises(UsageError, match="go together"):
        lora_config(alpha=16)


def test_alpha_and_rank_divide() -> None:
    assert lora_config(alpha=16, rank=8).scaling.of("any", 8) == 2.0


def test_factors_of_another_rank_are_refused() -> None:
    with pytest.raises(InputError, match="rank 4, the configuration says 8"):
        lora_config(alpha=16, rank=8).scaling.of("layers.0.wq", 4)


def peft(folder: Path, **more: object) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({"r": 8, "lora_alpha": 32, **more}))
    return path


def test_a_configuration_that_windows_saved(tmp_path: Path) -> None:
    path = peft(tmp_path)
    path.write_text(path.read_text(), "utf-8-sig")
    assert read_config(path).scaling.of("any", 8) == 4.0


def test_peft_patterns_override_and_match_the_end_of_a_name(tmp_path: Path) -> None:
    path = peft(tmp_path, rank_pattern={"q_proj": 4}, alpha_pattern={"q_proj": 2})
    scaling = read_config(path).scaling
    assert scaling.of("model.layers.0.q_proj", 4) == 0.5
    assert scaling.of("model.layers.0.k_proj", 8) == 4.0
    assert scaling.of("model.layers.0.not_q_proj", 8) == 4.0


def test_peft_rslora_divides_by_the_root(tmp_path: Path) -> None:
    assert read_config(peft(tmp_path, use_rslora=True)).scaling.of("m", 8) == 32 / sqrt(8)


def test_peft_transposed_weights(tmp_path: Path) -> None:
    assert read_config(peft(tmp_path, fan_in_fan_out=True)).transposed
    assert not read_config(peft(tmp_path)).transposed


@pytest.mark.parametrize("alpha", [0, -8])
def test_an_alpha_of_any_sign_counts_as_in_peft(tmp_path: Path, alpha: int) -> None:
    assert read_config(peft(tmp_path, lora_alpha=alpha)).scaling.of("m", 8) == alpha / 8


def test_an_adapter_folder_brings_its_own_configuration(tmp_path: Path) -> None:
    peft(tmp_path)
    assert lora_config(adapter=str(tmp_path)).scaling.of("m", 8) == 4.0


def test_mindformers_yaml(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model:\n  model_config:\n    pet_config: {pet_type: lora, lora_rank: 16, lora_alpha: 8}\n")
    assert read_config(path).scaling.of("m", 16) == 0.5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("adapter_config.json", "{"),
        ("adapter_config.json", "[]"),
        ("adapter_config.json", '{"r": 0, "lora_alpha": 1}'),
        ("adapter_config.json", '{"r": true, "lora_alpha": 1}'),
        ("adapter_config.json", '{"r": 1, "lora_alpha": 1, "use_rslora": "false"}'),
        ("adapter_config.json", '{"r": 1, "lora_alpha": 1, "fan_in_fan_out": []}'),
        ("adapter_config.json", '{"r": 1, "lora_alpha": 1, "modules_to_save": 3}'),
        ("adapter_config.json", '{"r": 1, "lora_alpha": 1, "target_parameters": "experts.up"}'),
        ("run.yaml", "a: ["),
        ("run.yaml", "model: {}"),
        ("run.yaml", "pet_config: {lora_rank: x, lora_alpha: 1}"),
    ],
)
def test_a_broken_configuration_is_named(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=name):
        read_config(path)
