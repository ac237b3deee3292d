"""Names in other conventions: what is missing, contradictory or told by nobody is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import refused

import reshard
from golden.cases import run_reshard
from hub_model import llama, qwen3, write_hub
from making import array, dtype_named, write_file
from reshard.errors import CheckpointError, PlanError
from reshard.names.wishes import Naming
from reshard.ops.convert import convert
from reshard.ops.options import Options
from reshard.planning.names import NameRules

Tensors = dict[str, np.ndarray]
LAYER = "model.layers.1."


def without(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[name]

    return change


def other(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: array(shape, dtype)})


WRONG: dict[str, tuple[Callable[[Tensors], None], dict[str, Any], list[str]]] = {
    "a part": (without(f"{LAYER}mlp.up_proj.weight"), {}, [f"{LAYER}mlp.up_proj.weight", "gate_proj"]),
    "a tensor of one layer": (without(f"{LAYER}self_attn.o_proj.weight"), {}, [f"{LAYER}self_attn.o_proj.weight"]),
    "a norm of one layer": (without(f"{LAYER}self_attn.q_norm.weight"), {}, [f"{LAYER}self_attn.q_norm.weight"]),
    "an embedding": (without("model.embed_tokens.weight"), {}, ["model.embed_tokens.weight"]),
    "an output layer": (without("lm_head.weight"), {}, ["lm_head.weight", "tie_word_embeddings", "--tied copy"]),
    "a tensor too many": (other(f"{LAYER}self_attn.sinks", (4,)), {}, [f"{LAYER}self_attn.sinks", "no rule"]),
    "fewer layers": (lambda tensors: None, {"num_hidden_layers": 1}, [LAYER, "num_hidden_layers 1"]),
    "more layers": (lambda tensors: None, {"num_hidden_layers": 3}, ["model.layers.2."]),
    "heads": (lambda tensors: None, {"num_key_value_heads": 4}, ["k_proj", "8", "16", "num_key_value_heads 4"]),
    "feed-forward": (lambda tensors: None, {"intermediate_size": 16}, ["gate_proj", "12", "intermediate_size 16"]),
    "vocabulary": (lambda tensors: None, {"vocab_size": 32}, ["16 rows", "vocab_size 32"]),
    "dtypes": (
        other(f"{LAYER}mlp.up_proj.weight", (12, 8), "bfloat16"), {},
        [f"{LAYER}mlp.up_proj.weight is bfloat16", f"{LAYER}mlp.gate_proj.weight is float32"],
    ),
    "another shape": (other(f"{LAYER}mlp.up_proj.weight", (12, 9)), {}, [f"{LAYER}mlp.up_proj.weight", "9", "8"]),
    "another number of dims": (other(f"{LAYER}mlp.up_proj.weight", (12,)), {}, [f"{LAYER}mlp.up_proj.weight", "[12]"]),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_a_folder_of_hugging_face_s_lacks_or_contradicts(tmp_path: Path, what: str) -> None:
    change, config, words = WRONG[what]
    tensors = qwen3()
    change(tensors)
    source = write_hub(tmp_path / "hub", tensors, **config)
    said = refused(3, "convert", source, tmp_path / "out.safetensors", "--dst-names", "mcore")
    assert not [word for word in words if word not in said], said
    assert not (tmp_path / "out.safetensors").exists()


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """A model as MindFormers' core has it, and its configuration in a folder apart."""
    hub = write_hub(tmp_path / "hub", qwen3())
    convert(hub, tmp_path / "core.safetensors", Options(naming=Naming(dst="mcore")))
    return tmp_path / "core.safetensors"


def test_how_it_was_fused_is_asked_for(core: Path, tmp_path: Path) -> None:
    words = ["convert", core, tmp_path / "out", "--dst-names", "hf", "--model", tmp_path / "hub" / "config.json"]
    said = refused(3, *words)
    assert "linear_qkv" in said
    assert "--qkv" in said
    assert "use_contiguous_weight_layout_attention" in said
    assert "--gate-up" in refused(3, *words, "--qkv", "grouped")
    assert not (tmp_path / "out").exists()


def test_without_a_model_heads_are_asked_for(core: Path, tmp_path: Path) -> None:
    words = ["convert", core, tmp_path / "out", "--dst-names", "hf", "--qkv", "grouped", "--gate-up", "interleaved"]
    said = refused(3, *words)
    assert "not known" in said
    assert "linear_qkv" in said


