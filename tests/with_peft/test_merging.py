"""Models of transformers with adapters that PEFT trained and saved: what we merge is what PEFT merges, however the base
lies and whatever the target is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

import reshard
from making import read_file, write_strategy
from reshard import Options
from reshard.layout.tensor import Sharding
from reshard.names.wishes import Asked, Naming

peft = pytest.importorskip("peft", reason="no PEFT here; make test-peft has an environment with it")
torch = pytest.importorskip("torch")
from tiny import shaken  # noqa: E402

pytestmark = [pytest.mark.peft, pytest.mark.filterwarnings("ignore")]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 96}  # fmt: skip
EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Arrays = dict[str, np.ndarray]


def model(kind: str) -> Any:
    import transformers

    torch.manual_seed(0)
    if kind == "Mixtral":
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_local_experts=4))
    if kind == "Qwen3Moe":
        sizes = {**SIZES, "moe_intermediate_size": 24, "num_experts": 4, "head_dim": 8}
        return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**sizes))
    if kind == "GptOss":  # whose down_proj is square, and stored [expert, in, out] as the other is
        sizes = {**SIZES, "intermediate_size": SIZES["hidden_size"], "num_local_experts": 4, "head_dim": 8}
        return transformers.GptOssForCausalLM(transformers.GptOssConfig(**sizes, pad_token_id=0))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tie_word_embeddings=kind == "tied"))


def trained(kind: str, folder: Path, **config: Any) -> Arrays:
    """Saves the base and an adapter of it; gives what PEFT merges, as transformers saves it."""
    base = model(kind)
    base.save_pretrained(folder / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(**{"r": 4, "lora_alpha": 10, **config}))
    shaken(adapted)
    adapted.save_pretrained(folder / "adapter")
    adapted.merge_and_unload().save_pretrained(folder / "wanted")
    return read(folder / "wanted")


def read(path: Path) -> Arrays:
    checkpoint = reshard.open(path)
    return {name: checkpoint[name].read() for name in checkpoint}


def merged(src: Path, folder: Path, dst: str, options: Options) -> Path:
    config = reshard.lora_config(config=str(folder / "adapter" / "adapter_config.json"))
    reshard.merge_lora(src, folder / dst, config, options, adapter=folder / "adapter")
    return folder / dst


def close(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        np.testing.assert_allclose(found[name], weight, rtol=1e-5, atol=1e-6, err_msg=name)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Llama", {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "rslora": ("Llama", {"target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True}),
    "Mixtral's experts": ("Mixtral", EXPERTS),
    "Mixtral's router": ("Mixtral", {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]}),
    "Qwen3's experts": ("Qwen3Moe", {**EXPERTS, "use_rslora": True}),
    "gpt-oss": ("GptOss", {**EXPERTS, "target_modules": "all-linear"}),
    "experts, patterns": (
        "Qwen3Moe", {**EXPERTS, "rank_pattern": {"gate_up_proj": 2}, "alpha_pattern": {"experts.down_proj": 1}}
    ),
    "one parameter": ("Qwen3Moe", {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
    "some layers": ("Llama", {"target_modules": ALL, "layers_to_transform": [1], "layers_pattern": "layers"}),
    "layers left out": ("Llama", {"target_modules": "all-linear", "exclude_modules": r".*layers\.0\..*"}),
    "tied, both saved": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied, kept so": (
        "tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    ),
    "tied, head with DoRA": ("tied", {"target_modules": ["lm_head", "q_proj"], "use_dora": True}),
    "tied, rows kept so": (
        "tied", {"target_modules": ["q_proj"], "trainable_token_indices": [3], "ensure_weight_tying": True}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_merge_is_that_of_peft(name: str, tmp_path: Path) -> None:
    kind, config = CASES[name]
    wanted = trained(kind, tmp_path, **config)
    close(read_file(merged(tmp_path / "base", tmp_path, "out.safetensors", Options())), wanted)


def test_gpt2_with_its_head(tmp_path: Path) -> None:
    """Of its layers alone shapes and the user tell how they are stored: its head is a Linear."""
    import transformers

    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 32}
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    base.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["c_attn", "c_proj", "lm_head"]))
    shaken(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "wanted")
    config = reshard.lora_config(adapter=str(tmp_path / "adapter"))
    told = replace(config, stated=True, transposed=True)
    reshard.merge_lora(tmp_path / "base", tmp_path / "out.safetensors", told, adapter=tmp_path / "adapter")
    close(read_file(tmp_path / "out.safetensors"), read(tmp_path / "wanted"))


def test_a_classifier_on_a_model_of_language(tmp_path: Path) -> None:
    import transformers

    model("Llama").save_pretrained(tmp_path / "base")
    base = transformers.LlamaForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"]))
    shaken(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "wanted")
    found = read_file(merged(tmp_path / "base", tmp_path, "out.safetensors", Options()))
    found.pop("lm_head.weight")  # the base's, which a classifier does without
    close(found, read(tmp_path / "wanted"))


ADAPTERS: dict[str, dict[str, Any]] = {
    "all linear": {"target_modules": ALL},
    "DoRA": {"target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"], "use_dora": True, "use_rslora": True},
    "patterns": {
        "target_modules": ALL, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8},
        "alpha_pattern": {"k_proj": 3, "down_proj": -4}, "modules_to_save": ["lm_head", "norm"]
    },
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5, 90]},
}  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    "hf": {},
    "bin": {"to": "parts", "format": "torch", "max_shard_nbytes": 40_000},
    "slices": {"dst_strategy": ..., "format": "safetensors"},
    "dcp": {"to": "dcp", "files": 3},
    "checkpoint2": {"to": "checkpoint2", "dst_strategy": ...},
    "mcore": {"to": "dcp", "dst": "mcore"},
    "mindformers": {"to": "dcp", "dst": "mindformers"},
    "torchtitan": {"to": "dcp", "dst": "torchtitan"},
    "megatron": {"to": "megatron", "tp": 2, "pp": 2, "dst": "megatron"},
    "torch_dist": {"to": "torch_dist", "dst": "megatron"},
}
TARGETS: dict[str, dict[str, Any]] = {
    "full": {"to": "full", "format": "safetensors"},
    "parts": {"to": "parts", "format": "torch"},
    "dcp": {"to": "dcp"},
    "checkpoint2": {"to": "checkpoint2", "dst_strategy": ...},
    "mcore": {"to": "dcp", "dst": "mcore"},
    "megatron": {"to": "megatron", "tp": 2, "dst": "megatron"},
    "torch_dist": {"to": "torch_dist", "dst": "megatron"},
    "torchtitan": {"to": "dcp", "dst": "torchtitan"},
}


def options(folder: Path, side: Mapping[str, Any], base: str = "") -> Options:
    """As the sides say; of fused rows of MindFormers' Megatron names nothing in them tells the order."""
    said = dict(side)
    dst = said.pop("dst", "")
    if base not in ("", "hf") and BASES[base].get("dst") and not dst:
        dst = "hf"
    naming = Naming(dst=dst, model=str(folder / "base" / "config.json")) if dst else Naming()
    if base == "mcore":
        order = Asked({"qkv": "grouped", "gate_up": "interleaved"})
        naming = Naming(dst=dst, model=naming.model, **{"asked" if dst == "hf" else "src_asked": order})
    if said.get("dst_strategy"):
        said["dst_strategy"] = str(folder / "strategy")
    return Options(
        src_strategy=str(folder / "strategy") if base == "slices" else "", naming=naming, fsync=False, **said
    )


