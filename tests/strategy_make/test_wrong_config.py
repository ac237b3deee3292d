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
from reshard.ops.make_strategy import StrategyWish, made_stages, make_strategy
from reshard.strategy.job import Sizes

LLAMA = "strategies/llama_dp2mp4"
MIXTRAL = "families/mixtral_dp4mp2_ep4_opt"
QWEN3 = "families/qwen3_dp2mp4_opt_ws4"
QWEN3_MOE = "families/qwen3moe_dp4mp2ep4_opt"
GLM = "families/glm4_dp2mp4_kv2_opt"
TELECHAT = "families/telechat2_dp4mp2_vocabfalse"
DEEPSEEK = "families/ds3leg_dp1mp2pp4ep2"


def changed(tmp_path: Path, base: str, **keys: Any) -> StrategyWish:
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
    return StrategyWish(config=str(config), mindformers_version="1.6.0")


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
        made_stages(StrategyWish(config=str(config)))
    assert caught.value.where == str(config)


def test_no_such_configuration(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        made_stages(StrategyWish(config=str(tmp_path / "none.yaml")))


def test_a_version_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match="'latest' is not a version"):
        made_stages(StrategyWish(config=str(GOLDEN / LLAMA / "run.yaml"), mindformers_version="latest"))


def test_came_under_optimizer_parallel_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match="Came"):
        stages_of(tmp_path, QWEN3, optimizer={"type": "Came"})


def test_sizes_beside_a_yaml() -> None:
    with pytest.raises(UsageError, match="beside --config"):
        made_stages(StrategyWish(config=str(GOLDEN / LLAMA / "run.yaml"), sizes=Sizes(dp=2)))


