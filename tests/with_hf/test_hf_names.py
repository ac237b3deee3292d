"""Families through MindFormers' conventions and back: transformers loads the folder, and says the same as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from golden_families.test_recorded import unpacked
from reshard import Options
from reshard.names.wishes import Naming
from reshard.ops.convert import convert

transformers = pytest.importorskip("transformers", reason="no transformers here; make test-hf has an environment")
pytestmark = pytest.mark.hf
BASE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "tie_word_embeddings": False, "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
    "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
    "moe_intermediate_size": 24, "n_group": 2, "topk_group": 1, "num_key_value_heads": 4, "num_nextn_predict_layers": 0,
}  # fmt: skip
BOTH, OWN, CORE = ("mindformers", "mcore"), ("mindformers",), ("mcore",)
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "llama": ("Llama", {}, BOTH),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}, BOTH),
    "mistral": ("Mistral", {"head_dim": 8}, BOTH),
    "qwen2": ("Qwen2", {}, BOTH),
    "qwen2, as many key heads": ("Qwen2", {"num_key_value_heads": 4}, BOTH),
    "qwen3": ("Qwen3", {"head_dim": 16}, CORE),
    "qwen3, tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}, CORE),
    "qwen3, one key head": ("Qwen3", {"head_dim": 16, "num_key_value_heads": 1}, CORE),
    "qwen3-moe": ("Qwen3Moe", {**EXPERTS, "head_dim": 16}, CORE),
    "qwen2-moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 40}, OWN),
    "mixtral": ("Mixtral", {"num_local_experts": 4}, OWN),
    "deepseek-v2": ("DeepseekV2", LATENT, BOTH),
    "deepseek-v2-lite": ("DeepseekV2", {**LATENT, "q_lora_rank": None}, CORE),
    "deepseek-v3": ("DeepseekV3", LATENT, BOTH),
    "glm4": ("Glm4", {"head_dim": 8, "pad_token_id": 0}, CORE),
    "glm4-moe": ("Glm4Moe", {**EXPERTS, **{k: LATENT[k] for k in ("n_routed_experts", "first_k_dense_replace",
                 "num_nextn_predict_layers")}, "n_shared_experts": 1, "head_dim": 8, "pad_token_id": 0}, CORE),
}  # fmt: skip
WAYS = [(family, names) for family, (_, _, ways) in FAMILIES.items() for names in ways]


def loaded(folder: Path) -> Any:
    """The model, of which transformers finds all it looks for and nothing else."""
    model, said = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    unknown = {
        n for n in said["unexpected_keys"] if not n.startswith(f"model.layers.{model.config.num_hidden_layers}.")
    }
    left = [*said["missing_keys"], *said["mismatched_keys"], *unknown]  # it has no multi-token layers
    assert not left, said
    return model


@pytest.mark.parametrize(("family", "names"), WAYS)
def test_the_model_says_the_same_after_the_way_there_and_back(family: str, names: str, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    kind, sizes, _ = FAMILIES[family]
    config = getattr(transformers, f"{kind}Config")(**BASE | sizes)
    before = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    before.save_pretrained(tmp_path / "hub")
    convert(tmp_path / "hub", tmp_path / "own.safetensors", Options(naming=Naming(dst=names)))
    back = Naming(dst="hf", model=str(tmp_path / "hub" / "config.json"), release="1.9", files=True)
    convert(tmp_path / "own.safetensors", tmp_path / "back", Options(naming=back, to="parts", dtype="bfloat16"))
    before, after = loaded(tmp_path / "hub").eval(), loaded(tmp_path / "back").eval()
    theirs, ours = before.state_dict(), after.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(ours[n].dtype == t.dtype and torch.equal(ours[n], t) for n, t in theirs.items())
    tokens = torch.arange(12).reshape(1, 12) * 7 % 96
    with torch.no_grad():
        assert torch.equal(after(tokens).logits, before(tokens).logits)


@pytest.mark.parametrize("name", ["mcore2hf-qwen3-tied", "mcore2hf-dsv3-mtp", "own-ms2hf-qkvconcat-r1.5-mp2"])
def test_what_mindformers_holds_is_loaded(name: str, tmp_path: Path) -> None:
    """Of answers of the real converters: the folder with config.json is whole for transformers."""
    case = unpacked("cases", f"names-{name}", tmp_path / "case")
    naming = Naming(dst="hf", src_model=str(case / "model.yaml"), model=str(case / "hf" / "config.json"), files=True)
    strategy = case / "src_strategy"
    options = Options(naming=naming, to="parts", src_strategy=str(strategy) if strategy.exists() else "")
    convert(case / "src", tmp_path / "hub", options)
    loaded(tmp_path / "hub")
