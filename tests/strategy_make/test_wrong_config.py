"""What cannot be known, and what MindSpore would refuse, is refused here: the key and the rule by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from configurations import GOLDEN

from reshard.errors import CheckpointError, StrategyError, UsageError
from reshard.layout.tensor import Layout
from reshard.ops.make_strategy import Making, made_stages, make_strategy
from reshard.strategy.job import Sizes

LLAMA = "strategies/llama_dp2mp4"
MIXTRAL = "families/mixtral_dp4mp2_ep4_opt"
QWEN3 = "families/qwen3_dp2mp4_opt_ws4"
QWEN3_MOE = "families/qwen3moe_dp4mp2ep4_opt"
GLM = "families/glm4_dp2mp4_kv2_opt"


def changed(tmp_path: Path, base: str, **keys: Any) -> Making:
    """A configuration with other values; a key's parts are joined by two underscores, None takes it out."""
    content = yaml.safe_load((GOLDEN / base / "run.yaml").read_text("utf-8"))
    for key, value in keys.items():
        *path, last = key.split("__")
        place = content
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
        if value is None:
            del place[last]
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(content), "utf-8")
    return Making(config=str(config), mindformers_version="1.6.0")


def stages_of(tmp_path: Path, base: str, **keys: Any) -> tuple[dict[str, Layout], ...]:
    return made_stages(changed(tmp_path, base, **keys))[2]


MP = "parallel_config__model_parallel"
DP = "parallel_config__data_parallel"
EP = "parallel_config__expert_parallel"
CONFIG = "model__model_config__"
SHARD_SIZE = "parallel__parallel_optimizer_config__optimizer_weight_shard_size"


@pytest.mark.parametrize(
    ("base", "keys", "words"),
    [
        (LLAMA, {MP: 8, CONFIG + "n_kv_heads": 4}, ["kv_heads % mp == 0", "n_kv_heads 4", "model_parallel 8"]),
        (LLAMA, {MP: 16, DP: 1, CONFIG + "n_kv_heads": 16}, ["heads % mp == 0", "num_heads 8", "model_parallel 16"]),
        (GLM, {MP: 16, DP: 1}, ["heads % mp == 0", "num_attention_heads 8"]),
        (QWEN3, {MP: 8}, ["kv_heads % mp", "num_key_value_heads 4", "model_parallel 8"]),
        (QWEN3, {CONFIG + "vocab_size": 510}, ["vocab % mp == 0", "vocab_size 510"]),
        (QWEN3_MOE, {"parallel_config__use_seq_parallel": False}, ["use_seq_parallel"]),
        (QWEN3_MOE, {EP: 16}, ["expert_parallel 16"]),
        (MIXTRAL, {EP: 3}, ["expert_parallel divides data_parallel × context_parallel", "expert_parallel 3"]),
        (MIXTRAL, {"moe_config__expert_num": 6}, ["experts % ep == 0", "expert_num 6", "expert_parallel 4"]),
        (LLAMA, {DP: 3, MP: 2}, ["6", "1, 2, 4 or a multiple of 8"]),
        (LLAMA, {DP: 3, MP: 4, "parallel_config__pipeline_stage": 2}, ["12", "multiple of 8", "pp 2"]),
        (QWEN3, {SHARD_SIZE: 16}, ["optimizer_weight_shard_size: 16 exceeds the 8 devices"]),
        (QWEN3, {SHARD_SIZE: 0}, ["optimizer_weight_shard_size: 0"]),
        (LLAMA, {"parallel_config__pipeline_stage": 3, MP: 4, DP: 2}, ["4 layers do not come out even on 3 stages"]),
        (LLAMA, {CONFIG + "offset": [0, 1]}, ["offset [0, 1]"]),
        (LLAMA, {MP: "four"}, ["parallel_config.model_parallel: 'four'"]),
        (LLAMA, {"parallel_config": 3}, ["parallel_config.data_parallel"]),
        (LLAMA, {"parallel__enable_parallel_optimizer": "yes"}, ["enable_parallel_optimizer: 'yes'"]),
        (LLAMA, {"parallel__parallel_mode": 2}, ["parallel.parallel_mode: 2"]),
        (LLAMA, {"optimizer__type": "Muon"}, ["optimizer.type 'Muon'"]),
        (LLAMA, {CONFIG + "pet_config": {"pet_type": "p-tuning"}}, ["pet_type: 'p-tuning'"]),
        (LLAMA, {"model__arch__type": "BloomLMHeadModel"}, ["unknown family", "BloomLMHeadModel", "LlamaForCausalLM"]),
        (LLAMA, {"use_legacy": False}, ["unknown family", "use_legacy: False"]),
        (LLAMA, {"model": None}, ["unknown family", "not given"]),
        (QWEN3, {CONFIG + "hidden_size": None}, ["hidden_size", "--checkpoint"]),
        (QWEN3, {CONFIG + "num_hidden_layers": None}, ["num_hidden_layers"]),
        (QWEN3, {CONFIG + "intermediate_size": [192]}, ["intermediate_size", "single value"]),
        (LLAMA, {CONFIG + "hidden_size": -64}, ["-64"]),
    ],
)
def test_refused_with_key_and_rule(tmp_path: Path, base: str, keys: dict[str, Any], words: list[str]) -> None:
    asked = changed(tmp_path, base, **keys)
    with pytest.raises(StrategyError) as caught:
        made_stages(asked)
    assert [word for word in words if word not in str(caught.value)] == []
    assert caught.value.where == asked.config


