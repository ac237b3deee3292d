"""torchtitan's names: rows of queries and keys lie in pairs, and a folder goes there and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import reshard
from making import array, differing, read_file, same, write_file
from reshard import Options
from reshard.names.wishes import Naming

HEADS, KV, HEAD, HIDDEN = 4, 2, 6, 24
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "vocab_size": 32,
    "tie_word_embeddings": False,
}


def model() -> dict[str, np.ndarray]:
    shapes = {"model.embed_tokens": (32, HIDDEN), "model.norm": (HIDDEN,), "lm_head": (32, HIDDEN)}
    for n in range(2):
        layer = f"model.layers.{n}"
        shapes |= {f"{layer}.{w}": (HIDDEN,) for w in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}.self_attn.{w}": (HEADS * HEAD, HIDDEN) for w in ("q_proj", "o_proj")}
        shapes |= {f"{layer}.self_attn.{w}": (KV * HEAD, HIDDEN) for w in ("k_proj", "v_proj")}
        shapes |= {f"{layer}.mlp.{w}": (40, HIDDEN) for w in ("gate_proj", "up_proj")}
        shapes[f"{layer}.mlp.down_proj"] = (HIDDEN, 40)
    return {f"{name}.weight": array(shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}


def in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face keeps the two halves of a head apart, torchtitan the pairs that are turned together."""
    return rows.reshape(heads, 2, HEAD // 2, HIDDEN).transpose(0, 2, 1, 3).reshape(rows.shape)


def test_there_and_back(tmp_path: Path) -> None:
    full = model()
    source = write_file(tmp_path / "hf" / "model.safetensors", full).parent
    (source / "config.json").write_text(json.dumps(CONFIG))
    reshard.convert(source, tmp_path / "step-0", Options(to="dcp", fsync=False, naming=Naming(dst="torchtitan")))
    reshard.convert(tmp_path / "step-0", tmp_path / "m.safetensors", Options(fsync=False))
    found = read_file(tmp_path / "m.safetensors")
    assert len(found) == len(full)
    assert same(found["tok_embeddings.weight"], full["model.embed_tokens.weight"])
    assert same(found["output.weight"], full["lm_head.weight"])
    assert same(found["layers.1.feed_forward.w3.weight"], full["model.layers.1.mlp.up_proj.weight"])
    assert same(found["layers.1.attention.wv.weight"], full["model.layers.1.self_attn.v_proj.weight"])
    assert same(found["layers.1.attention.wq.weight"], in_pairs(full["model.layers.1.self_attn.q_proj.weight"], HEADS))
    assert same(found["layers.0.attention.wk.weight"], in_pairs(full["model.layers.0.self_attn.k_proj.weight"], KV))
    to_hub = Naming(dst="hf", model=str(source / "config.json"))
    reshard.convert(tmp_path / "step-0", tmp_path / "back.safetensors", Options(fsync=False, naming=to_hub))
    back = read_file(tmp_path / "back.safetensors")
    assert differing(back, full) == []