def test_the_word_and_the_model_s_file_contradict(core: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    lines = ["num_layers: 2", "hidden_size: 8", "num_attention_heads: 4", "num_key_value_heads: 2", "head_dim: 4"]
    lines += ["intermediate_size: 12", "vocab_size: 16", "use_contiguous_weight_layout_attention: False"]
    run.write_text("model:\n  model_config:\n    model_type: qwen3\n" + "".join(f"    {line}\n" for line in lines))
    words = ["convert", core, tmp_path / "out", "--dst-names", "hf", "--model", run]
    said = refused(2, *words, "--qkv", "concat")
    assert "run.yaml says grouped" in said
    run.write_text(run.read_text().replace("hidden_size: 8", "hidden_size: 9"))
    said = refused(3, *words, "--gate-up", "interleaved")
    assert "hidden_size 9 of run.yaml" in said


def test_two_files_of_the_model_contradict(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub", qwen3())
    run = tmp_path / "run.yaml"
    run.write_text("model:\n  model_config:\n    model_type: qwen3\n    num_layers: 2\n    head_dim: 8\n")
    said = refused(3, "convert", hub, tmp_path / "out", "--dst-names", "mcore", "--model", run)
    assert "head_dim 8" in said
    assert "head_dim 4" in said


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"num_key_value_heads": "2"}, "num_key_value_heads '2' of .*: expected a whole number"),
        ({"vocab_size": [12]}, r"vocab_size \[12\] of .*: expected a whole number"),
        ({"num_attention_heads": 4.5}, "num_attention_heads 4.5 of .*: expected a whole number"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings 'false' of .*: expected true or false"),
        ({"qkv_concat": "False"}, "qkv_concat 'False' of .*: expected true or false"),
    ],
)
def test_settings_of_another_kind(tmp_path: Path, said: dict[str, Any], words: str) -> None:
    """A text counts as true, and is no size: neither is passed over."""
    hub = write_hub(tmp_path / "hub", qwen3(), **said)
    with pytest.raises(CheckpointError, match=words):
        reshard.plan(hub, "out.safetensors", Options(naming=Naming(dst="mcore")))


@pytest.mark.parametrize("dst", ["mcore", "hf"])
@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (NameRules(exclude=("SCB",)), "q_proj.weight: would go without .*q_proj.SCB"),
        (NameRules(rename=((r"q_proj\.SCB", "q_proj.other"),)), "q_proj.other: by their new names they no longer"),
    ],
)
def test_codes_do_not_lose_their_scales_on_the_way_to_other_names(
    tmp_path: Path, dst: str, rules: NameRules, words: str
) -> None:
    tensors = qwen3()
    for layer in range(2):
        at = f"model.layers.{layer}.self_attn.q_proj"
        tensors[f"{at}.weight"] = array(tensors[f"{at}.weight"].shape, "int8")
        tensors[f"{at}.SCB"] = array(tensors[f"{at}.weight"].shape[:1])
    hub = write_hub(tmp_path / "hub", tensors)
    naming = Naming(dst=dst, vocab_rows=None if dst == "mcore" else 16)
    with pytest.raises(PlanError, match=words):
        reshard.plan(hub, "out.safetensors", Options(names=rules, naming=naming))


def test_tied_and_different(tmp_path: Path) -> None:
    tensors = qwen3()
    hub = write_hub(tmp_path / "hub", tensors, tie_word_embeddings=True)
    said = refused(3, "convert", hub, tmp_path / "out", "--dst-names", "hf")
    assert "lm_head.weight and model.embed_tokens.weight" in said
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    write_hub(hub, tensors, tie_word_embeddings=True)
    convert(hub, tmp_path / "out", Options(naming=Naming(dst="hf")))


FLAGS = [
    (["--qkv", "grouped"], "--dst-names"),
    (["--dst-names", "mindformer"], "one of: hf, mindformers"),
    (["--dst-names", "mcore", "--tied", "maybe"], "keep, copy, drop"),
    (["--dst-names", "mcore", "--qkv", "halves"], "grouped"),
    (["--dst-names", "hf", "--qkv", "grouped"], "names of hf have one way"),
    (["--dst-names", "megatron", "--gate-up", "interleaved"], "names of megatron have one way"),
    (["--dst-names", "mcore", "--src-qkv", "grouped"], "leave --src-qkv out"),
    (["--dst-names", "mcore", "--release", "soon"], "soon"),
    (["--dst-names", "mcore", "--with-files"], "--dst-names hf"),
]


@pytest.mark.parametrize(("flags", "words"), FLAGS)
def test_words_that_nobody_knows(tmp_path: Path, flags: list[str], words: str) -> None:
    hub = write_hub(tmp_path / "hub", qwen3())
    assert words in refused(3 if "soon" in flags else 2, "convert", hub, tmp_path / "out.safetensors", *flags)