@pytest.mark.parametrize("file", [False, True])
def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path, file: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    target = tmp_path / "out" / "mine" if file else tmp_path / "out"
    with pytest.raises(UsageError, match="not empty"):
        make_strategy(StrategyWish(config=str(GOLDEN / LLAMA / "run.yaml")), str(target))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_nothing_is_written_for_a_configuration_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StrategyError):
        make_strategy(changed(tmp_path, LLAMA, **{MP: 8}), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# --- what is not in any golden configuration, by the rules as they are written down


def test_the_newest_rule_holds_without_a_version(tmp_path: Path) -> None:
    asked = changed(tmp_path, GLM, **{CONFIG + "padded_vocab_size": 512})
    newest = made_stages(StrategyWish(config=asked.config))[2][0]["transformer.embedding.embedding_weight"]
    old = made_stages(StrategyWish(config=asked.config, mindformers_version="1.3.0"))[2][0]
    assert newest.sharding.parts[0] == 8  # whole, then shared by all
    assert old["transformer.embedding.embedding_weight"].sharding.parts[0] == 8  # cut in 4, each shared by 2
    assert newest.sharding.cells() != old["transformer.embedding.embedding_weight"].sharding.cells()


def test_experts_before_1_5_repeat_context_parallel_innermost(tmp_path: Path) -> None:
    asked = changed(tmp_path, MIXTRAL, parallel_config__context_parallel=2, **{EP: 2})
    weight = "model.layers.0.feed_forward.ffn.w1.weight"
    old = made_stages(StrategyWish(config=asked.config, mindformers_version="1.3.0", optimizer="none"))[2][0][weight]
    new = made_stages(StrategyWish(config=asked.config, mindformers_version="1.5.0", optimizer="none"))[2][0][weight]
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
    _, _, (stage,) = made_stages(StrategyWish(config=str(tmp_path / "run.yaml")))
    assert "decoder.layers.1.mlp.linear_fc1.weight" in stage
    assert "decoder.layers.2.mlp.linear_fc1.weight" not in stage


# --- keys that change the parameters


ONLY = "parallel__strategy_ckpt_config"


@pytest.mark.parametrize(
    ("base", "keys", "said"),
    [
        (TELECHAT, {"moe_config": {"expert_num": 16, "ep_extend_tp": True}}, ["expert_num: 16", "ep_extend_tp: True"]),
        (TELECHAT, {CONFIG + "quant": "w8a16"}, ["quant: w8a16"]),
        (TELECHAT, {"model__arch__auto_register": "mine.TelechatForCausalLM"}, ["auto_register", "mine.Telechat"]),
        (LLAMA, {"model__arch__auto_register": "yizhao.YiZhaoForCausalLM"}, ["auto_register", "yizhao"]),
        (LLAMA, {CONFIG + "quantization_config": {"quant_method": "ptq"}}, ["quantization_config", "ptq"]),
        (LLAMA, {CONFIG + "pipeline_stage": {"start_stage": 1, "stage_num": 1}}, ["pipeline_stage", "start_stage"]),
        (MIXTRAL, {CONFIG + "use_past": True}, ["use_past: True"]),
        (MIXTRAL, {"moe_config__enable_cold_hot_expert": True}, ["enable_cold_hot_expert: True"]),
        (GLM, {"moe_config": {"expert_num": 8}}, ["expert_num: 8"]),
        (GLM, {CONFIG + "rmsnorm": False}, ["rmsnorm: False"]),
        (GLM, {CONFIG + "quantization_bit": 4}, ["quantization_bit: 4"]),
        (DEEPSEEK, {CONFIG + "qkv_has_bias": True}, ["qkv_has_bias: True"]),
        (DEEPSEEK, {"run_mode": "predict"}, ["run_mode: predict"]),
        (QWEN3, {CONFIG + "quant_config": {"bits": 8}}, ["quant_config"]),
        (QWEN3, {"optimizer__amsgrad": True}, ["optimizer.amsgrad"]),
        (LLAMA, {CONFIG + "pet_config": {"pet_type": "lora", "exclude_layers": "layers.0"}}, ["exclude_layers"]),
        (LLAMA, {CONFIG + "pet_config": {"pet_type": "lora", "freeze_exclude": ["*wte*"]}}, ["freeze_exclude"]),
    ],
)
def test_a_key_that_no_rule_reads_is_refused(tmp_path: Path, base: str, keys: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(StrategyError) as caught:
        stages_of(tmp_path, base, **keys)
    assert [word for word in said if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("base", "keys"),
    [
        (TELECHAT, {"moe_config": {"expert_num": 1, "ep_extend_tp": True}, CONFIG + "quant": ""}),
        (TELECHAT, {"model__arch__auto_register": "research.telechat2.telechat.TelechatForCausalLM"}),
        (LLAMA, {CONFIG + "quantization_config": {}, CONFIG + "use_past": True}),
        (GLM, {"moe_config": {"expert_num": 1}, CONFIG + "rmsnorm": True, CONFIG + "quantization_bit": 0}),
        (DEEPSEEK, {"model__arch__auto_register": "deepseek3.DeepseekV3ForCausalLM", "run_mode": "finetune"}),
    ],
)
def test_a_value_of_it_that_changes_nothing_is_taken(tmp_path: Path, base: str, keys: dict[str, Any]) -> None:
    assert stages_of(tmp_path, base, **keys) == stages_of(tmp_path, base)


def test_a_quantised_model_of_the_hub_is_trained_as_any(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    assert stages_of(tmp_path, QWEN3, pretrained_model_dir=str(tmp_path / "hf"))


def test_rules_of_ones_own_know_what_they_do_not_read(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    text = "family: mine\nunread: [{key: odd, harmless: [1], when: num > 1}]\nconfig: {num: {from: num, default: 1}}\n"
    rules.write_text(text + "blocks:\n- stage: first\n  tensors: [{name: w, shape: [4]}]\n")
    for config, refused in (("odd: 2", False), ("num: 2, odd: 1", False), ("num: 2, odd: 2, quant: x", True)):
        (tmp_path / "run.yaml").write_text(f"use_parallel: False\nmodel: {{model_config: {{{config}}}}}\n")
        asked = StrategyWish(config=str(tmp_path / "run.yaml"), rules=str(rules))
        if refused:
            with pytest.raises(StrategyError, match="odd: 2"):
                made_stages(asked)
        else:
            assert list(made_stages(asked)[2][0]) == ["w", "adam_m.w", "adam_v.w"]


def test_telechat_with_what_its_keys_change(tmp_path: Path) -> None:
    (plain,) = stages_of(tmp_path, TELECHAT, run_mode="predict")
    attention, dense = "model.layers.0.attention.", "model.layers.0.feed_forward."
    keys = {CONFIG + "qkv_has_bias": True, CONFIG + "out_proj_has_bias": False}
    (biased,) = stages_of(tmp_path, TELECHAT, run_mode="predict", **keys)
    of_first = {n for n in biased.keys() ^ plain.keys() if ".0." in n}
    assert of_first == {f"{attention}{n}.bias" for n in ("wq", "wk_v", "wo")}
    assert biased[attention + "wk_v.bias"].sharding.parts == (2,)
    (joined,) = stages_of(tmp_path, TELECHAT, run_mode="predict", **{CONFIG + "qkv_concat": True})
    assert {n for n in joined.keys() - plain.keys() if ".0." in n} == {
        attention + "w_qkv.weight", dense + "w_gate_hidden.weight",
    }  # fmt: skip
    whole = plain[attention + "wq.weight"].shape[0] + plain[attention + "wk_v.weight"].shape[0]
    assert joined[attention + "w_qkv.weight"].shape[0] == whole


def test_biases_of_experts_with_use_gmm_stand_beside_the_router(tmp_path: Path) -> None:
    base = "families/ds3leg_dp2mp2ep2_emp_none"
    keys = {"moe_config__use_gmm": True, "moe_config__balance_via_topk_bias": True}
    (stage,) = stages_of(tmp_path, base, **keys, **{ONLY: {"only_trainable_params": False}})
    assert {n.partition("routed_experts.")[2] for n in stage if n.endswith(("topk_bias", "expert_load"))} == {
        "topk_bias", "expert_load",
    }  # fmt: skip


def test_whole_numbers_however_they_are_written(tmp_path: Path) -> None:
    content = yaml.safe_load((GOLDEN / MIXTRAL / "run.yaml").read_text("utf-8"))

    def as_fractions(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: as_fractions(v) for k, v in value.items()}
        return [*map(as_fractions, value)] if isinstance(value, list) else float(value) if type(value) is int else value

    (tmp_path / "run.yaml").write_text(yaml.safe_dump(as_fractions(content)))
    read = made_stages(StrategyWish(config=str(tmp_path / "run.yaml"), mindformers_version="1.6.0"))[2]
    assert read == stages_of(tmp_path, MIXTRAL)


@pytest.mark.parametrize(
    ("kind", "same"),
    [("fused_adamw", "AdamWeightDecay"), ("fp32_adamw", "AdamW"), ("FusedAdamWeightDecay", "AdamWeightDecay")],
)
def test_optimizers_by_the_names_that_mindformers_registers(tmp_path: Path, kind: str, same: str) -> None:
    assert stages_of(tmp_path, QWEN3, optimizer={"type": kind}) == stages_of(tmp_path, QWEN3, optimizer={"type": same})


def test_adamw_that_is_fused_keeps_other_states(tmp_path: Path) -> None:
    fused = stages_of(tmp_path, QWEN3, optimizer={"type": "AdamW", "use_fused": True})
    assert fused == stages_of(tmp_path, QWEN3, optimizer={"type": "FusedAdamW"})


@pytest.mark.parametrize("version", ["1.2.9", "r1.0", "1.10.0", "2.0.0"])
def test_a_release_whose_rules_are_not_known(tmp_path: Path, version: str) -> None:
    asked = changed(tmp_path, LLAMA)
    with pytest.raises(StrategyError, match=r"only those of 1\.3 to 1\.9"):
        made_stages(StrategyWish(config=asked.config, mindformers_version=version))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"parallel_config__model_paralel": 4, MP: None}, "parallel_config.model_paralel: no such key; did you mean"),
        (
            {"paralel_config": {}, "parallel_config": None},
            "paralel_config: no such key; did you mean",
        ),
        ({CONFIG + "num_layer": 4, CONFIG + "num_layers": None}, "model_config.num_layer: no such key; did you mean"),
        ({"moe_config": {"expert_nums": 8}}, "moe_config.expert_nums: no such key; did you mean 'expert_num'?"),
        ({"parallel__enable_paralel_optimizer": True, "parallel__enable_parallel_optimizer": None}, "did you mean"),
    ],
)
def test_a_slip_of_the_pen_is_not_passed_over(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(StrategyError) as caught:
        stages_of(tmp_path, LLAMA, **keys)
    assert said in str(caught.value)