def test_all_checks_that_fail_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(StrategyError) as caught:
        stages_of(tmp_path, LLAMA, **{MP: 16, DP: 1})
    assert caught.value.message.count("model_parallel 16") == 2


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "!!python/object:os.system {}"])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text, "utf-8")
    with pytest.raises(StrategyError) as caught:
        made_stages(Making(config=str(config)))
    assert caught.value.where == str(config)


def test_no_such_configuration(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        made_stages(Making(config=str(tmp_path / "none.yaml")))


def test_a_version_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match="'latest' is not a version"):
        made_stages(Making(config=str(GOLDEN / LLAMA / "run.yaml"), mindformers_version="latest"))


def test_came_under_optimizer_parallel_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match="Came"):
        stages_of(tmp_path, QWEN3, optimizer={"type": "Came"})


def test_sizes_beside_a_yaml() -> None:
    with pytest.raises(UsageError, match="beside --config"):
        made_stages(Making(config=str(GOLDEN / LLAMA / "run.yaml"), sizes=Sizes(dp=2)))


@pytest.mark.parametrize("file", [False, True])
def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path, file: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    target = tmp_path / "out" / "mine" if file else tmp_path / "out"
    with pytest.raises(UsageError, match="not empty"):
        make_strategy(Making(config=str(GOLDEN / LLAMA / "run.yaml")), str(target))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_nothing_is_written_for_a_configuration_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StrategyError):
        make_strategy(changed(tmp_path, LLAMA, **{MP: 8}), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# --- what is not in any golden configuration, by the rules as they are written down


def test_the_newest_rule_holds_without_a_version(tmp_path: Path) -> None:
    asked = changed(tmp_path, GLM, **{CONFIG + "padded_vocab_size": 512})
    newest = made_stages(Making(config=asked.config))[2][0]["transformer.embedding.embedding_weight"]
    old = made_stages(Making(config=asked.config, mindformers_version="1.3.0"))[2][0]
    assert newest.sharding.parts[0] == 8  # whole, then shared by all
    assert old["transformer.embedding.embedding_weight"].sharding.parts[0] == 8  # cut in 4, each shared by 2
    assert newest.sharding.cells() != old["transformer.embedding.embedding_weight"].sharding.cells()


def test_experts_before_1_5_repeat_context_parallel_innermost(tmp_path: Path) -> None:
    asked = changed(tmp_path, MIXTRAL, parallel_config__context_parallel=2, **{EP: 2})
    weight = "model.layers.0.feed_forward.ffn.w1.weight"
    old = made_stages(Making(config=asked.config, mindformers_version="1.3.0", optimizer="none"))[2][0][weight]
    new = made_stages(Making(config=asked.config, mindformers_version="1.5.0", optimizer="none"))[2][0][weight]
    assert old.sharding.device_matrix == (2, 2, 2, 2)
    assert old.sharding.tensor_map == ((2,), (1,), ())
    assert new.sharding.device_matrix == (4, 2, 2)


def test_a_job_without_use_parallel_has_one_rank(tmp_path: Path) -> None:
    (stage,) = stages_of(tmp_path, LLAMA, use_parallel=False)
    assert {layout.sharding.devices for layout in stage.values()} == {1}


def test_a_job_that_predicts_has_no_states(tmp_path: Path) -> None:
    stages = stages_of(tmp_path, LLAMA, run_mode="predict", parallel_config__pipeline_stage=2)
    assert not [name for stage in stages for name in stage if name.startswith(("adam", "accu"))]


def test_saved_whole_weights_are_not_shared(tmp_path: Path) -> None:
    (stage,) = stages_of(tmp_path, QWEN3, parallel__optimizer_weight_shard_aggregated_save=True)
    assert {layout.sharding.opt_parts for layout in stage.values()} == {1}


def test_settings_come_from_the_pretrained_models_folder(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    content = yaml.safe_load((GOLDEN / QWEN3 / "run.yaml").read_text("utf-8"))
    config = content["model"].pop("model_config")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config), "utf-8")
    content["pretrained_model_dir"] = str(tmp_path / "hf")
    content["model"]["model_config"] = {"num_hidden_layers": 2}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content), "utf-8")
    _, _, (stage,) = made_stages(Making(config=str(tmp_path / "run.yaml")))
    assert "decoder.layers.1.mlp.linear_fc1.weight" in stage
    assert "decoder.layers.2.mlp.linear_fc1.weight" not in stage