def test_a_configuration_does_not_go_with_names_of_others(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub", qwen3())
    convert(hub, tmp_path / "mf", Options(to="parts", naming=Naming(dst="mcore")))
    (tmp_path / "mf/config.json").write_bytes((hub / "config.json").read_bytes())
    assert "--dst-names hf" in refused(2, "convert", tmp_path / "mf", tmp_path / "out", "--to", "parts", "--with-files")


@pytest.mark.parametrize("name", ["", "encoder.block.0.layer.0.q.weight"])
def test_a_configuration_goes_along_with_names_that_stay(tmp_path: Path, name: str) -> None:
    """Of a model that recipes know, and of one that they do not."""
    hub = write_hub(tmp_path / "hub", {name: array((4, 4))} if name else qwen3())
    convert(hub, tmp_path / "out", Options(to="parts", naming=Naming(files=True)))
    assert (tmp_path / "out/config.json").exists()
    assert set(reshard.open(tmp_path / "out")) == set(reshard.open(hub))


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "another size": ({"head_dim": 8}, "k_proj.weight: 8 in dim 0, expected 16: num_key_value_heads 2 of config.json"),
    "fewer layers": ({"num_hidden_layers": 1}, "it counts further than num_hidden_layers 1"),
    "more layers": ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight: not there"),
    "another model": (
        {"architectures": None, "model_type": "mixtral"},
        "mixtral, as config.json says, has no such",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_configuration_of_another_model_does_not_go_along(tmp_path: Path, what: str) -> None:
    config, words = OTHERS[what]
    hub = write_hub(tmp_path / "hub", qwen3())
    other = write_hub(tmp_path / "other", qwen3(), **config)
    said = refused(3, "convert", hub, tmp_path / "out", "--with-files", "--model", other)
    assert words in said
    assert "is that the model of these weights?" in said
    assert not (tmp_path / "out").exists()


def test_a_configuration_of_more_than_was_asked_for_goes_along(tmp_path: Path) -> None:
    rules = NameRules(include=(r"layers\.0\.",))
    convert(write_hub(tmp_path / "hub", qwen3()), tmp_path / "out", Options(names=rules, naming=Naming(files=True)))
    assert (tmp_path / "out/config.json").exists()


def test_what_names_lack_is_told_with_what_helps(tmp_path: Path) -> None:
    """A configuration, another convention, or a prefix that a trainer put before all of them."""
    target = tmp_path / "out.safetensors"
    hub = write_hub(tmp_path / "bare", llama(), num_key_value_heads=None, num_attention_heads=None, head_dim=None)
    assert "--model config.json" in refused(3, "convert", hub, target, "--dst-names", "mcore")
    hub = write_hub(tmp_path / "hub", qwen3())
    assert "--dst-names mcore has them all" in refused(3, "convert", hub, target, "--dst-names", "mindformers")
    behind = {f"model.{name}": value for name, value in qwen3().items()}
    hub = write_hub(tmp_path / "saved", behind)
    assert r"--rename '^model\.=>'" in refused(3, "convert", hub, target, "--dst-names", "mcore")
    rename = ["--rename", r"^model\.=>", "--dst-names", "mcore"]
    assert run_reshard(["convert", str(hub), str(target), *rename, "--quiet"]) == 0


def test_names_that_no_recipe_knows(tmp_path: Path) -> None:
    write_file(tmp_path / "model.safetensors", {"encoder.block.0.layer.0.q.weight": array((4, 4))})
    said = refused(3, "convert", tmp_path / "model.safetensors", tmp_path / "o.safetensors", "--dst-names", "mcore")
    assert "encoder.block.0.layer.0.q.weight" in said


CODES: dict[str, tuple[Tensors, list[str]]] = {
    "no scale": ({}, ["q_proj.weight", "no scale"]),
    "a zero point": ({"weight_scale": array((1,)), "weight_zero_point": array((1,))}, ["weight_zero_point"]),
    "two scales": ({"weight_scale": array((1,)), "weight_scale_inv": array((1,))}, ["one of each"]),
    "blocks that nobody knows": ({"weight_scale_inv": array((3, 1))}, ["3 scales for 16"]),
}


def test_blocks_that_the_configuration_denies(tmp_path: Path) -> None:
    """16 rows with 4 scales would be blocks of 4."""
    tensors, name = qwen3(), "model.layers.0.self_attn.q_proj.weight"
    tensors |= {name: array((16, 8), "float8_e4m3fn"), f"{name}_scale_inv": array((4, 1))}
    hub = write_hub(tmp_path / "hub", tensors, quantization_config={"weight_block_size": [8, 8]})
    said = refused(3, "convert", hub, tmp_path / "o.safetensors", "--dequantize")
    assert not [word for word in (f"{name}_scale_inv", "4 scales for 16", "blocks of 8") if word not in said], said


@pytest.mark.parametrize("what", CODES)
def test_codes_that_cannot_be_dequantised(tmp_path: Path, what: str) -> None:
    beside, words = CODES[what]
    tensors, layer = qwen3(), "model.layers.0.self_attn.q_proj."
    tensors[f"{layer}weight"] = tensors[f"{layer}weight"].astype(dtype_named("float8_e4m3fn"))
    hub = write_hub(tmp_path / "hub", tensors | {layer + name: value for name, value in beside.items()})
    said = refused(3, "convert", hub, tmp_path / "o.safetensors", "--dst-names", "mindformers", "--dequantize")
    assert not [word for word in words if word not in said], said
