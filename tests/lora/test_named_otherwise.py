"""Adapters of Hugging Face's names, of bases that get others in the same pass or have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

import reshard
from making import read_file, write_file
from reshard import Options
from reshard.errors import PlanError
from reshard.names.wishes import Asked, Naming

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


def merged(src: Path, adapter: Path, out: Path, dst: str = "", **more: Any) -> Arrays:
    options = wanted(adapter.parent, dst, **more)
    if src.stem == "mcore":  # whose rows of queries, keys and values nothing tells the order of
        side = "asked" if dst == "hf" else "src_asked"
        options = replace(
            options, naming=replace(options.naming, **{side: Asked({"qkv": "grouped", "gate_up": "interleaved"})})
        )
    reshard.merge_lora(src, out, reshard.lora_config(adapter=str(adapter)), options, adapter)
    return read(out)


def wanted(folder: Path, dst: str, **more: Any) -> Options:
    naming = Naming(dst=dst, model=str(folder / "base" / "config.json")) if dst or "to" in more else Naming()
    return Options(naming=naming, fsync=False, **more)


def read(path: Path) -> Arrays:
    checkpoint = reshard.open(path)
    return {name: checkpoint[name].read() for name in checkpoint}


def told(adapter: Path, **changes: Any) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


TARGETS: dict[str, dict[str, Any]] = {
    "mindformers": {"dst": "mindformers"},
    "mcore": {"dst": "mcore"},
    "torchtitan": {"dst": "torchtitan"},
    "megatron": {"to": "megatron", "tp": 2},
    "torch_dist": {"to": "torch_dist"},
    "a distributed checkpoint": {"to": "dcp", "dst": "mcore"},
    "cast": {"dst": "mcore", "dtype": "float16"},
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_names_are_given_in_the_same_pass(target: str, kind: str, adapter: Path, tmp_path: Path) -> None:
    """What is merged and named at once is what is merged and then named."""
    made_of_kind(kind, adapter)
    more = dict(TARGETS[target])
    end = "" if "to" in more else ".safetensors"
    cast = {"dtype": more.pop("dtype")} if "dtype" in more else {}
    found = merged(tmp_path / "base", adapter, tmp_path / f"at_once{end}", **{"dst": "", **more, **cast})
    merged(tmp_path / "base", adapter, tmp_path / "merged.safetensors", **cast)
    options = wanted(tmp_path, **{"dst": "", **more})
    reshard.convert(tmp_path / "merged.safetensors", tmp_path / f"after{end}", options)
    assert_same(found, read(tmp_path / f"after{end}"))


def test_what_is_put_together_on_the_way_is_not_multiplied(adapter: Path, tmp_path: Path) -> None:
    multiplying(adapter)
    other = tmp_path / "torchtitan.safetensors"  # whose queries and keys have their rows in another order
    reshard.convert(tmp_path / "base", other, wanted(tmp_path, "torchtitan"))
    with pytest.raises(PlanError, match=r"q_proj\.weight is put together on the way; convert the base first"):
        merged(other, adapter, tmp_path / "out.safetensors", "hf")
    assert not (tmp_path / "out.safetensors").exists()


def made_of_kind(kind: str, adapter: Path) -> None:
    if kind == "dora":
        with_magnitudes(adapter)
    if kind == "ia3":
        multiplying(adapter)


def multiplying(adapter: Path) -> None:
    """Outputs of some layers and inputs of others, in place of factors and rows."""
    path = adapter / "adapter_model.safetensors"
    tensors = {name: array for name, array in read_file(path).items() if "lora_" not in name and "token" not in name}
    for name, (outputs, *inputs) in SHAPES.items():
        if "_proj" in name:
            shape = (1, *inputs) if "down" in name or "k_proj" in name else (outputs, 1)
            tensors[f"base_model.model.{name}.ia3_l"] = RNG.standard_normal(shape, np.float32)
    write_file(path, tensors)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))


def with_magnitudes(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = read_file(path)
    for name in [*tensors]:
        if name.endswith(".lora_B.weight"):
            layer = name.removesuffix(".lora_B.weight")
            tensors[f"{layer}.lora_magnitude_vector"] = 1 + RNG.random(len(tensors[name]), np.float32)
    write_file(path, tensors)
    told(adapter, use_dora=True)


@pytest.mark.parametrize("convention", ["mcore", "mindformers", "torchtitan", "megatron"])
@pytest.mark.parametrize(
    ("target", "kind"), [("hf", "lora"), ("hf", "dora"), ("mcore", "dora"), ("mindformers", "lora")]
)
def test_bases_of_other_names_are_merged_on_their_way(
    convention: str, target: str, kind: str, adapter: Path, tmp_path: Path
) -> None:
    """Under Hugging Face's names, which both sides are told by."""
    made_of_kind(kind, adapter)
    more = {"to": "megatron", "tp": 2} if convention == "megatron" else {"dst": convention}
    other = tmp_path / (convention if convention == "megatron" else f"{convention}.safetensors")
    reshard.convert(tmp_path / "base", other, wanted(tmp_path, **{"dst": "", **more}))
    found = merged(other, adapter, tmp_path / "at_once.safetensors", target)
    merged(tmp_path / "base", adapter, tmp_path / "merged.safetensors")
    reshard.convert(tmp_path / "merged.safetensors", tmp_path / "after.safetensors", wanted(tmp_path, target))
    assert_same(found, read(tmp_path / "after.safetensors"))


def test_names_that_the_adapter_has_not_lead_to_those(adapter: Path, tmp_path: Path) -> None:
    naming = Naming(dst="mindformers", model=str(tmp_path / "base" / "config.json"))
    reshard.convert(tmp_path / "base", tmp_path / "other.safetensors", Options(naming=naming))
    with pytest.raises(PlanError, match="does not fit") as said:
        merged(tmp_path / "other.safetensors", adapter, tmp_path / "out.safetensors")
    assert "--dst-names hf puts the base under the names that the adapter has" in str(said.value)
