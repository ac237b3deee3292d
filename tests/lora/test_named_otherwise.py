"""Adapters of Hugging Face's names, of bases that get others in the same pass or have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import reshard
from making import read_file, write_file
from reshard import Options
from reshard.errors import PlanError
from reshard.names.wishes import Naming

HIDDEN, HEADS, FFN, VOCAB = 8, 2, 12, 10
SAID = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": FFN,
    "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCAB,
    "torch_dtype": "float32",
}  # fmt: skip
SHAPES = {
    "model.embed_tokens": (VOCAB, HIDDEN), "lm_head": (VOCAB, HIDDEN), "model.norm": (HIDDEN,),
    "model.layers.0.input_layernorm": (HIDDEN,), "model.layers.0.post_attention_layernorm": (HIDDEN,),
    **{f"model.layers.0.self_attn.{x}_proj": (HIDDEN, HIDDEN) for x in "qkvo"},
    **{f"model.layers.0.mlp.{x}_proj": (FFN, HIDDEN) for x in ("gate", "up")},
    "model.layers.0.mlp.down_proj": (HIDDEN, FFN),
}  # fmt: skip
RNG = np.random.default_rng(3)
BASE = {f"{name}.weight": RNG.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
Arrays = dict[str, np.ndarray]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Of every matrix of the layer, of the embedding's rows, and a norm trained whole."""
    tensors: Arrays = {"model.norm.weight": np.ones(HIDDEN, np.float32)}
    for name, shape in SHAPES.items():
        if "_proj" in name:
            tensors[f"{name}.lora_A.weight"] = RNG.standard_normal((2, shape[1]), np.float32)
            tensors[f"{name}.lora_B.weight"] = RNG.standard_normal((shape[0], 2), np.float32)
    tensors["model.embed_tokens.token_adapter.trainable_tokens_delta"] = np.zeros((2, HIDDEN), np.float32)
    named = {f"base_model.model.{name}": array for name, array in tensors.items()}
    write_file(tmp_path / "adapter" / "adapter_model.safetensors", named)
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "trainable_token_indices": [1, 4]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    write_file(tmp_path / "base" / "model.safetensors", BASE)
    (tmp_path / "base" / "config.json").write_text(json.dumps(SAID))
    return tmp_path / "adapter"


def merged(src: Path, adapter: Path, out: Path, dst: str = "") -> Arrays:
    options = Options(naming=Naming(dst=dst, model=str(src.parent / "base" / "config.json"))) if dst else Options()
    reshard.merge_lora(src, out, reshard.lora_config(adapter=str(adapter)), options, adapter)
    return read_file(out)


def test_names_are_given_in_the_same_pass(adapter: Path, tmp_path: Path) -> None:
    """What is merged and named at once is what is merged and then named."""
    found = merged(tmp_path / "base", adapter, tmp_path / "at_once.safetensors", "mindformers")
    merged(tmp_path / "base", adapter, tmp_path / "merged.safetensors")
    naming = Naming(dst="mindformers", model=str(tmp_path / "base" / "config.json"))
    reshard.convert(tmp_path / "merged.safetensors", tmp_path / "after.safetensors", Options(naming=naming))
    wanted = read_file(tmp_path / "after.safetensors")
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_parts_of_fused_weights_are_refused_by_name(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"has it as a part of decoder\.layers\.0\.self_attention\.linear_qkv") as said:
        merged(tmp_path / "base", adapter, tmp_path / "out.safetensors", "mcore")
    assert "merge it without --dst-names, and convert the result" in str(said.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_base_of_other_names_gets_the_adapters(adapter: Path, tmp_path: Path) -> None:
    naming = Naming(dst="mindformers", model=str(tmp_path / "base" / "config.json"))
    reshard.convert(tmp_path / "base", tmp_path / "other.safetensors", Options(naming=naming))
    with pytest.raises(PlanError, match="does not fit") as said:
        merged(tmp_path / "other.safetensors", adapter, tmp_path / "out.safetensors")
    assert "--dst-names hf puts the base under the names that the adapter has" in str(said.value)
    found = merged(tmp_path / "other.safetensors", adapter, tmp_path / "out.safetensors", "hf")
    wanted = merged(tmp_path / "base", adapter, tmp_path / "merged.safetensors")
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
