"""Every kind of adapter that PEFT makes: merged as PEFT merges it, or refused by name; none silently otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # bfloat16 as a dtype of NumPy
import numpy as np
import pytest

import reshard
from lora.test_kinds import KINDS
from making import read_file
from reshard.errors import InputError
from reshard.ops.adapters import AdapterAt
from reshard.ops.convert import execute
from reshard.ops.lora import open_merge, plan_merge
from reshard.ops.observer import Observer
from reshard.ops.options import Options
from reshard.ops.peft import MERGED, UNMERGEABLE

peft = pytest.importorskip("peft", reason="no PEFT here; make test-peft has an environment with it")
torch = pytest.importorskip("torch")
import transformers  # noqa: E402
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING  # noqa: E402
from tiny import VOCAB, Tiny, save, shaken, values  # noqa: E402

pytestmark = pytest.mark.peft
Config = dict[str, Any]

LINEAR = {"target_modules": ["q_proj", "k_proj"]}
CONV1D = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
CONVOLUTIONS = {"target_modules": ["conv1", "conv2", "conv3", "point"]}
EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
EMBEDDING = {"target_modules": ["embed_tokens", "q_proj"]}
TARGETS = {
    "linear": LINEAR,
    "conv1d": CONV1D,
    "convolutions": CONVOLUTIONS,
    "embedding": EMBEDDING,
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both ends": {"target_modules": ["lm_head", "embed_tokens"]},
    "all linear": {"target_modules": "all-linear"},
}
WAYS: dict[str, Config] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank pattern": {"rank_pattern": {"q_proj": 5, "layers.1.conv2": 1, "embed_tokens": 3}},
    "alpha pattern": {"alpha_pattern": {"^layers.0.q_proj": 32, "k_proj": -3, "lm_head": 1, "c_attn": 8}},
    "alpha below 0": {"lora_alpha": -7},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "dora and rslora": {"use_dora": True, "use_rslora": True},
}
CASES: dict[str, Config] = {f"{t}: {w}": {**TARGETS[t], **WAYS[w]} for t in TARGETS for w in WAYS}
CASES |= {
    "alpha 0": {**LINEAR, "lora_alpha": 0},
    "orthogonal": {**LINEAR, "init_lora_weights": "orthogonal"},
    "not initialised": {**LINEAR, "init_lora_weights": False},
    "rank 1": {**LINEAR, "r": 1},
    "rank above the width": {**LINEAR, "r": 9},
    "lora_bias": {"target_modules": ["q_proj"], "lora_bias": True},
    "conv1d: lora_bias": {**CONV1D, "lora_bias": True},
    "lora_bias of convolutions": {**CONVOLUTIONS, "lora_bias": True},
    "bias all": {**LINEAR, "bias": "all"},
    "bias lora_only": {**LINEAR, "bias": "lora_only"},
    "bias all of convolutions": {**CONVOLUTIONS, "bias": "all"},
    "modules_to_save head": {**LINEAR, "modules_to_save": ["lm_head"]},
    "modules_to_save both": {**LINEAR, "modules_to_save": ["lm_head", "embed_tokens"]},
    "modules_to_save norms": {**LINEAR, "modules_to_save": ["norm"]},
    "modules_to_save a convolution": {**LINEAR, "modules_to_save": ["conv2"]},
    "modules_to_save with dora": {**LINEAR, "modules_to_save": ["lm_head"], "use_dora": True},
    "tokens": {**LINEAR, "trainable_token_indices": [1, 5, 2]},
    "tokens by name": {**LINEAR, "trainable_token_indices": {"embed_tokens": [0, VOCAB - 1]}},
    "tokens of the head, too": {**LINEAR, "trainable_token_indices": {"embed_tokens": [3], "lm_head": [4, 5]}},
    "tokens with dora": {**LINEAR, "trainable_token_indices": [7], "use_dora": True},
    "tokens and a saved head": {**LINEAR, "trainable_token_indices": [7], "modules_to_save": ["lm_head"]},
    "experts": EXPERTS,
    "experts: rslora": {**EXPERTS, "use_rslora": True},
    "experts: patterns": {**EXPERTS, "rank_pattern": {"experts.down_proj": 3}, "alpha_pattern": {"gate_up_proj": 2}},
    "one parameter": {"target_modules": [], "target_parameters": ["experts.down_proj"]},
    "parameters of linears": {"target_modules": [], "target_parameters": ["q_proj.weight", "k_proj.weight"]},
    "parameters of linears: patterns": {
        "target_modules": [], "target_parameters": ["q_proj.weight"], "alpha_pattern": {"q_proj.weight": 2, "q_proj": 9}
    },
    "bias all and saved norms": {**LINEAR, "bias": "all", "modules_to_save": ["norm"]},
    "some layers": {"target_modules": ["layers.1.q_proj", "layers.0.k_proj"]},
    "by a pattern": {"target_modules": r"layers\.0\.(q|k)_proj"},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["lm_head"]},
}  # fmt: skip
TIED: dict[str, Config] = {
    "tied: linear": LINEAR,
    "tied: head": {"target_modules": ["lm_head"]},
    "tied: embedding": EMBEDDING,
    "tied: both ends": {"target_modules": ["lm_head", "embed_tokens"]},
    "tied: modules_to_save head": {**LINEAR, "modules_to_save": ["lm_head"]},
    "tied: modules_to_save embedding": {**LINEAR, "modules_to_save": ["embed_tokens"]},
    "tied: modules_to_save both": {**LINEAR, "modules_to_save": ["embed_tokens", "lm_head"]},
    "tied: tokens": {**LINEAR, "trainable_token_indices": [2, 4]},
}
TRANSPOSED: dict[str, Config] = {
    "transposed experts": EXPERTS,
    "transposed experts: alpha": {**EXPERTS, "alpha_pattern": {"experts.down_proj": 9}},
}
HALVES: dict[str, Config] = {
    f"{dtype}: {name}": CASES[name]
    for dtype in ("bfloat16", "float16")
    for name in ("linear: plain", "linear: dora", "conv1d: rslora", "embedding: plain", "convolutions: plain",
                 "modules_to_save both", "tokens", "experts", "bias all", "lora_bias")
}  # fmt: skip
REFUSED: dict[str, tuple[Config, str]] = {
    "pissa": ({**LINEAR, "init_lora_weights": "pissa"}, "init_lora_weights is pissa"),
    "pissa, fast": ({**LINEAR, "init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa"),
    "olora": ({**LINEAR, "init_lora_weights": "olora"}, "init_lora_weights is olora"),
    "bias of a layer without one": ({**LINEAR, "lora_bias": True}, "k_proj.bias, which the base does not have"),
    "replicated layers": ({**LINEAR, "layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
}


def adapted(model: Any, config: Config, folder: Path, **more: Any) -> Any:
    made = peft.get_peft_model(model, peft.LoraConfig(**{"r": 2, "lora_alpha": 5, **config}), **more)
    shaken(made)
    made.save_pretrained(folder)
    return made


INITIAL: dict[str, Config] = {
    "pissa": {**LINEAR, "init_lora_weights": "pissa"},
    "pissa: rslora, patterns": {
        **LINEAR, "init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"k_proj": 3}
    },
    "pissa, fast": {**LINEAR, "init_lora_weights": "pissa_niter_4"},
    "pissa: bias all": {**LINEAR, "init_lora_weights": "pissa", "bias": "all"},
    "olora": {**LINEAR, "init_lora_weights": "olora"},
    "olora: all linear": {"target_modules": "all-linear", "init_lora_weights": "olora", "lora_alpha": 8},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", INITIAL)
def test_what_the_training_took_out_of_the_base(name: str, tmp_path: Path) -> None:
    model = Tiny()
    save(model, tmp_path / "base" / "m.safetensors")
    made = peft.get_peft_model(model, peft.LoraConfig(**{"r": 2, "lora_alpha": 5, **INITIAL[name]}))
    made.save_pretrained(tmp_path / "initial")
    shaken(made)
    made.save_pretrained(tmp_path / "adapter")
    config = reshard.lora_config(adapter=str(tmp_path / "adapter"), initial=True)
    at = AdapterAt(str(tmp_path / "adapter"), config, initial=str(tmp_path / "initial"))
    compare(of_several([at], tmp_path), made.merge_and_unload())


SEVERAL: dict[str, tuple[Config, Config]] = {
    "of the same layers": (LINEAR, LINEAR),
    "of other layers": (LINEAR, {"target_modules": ["k_proj", "lm_head"]}),
    "embeddings": (EMBEDDING, EMBEDDING),
    "one below 0": (LINEAR, {**LINEAR, "lora_alpha": -4}),
    "tied ends": (EMBEDDING, {"target_modules": ["lm_head", "embed_tokens"]}),
}
WEIGHTS = [(1.0, 1.0), (0.7, 0.3), (0.5, -2.0)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("how", ["cat", "linear"])
@pytest.mark.parametrize("name", SEVERAL)
def test_several_adapters(name: str, how: Any, weights: tuple[float, float], tmp_path: Path) -> None:
    model = Tiny(tied="tied" in name)
    save(model, tmp_path / "base" / "m.safetensors")
    first, second = ({"r": 2, "lora_alpha": 5, **config} for config in SEVERAL[name])
    made = peft.get_peft_model(model, peft.LoraConfig(**first), adapter_name="one")
    made.add_adapter("two", peft.LoraConfig(**second))
    shaken(made)
    made.save_pretrained(tmp_path)
    made.add_weighted_adapter(["one", "two"], list(weights), "sum", combination_type=how)
    made.set_adapter("sum")
    paths = [str(tmp_path / folder) for folder in ("one", "two")]
    at = [AdapterAt(p, reshard.lora_config(adapter=p), w) for p, w in zip(paths, weights, strict=True)]
    compare(of_several(at, tmp_path, how), made.merge_and_unload())


@pytest.mark.filterwarnings("ignore")
def test_each_adapter_has_its_own_scaling(tmp_path: Path) -> None:
    model = Tiny()
    save(model, tmp_path / "base" / "m.safetensors")
    made = peft.get_peft_model(model, peft.LoraConfig(r=2, use_rslora=True, **LINEAR), adapter_name="one")
    made.add_adapter("two", peft.LoraConfig(r=3, rank_pattern={"k_proj": 1}, **LINEAR))
    shaken(made)
    made.save_pretrained(tmp_path)
    paths = [str(tmp_path / folder) for folder in ("one", "two")]
    at = [AdapterAt(p, reshard.lora_config(adapter=p)) for p in paths]
    compare(of_several(at, tmp_path), made.merge_and_unload(adapter_names=["one", "two"]))


def of_several(adapters: list[AdapterAt], tmp_path: Path, how: Any = "cat") -> dict[str, np.ndarray]:
    joined = open_merge(tmp_path / "base" / "m.safetensors", Options(), adapters, how)
    out = tmp_path / "out.safetensors"
    execute(plan_merge(joined, out), out, Options(), Observer())
    return read_file(out)


def merged(folder: Path, tmp_path: Path) -> dict[str, np.ndarray]:
    config = reshard.lora_config(adapter=str(folder))
    reshard.merge_lora(tmp_path / "base" / "m.safetensors", tmp_path / "out.safetensors", config, adapter=folder)
    return {
        name: np.asarray(values).astype(np.float32) for name, values in read_file(tmp_path / "out.safetensors").items()
    }


def compare(found: dict[str, np.ndarray], model: Any, unit: float = 0.0) -> None:
    wanted = values(model)
    tied = model.config["tie_word_embeddings"] and model.lm_head.weight is model.embed_tokens.weight
    assert found.keys() == wanted.keys() - ({"lm_head.weight"} if tied else set())
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[name], rtol=unit or 1e-5, atol=unit * 4 or 1e-5, err_msg=name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*CASES, *TIED, *TRANSPOSED, *HALVES])
def test_a_merge_is_that_of_peft(name: str, tmp_path: Path) -> None:
    config = {**CASES, **TIED, **TRANSPOSED, **HALVES}[name]
    model = Tiny(tied=name in TIED, is_transposed=name in TRANSPOSED, conv1d="conv1d" in name)
    half = getattr(torch, name.split(":")[0]) if name in HALVES else torch.float32
    model = model.to(half)
    save(model, tmp_path / "base" / "m.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps(model.config))
    made = adapted(model, config, tmp_path / "adapter")
    found = merged(tmp_path / "adapter", tmp_path)
    compare(found, made.merge_and_unload(), {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}.get(half, 0.0))


OTHERS: dict[str, Any] = {
    "IA3": lambda: peft.IA3Config(target_modules=["q_proj", "k_proj"], feedforward_modules=["k_proj"]),
    "IA3: head and norms": lambda: peft.IA3Config(
        target_modules=["q_proj", "lm_head"], feedforward_modules=[], modules_to_save=["norm"]
    ),
    "IA3: square inputs": lambda: peft.IA3Config(target_modules=["q_proj"], feedforward_modules=["q_proj"]),
    "conv1d: IA3": lambda: peft.IA3Config(
        target_modules=["c_attn", "c_proj"], feedforward_modules=["c_proj"], fan_in_fan_out=True
    ),
    "conv1d: IA3 outputs": lambda: peft.IA3Config(
        target_modules=["c_attn", "c_proj"], feedforward_modules=[], fan_in_fan_out=True
    ),
    "LN_TUNING": lambda: peft.LNTuningConfig(target_modules=["norm"]),
    "TRAINABLE_TOKENS": lambda: peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[1, 5, 2]),
    "tied: TRAINABLE_TOKENS": lambda: peft.TrainableTokensConfig(token_indices=[4, VOCAB - 1]),
    "tied: IA3": lambda: peft.IA3Config(target_modules=["lm_head", "q_proj"], feedforward_modules=[]),
    "bfloat16: IA3": lambda: peft.IA3Config(target_modules=["q_proj", "k_proj"], feedforward_modules=["k_proj"]),
    "float16: IA3": lambda: peft.IA3Config(target_modules=["q_proj", "k_proj"], feedforward_modules=["k_proj"]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OTHERS)
def test_adapters_of_other_kinds(name: str, tmp_path: Path) -> None:
    model = Tiny(tied="tied" in name, conv1d="conv1d" in name)
    half = getattr(torch, name.split(":")[0]) if "float16" in name else torch.float32
    model = model.to(half)
    save(model, tmp_path / "base" / "m.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps(model.config))
    made = peft.get_peft_model(model, OTHERS[name]())
    shaken(made)
    made.save_pretrained(tmp_path / "adapter")
    found = merged(tmp_path / "adapter", tmp_path)
    compare(found, made.merge_and_unload(), {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}.get(half, 0.0))


def llama() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=32, num_hidden_layers=2, use_cache=False, **sizes)
    )


LLAMA = {"task_type": "CAUSAL_LM"}
PROMPTS = {**LLAMA, "num_virtual_tokens": 2}
MADE_WITH: dict[str, Config] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {**LLAMA, "adapter_layers": 1, "adapter_len": 2},
    "BOFT": {"boft_block_size": 2},
    "C3A": {"block_size": 2},
    "CARTRIDGE": PROMPTS,
    "CPT": {**PROMPTS, "cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "FOURIERFT": {"n_frequency": 4},
    "GRALORA": {"r": 2, "gralora_k": 2},
    "MISS": {"r": 2},
    "MULTITASK_PROMPT_TUNING": {**PROMPTS, "num_tasks": 2},
    "OFT": {"oft_block_size": 2},
    "P_TUNING": PROMPTS,
    "PREFIX_TUNING": PROMPTS,
    "PROMPT_TUNING": PROMPTS,
    "PSOFT": {"r": 2},
    "ROAD": {"group_size": 2},
    "SHADOW": {**LLAMA, "target_modules": r".*\.layers\.\d+$"},
    "SHIRA": {"r": 1},
    "SUPERTUNING": {"sparsity": 0.5},
    "VBLORA": {"vector_length": 2, "num_vectors": 4},
    "WAVEFT": {"n_frequency": 4},
    "XLORA": {**LLAMA, "hidden_size": 16},
}
"""What PEFT wants for an adapter of a kind, besides the names of its layers."""


def saved_by_peft(kind: str, folder: Path, tmp_path: Path) -> Any:
    more = MADE_WITH.get(kind, {})
    model = llama() if "task_type" in more else Tiny()
    if kind == "XLORA":
        adapted(llama(), LINEAR, tmp_path / "lora")
        more |= {"adapters": {"one": str(tmp_path / "lora")}}
    elif "num_virtual_tokens" not in more and kind != "ADAPTION_PROMPT":
        more = {"target_modules": ["q_proj"], **more}
    if kind == "ADAMSS":
        pytest.importorskip("sklearn", reason="PEFT makes no AdaMSS without scikit-learn")
    made = peft.get_peft_model(model, PEFT_TYPE_TO_CONFIG_MAPPING[kind](**more))
    made.save_pretrained(folder)
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted({kind.value for kind in peft.PeftType} - MERGED.keys()))
def test_an_adapter_of_any_other_kind_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    save(Tiny(), tmp_path / "base" / "m.safetensors")
    made = saved_by_peft(kind, tmp_path / "adapter", tmp_path)
    hint = "no merged weight does" if kind in UNMERGEABLE else "merge it in PEFT"
    with pytest.raises(InputError, match=rf"peft_type is {kind}\n  hint: {hint}"):
        merged(tmp_path / "adapter", tmp_path)
    if kind not in UNMERGEABLE:
        made.merge_and_unload()
    with pytest.raises(InputError, match=rf"peft_type is {kind}\n"):
        reshard.lora_config(scaling="2", adapter=str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(InputError):
        reshard.merge_lora(
            tmp_path / "base", tmp_path / "out.safetensors", reshard.lora_config("2"), adapter=tmp_path / "adapter"
        )
    assert not (tmp_path / "out.safetensors").exists()


def test_every_kind_of_peft_is_accounted_for() -> None:
    """Those of 0.21; whoever brings a newer one decides about its kinds."""
    assert {kind.value for kind in peft.PeftType} == {*KINDS, *MERGED}
    assert {name.rpartition(": ")[2] for name in OTHERS} >= MERGED.keys() - {"LORA"}


def test_the_pages_say_how_many_there_are() -> None:
    several = len(SEVERAL) * len(WEIGHTS) * 2 + 1
    merged = sum(map(len, (CASES, TIED, TRANSPOSED, HALVES, OTHERS, INITIAL))) + several
    for page, words in (("docs/how-to/lora.md", "{} configurations"), ("docs/zh/how-to/lora.md", "{} 种配置")):
        text = (Path(__file__).parents[2] / page).read_text("utf-8")
        assert words.format(merged) in text
        assert f"PEFT 0.21.2 {'has' if 'zh' not in page else '有'} {len(KINDS)}" in text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_merged_is_refused_by_name(name: str, tmp_path: Path) -> None:
    config, said = REFUSED[name]
    model = Tiny()
    save(model, tmp_path / "base" / "m.safetensors")
    adapted(model, config, tmp_path / "adapter")
    with pytest.raises(InputError, match=said):
        merged(tmp_path / "adapter", tmp_path)
    assert not (tmp_path / "out.safetensors").exists()
