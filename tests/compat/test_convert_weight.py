"""MindFormers' ``convert_weight.py``: its models, options and answers, there and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from golden.cases import run_reshard
from golden_families.test_checkpoint2 import answer
from golden_families.test_names import held
from golden_families.test_recorded import unpacked
from hub_model import llama, qwen3, write_hub
from making import differing, read_file, same, write_file
from reshard.compat.convert_weight import main

CASES = {
    "hf2mcore-dsv3-fp8": "deepseekv3",
    "hf2ms-baichuan2": "baichuan2",
    "hf2ms-glm4-split-rearrange": "glm-n --config {case}/model.yaml",
    "hf2ms-internlm2-qkvFalse": "internlm2 --config_path {case}/model.yaml",
    "hf2ms-qwen25-lora": "qwen2_5 --is_lora True --dtype fp32",
    "mcore2hf-dsv3-mtp": "deepseekv3 --reversed --config_path {case}/model.yaml",
    "mcore2hf-qwen3-tied": "qwen3 --reversed --config_path {case}/model.yaml",
    "ms2hf-telechat2": "telechat --reversed --config_path {case}/model.yaml",
    "qkvconcat-qwen25": "qwen2_5 --qkv_concat=True --config_path={case}/model.yaml",
}


def convert(words: str, source: Path, target: Path) -> int:
    return main(["--model", *words.split(), "--input_path", str(source), "--output_path", str(target)])


@pytest.mark.parametrize("name", CASES)
def test_its_answer(name: str, tmp_path: Path) -> None:
    case = unpacked("cases", f"names-{name}", tmp_path / "case")
    assert convert(CASES[name].format(case=case), case / "src", tmp_path / "made.safetensors") == 0
    assert held(tmp_path / "made.safetensors") == answer(json.loads((case / "tensors.json").read_text())["tensors"])


def test_the_configuration_of_an_adapter_comes_along_and_the_source_s_stays(tmp_path: Path) -> None:
    case = unpacked("cases", "names-hf2ms-qwen25-lora", tmp_path / "case")
    before = (case / "src" / "adapter_config.json").read_text()
    assert convert("qwen2_5 --is_lora True", case / "src", tmp_path / "out" / "lora.ckpt") == 0
    made = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert made == json.loads(before) | {"target_modules": ["wq", "wv"]}
    assert (case / "src" / "adapter_config.json").read_text() == before


@pytest.mark.parametrize("content", [b"[1,2", b"[]"])
def test_a_configuration_of_an_adapter_that_is_none_is_told_before_anything_is_written(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = unpacked("cases", "names-hf2ms-qwen25-lora", tmp_path / "case")
    (case / "src" / "adapter_config.json").write_bytes(content)
    assert convert("qwen2_5 --is_lora True", case / "src", tmp_path / "out" / "lora.ckpt") == 3
    assert "adapter_config.json: not PEFT's JSON" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_llama_there_and_back_where_the_tool_itself_dies(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub", llama(), model_type="llama", architectures=["LlamaForCausalLM"])
    assert convert("llama", hub, tmp_path / "llama") == 0  # a name without an end, as MindSpore completes it
    made = read_file(tmp_path / "llama.ckpt")
    assert same(made["model.layers.1.attention.wq.weight"], llama()["model.layers.1.self_attn.q_proj.weight"])
    assert convert("llama --reversed", tmp_path / "llama.ckpt", tmp_path / "back.bin") == 0
    assert run_reshard(["diff", str(hub), str(tmp_path / "back.bin")]) == 0


def test_a_file_of_a_folder_stands_for_all_of_it(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub", llama(), model_type="qwen2")
    assert convert("qwen2", hub / "model.safetensors", tmp_path / "out.ckpt") == 0
    assert len(read_file(tmp_path / "out.ckpt")) == len(llama())


def test_a_tied_head_is_written_again(tmp_path: Path) -> None:
    tensors = llama()
    del tensors["lm_head.weight"]
    hub = write_hub(tmp_path / "hub", tensors, model_type="qwen2", tie_word_embeddings=True)
    assert convert("qwen2_5", hub, tmp_path / "out.ckpt") == 0
    made = read_file(tmp_path / "out.ckpt")
    assert same(made["lm_head.weight"], tensors["model.embed_tokens.weight"].astype("bfloat16"))


def test_sizes_from_the_command_line_alone(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub", qwen3())
    assert convert("qwen3", hub, tmp_path / "core") == 0
    assert (tmp_path / "core" / "param_name_map.json").exists()
    sizes = "--num_layers 2 --num_attention_heads 4 --num_query_groups 2 --kv_channels 4 --ffn_hidden_size 12"
    assert convert(f"qwen3 --reversed --dtype fp32 {sizes}", tmp_path / "core", tmp_path / "back") == 0
    back = read_file(tmp_path / "back" / "model.safetensors")
    assert differing(back, qwen3()) == []


WRONG = [
    ("bloom", 2, ["bloom", "qwen2_5", "telechat"]),
    ("llama --reversed --qkv_concat True", 2, ["contradict"]),
    ("qwen3 --num_layers 3", 3, ["num_layers 3 of the command line", "num_hidden_layers 2"]),
    ("qwen3 --reversed", 2, ["Hugging Face's names already"]),
]


@pytest.mark.parametrize(("words", "code", "said"), WRONG)
def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, code: int, said: list[str]
) -> None:
    hub = write_hub(tmp_path / "hub", qwen3())
    assert convert(words, hub, tmp_path / "out.safetensors") == code
    told = capsys.readouterr().err
    assert not [word for word in said if word not in told], told
    assert not (tmp_path / "out.safetensors").exists()


def test_a_source_that_the_output_would_replace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_file(tmp_path / "a.ckpt", {"model.norm_out.weight": llama()["model.norm.weight"]})
    assert convert("llama --reversed", tmp_path / "a.ckpt", tmp_path / "a.ckpt") != 0
    assert same(read_file(tmp_path / "a.ckpt")["model.norm_out.weight"], llama()["model.norm.weight"])