@pytest.fixture(scope="module", params=list(ADAPTERS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter, and its base in every way."""
    folder = tmp_path_factory.mktemp("made")
    wanted = trained("Llama", folder, **ADAPTERS[request.param])
    columns = ("o_proj", "down_proj")
    cuts = {n: ((),) * (a.ndim - 1) + ((0,),) if any(c in n for c in columns) else ((0,),) + ((),) * (a.ndim - 1)
            for n, a in wanted.items()}  # fmt: skip
    write_strategy(folder / "strategy", [{n: Sharding((2,), cut) for n, cut in cuts.items()}])
    for base, side in BASES.items():
        if base != "hf":
            reshard.convert(folder / "base", folder / base, options(folder, side))
    return folder


@pytest.mark.parametrize("target", TARGETS)
def test_bases_and_targets_of_every_kind(made: Path, target: str, tmp_path: Path) -> None:
    """To the bit what the merge of the plain base is; and that is PEFT's."""
    plain = merged(made / "base", made, f"{tmp_path}/plain.safetensors", Options(fsync=False))
    close(read_file(plain), read(made / "wanted"))
    (tmp_path / "config.json").write_bytes((made / "base" / "config.json").read_bytes())
    reshard.convert(plain, tmp_path / "wanted", options(made, TARGETS[target]))
    wanted = read(tmp_path / "wanted")
    for base in BASES:
        src = made / ("base" if base == "hf" else base)
        found = read(merged(src, made, f"{tmp_path}/{base}", options(made, TARGETS[target], base)))
        assert found.keys() == wanted.keys(), base
        assert [n for n, a in wanted.items() if found[n].tobytes() != a.tobytes()] == [], base
