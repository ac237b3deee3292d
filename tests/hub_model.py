"""Small models under Hugging Face's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from making import array, write_file

SIZES: dict[str, Any] = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 2, "hidden_size": 8,
    "intermediate_size": 12, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 16,
    "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip


def qwen3(dtype: str = "float32") -> dict[str, np.ndarray]:
    shapes = {"model.embed_tokens": (16, 8), "model.norm": (8,), "lm_head": (16, 8)}
    for n in range(2):
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in {
            "input_layernorm": (8,), "post_attention_layernorm": (8,), "self_attn.q_norm": (4,),
            "self_attn.k_norm": (4,),
            "self_attn.q_proj": (16, 8), "self_attn.k_proj": (8, 8), "self_attn.v_proj": (8, 8),
            "self_attn.o_proj": (8, 16), "mlp.gate_proj": (12, 8), "mlp.up_proj": (12, 8), "mlp.down_proj": (8, 12),
        }.items()}  # fmt: skip
    return {f"{name}.weight": array(shape, dtype, seed) for seed, (name, shape) in enumerate(shapes.items())}


def write_hub(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    """A folder of Hugging Face's; a setting of None is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "model.safetensors", tensors)
    said = {key: value for key, value in (SIZES | config).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def llama() -> dict[str, np.ndarray]:
    return {name: value for name, value in qwen3().items() if "q_norm" not in name and "k_norm" not in name}
