"""Checkpoints under Hugging Face's names and MindFormers' core's, dense or of experts, plain or quantised."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from checkpoints import write_random
from reshard.index import TensorSpec

Shape = tuple[int, ...]
_FP8_BLOCK = 128
_CUTS = {"column": ((0,), ()), "row": ((), (0,)), "experts": ((0,), (), ()), "none": ((),)}
_HEADS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class HubModel:
    """A Qwen3-like model with four queries to a KV head; with ``experts``, a mixture of them in every layer.

    ``codes``: of the matrices of layers, ``float8_e4m3fn`` by blocks of 128 or ``int8`` by channel; "" for bf16.
    """

    layers: int = 8
    experts: int = 0
    codes: str = ""
    fused: bool = False
    hidden: int = 2048
    ffn: int = 5632
    expert_ffn: int = 768
    heads: int = 16
    kv: int = 4
    head: int = 128
    vocab: int = 32000

    def tensors(self) -> dict[str, tuple[Shape, tuple[tuple[int, ...], ...], int]]:
        """Name → shape, tensor map on (dp, mp), layer; as ``Model.tensors``."""
        made = self._fused() if self.fused else self._apart()
        return {name: (shape, _CUTS[cut], layer) for name, shape, cut, layer in made}

    def specs(self) -> dict[str, TensorSpec]:
        made: dict[str, TensorSpec] = {}
        for name, (shape, _, layer) in self.tensors().items():
            coded = self.codes and 0 <= layer < self.layers and len(shape) > 1
            made[name] = TensorSpec(self.codes if coded else "bfloat16", shape)
            if coded and self.codes == "int8":
                made[f"{name}_scale"] = TensorSpec("float32", (shape[0], 1))
            elif coded:
                blocks = tuple(-(-n // _FP8_BLOCK) for n in shape)
                made[f"{name}_scale_inv"] = TensorSpec("float32", blocks)
        return made

    def config(self) -> dict[str, object]:
        kind = "qwen3_moe" if self.experts else "qwen3"
        said: dict[str, object] = {"model_type": kind, "torch_dtype": "bfloat16", "tie_word_embeddings": False}
        said |= {"hidden_size": self.hidden, "intermediate_size": self.ffn, "num_hidden_layers": self.layers}
        said |= {"num_attention_heads": self.heads, "num_key_value_heads": self.kv, "head_dim": self.head}
        said |= {"vocab_size": self.vocab}
        if self.experts:
            said |= {"num_experts": self.experts, "moe_intermediate_size": self.expert_ffn}
        if self.codes.startswith("float8"):
            said["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [_FP8_BLOCK, _FP8_BLOCK]}
        return said

    def _apart(self) -> Iterator[tuple[str, Shape, str, int]]:
        h, q, kv = self.hidden, self.heads * self.head, self.kv * self.head
        yield "model.embed_tokens.weight", (self.vocab, h), "column", -1
        for i in range(self.layers):
            at = f"model.layers.{i}."
            for name, rows in zip(_HEADS, (q, kv, kv), strict=True):
                yield f"{at}self_attn.{name}.weight", (rows, h), "column", i
            yield f"{at}self_attn.o_proj.weight", (h, q), "row", i
            yield from ((f"{at}self_attn.{n}_norm.weight", (self.head,), "none", i) for n in "qk")
            yield from ((f"{at}{n}_layernorm.weight", (h,), "none", i) for n in ("input", "post_attention"))
            if self.experts:
                yield f"{at}mlp.gate.weight", (self.experts, h), "column", i
            mlps = [f"experts.{e}." for e in range(self.experts)] or [""]
            inner = self.expert_ffn if self.experts else self.ffn
            for mlp in mlps:
                yield from ((f"{at}mlp.{mlp}{n}_proj.weight", (inner, h), "column", i) for n in ("gate", "up"))
                yield f"{at}mlp.{mlp}down_proj.weight", (h, inner), "row", i
        yield "model.norm.weight", (h,), "none", self.layers
        yield "lm_head.weight", (self.vocab, h), "column", self.layers

    def _fused(self) -> Iterator[tuple[str, Shape, str, int]]:
        h, q, kv = self.hidden, self.heads * self.head, self.kv * self.head
        yield "embedding.word_embeddings.weight", (self.vocab, h), "column", -1
        for i in range(self.layers):
            at = f"decoder.layers.{i}."
            yield f"{at}self_attention.linear_qkv.weight", (q + 2 * kv, h), "column", i
            yield f"{at}self_attention.linear_proj.weight", (h, q), "row", i
            yield from ((f"{at}self_attention.{n}_layernorm.weight", (self.head,), "none", i) for n in "qk")
            yield from ((f"{at}{n}_layernorm.weight", (h,), "none", i) for n in ("input", "pre_mlp"))
            if self.experts:
                yield f"{at}mlp.router.weight", (self.experts, h), "column", i
                yield f"{at}mlp.experts.weight1", (self.experts * h, 2 * self.expert_ffn), "column", i
                yield f"{at}mlp.experts.weight2", (self.experts * self.expert_ffn, h), "column", i
            else:
                yield f"{at}mlp.linear_fc1.weight", (2 * self.ffn, h), "column", i
                yield f"{at}mlp.linear_fc2.weight", (h, self.ffn), "row", i
        yield "decoder.final_layernorm.weight", (h,), "none", self.layers
        yield "output_layer.weight", (self.vocab, h), "column", self.layers


def write_hub(model: HubModel, folder: Path) -> Path:
    """A folder with configuration and one file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config()))
    write_random(model.specs(), folder / "model.safetensors")
    return folder


MODELS = {
    "hub": HubModel(),
    "core": HubModel(fused=True),
    "hub_experts": HubModel(layers=2, experts=48),
    "core_experts": HubModel(layers=2, experts=48, fused=True),
    "hub_many_experts": HubModel(layers=48, experts=40, hidden=512, expert_ffn=256),
    "hub_tiny_experts": HubModel(layers=61, experts=256, hidden=128, expert_ffn=128),
    "hub_deep": HubModel(layers=14),
    "hub_fp8": HubModel(codes="float8_e4m3fn"),
    "hub_int8": HubModel(codes="int8"),
}
