"""Megatron's arguments as they lie in its pickles: read as values, none of their classes is looked up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reshard.dtypes import ITEMSIZE
from reshard.formats.pickled import Global, Record

_TELLING = (
    "num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "kv_channels", "ffn_hidden_size",
    "num_experts", "moe_ffn_hidden_size", "moe_layer_freq", "q_lora_rank", "kv_lora_rank", "vocab_size",
    "padded_vocab_size", "make_vocab_size_divisible_by", "untie_embeddings_and_output_weights",
    "apply_layernorm_1p", "attention_output_gate", "transformer_impl", "params_dtype",
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
    "expert_model_parallel_size", "expert_tensor_parallel_size", "use_distributed_optimizer",
)  # fmt: skip


def args_of(value: Any) -> dict[str, Any]:
    """The arguments that a common state or a rank's file holds; none where it holds none."""
    found = value.get("args") if isinstance(value, dict) else None
    fields = found.fields if isinstance(found, Record) else found if isinstance(found, dict) else {}
    return {str(name): _plain(each) for name, each in fields.items()}


def shown(args: Mapping[str, Any]) -> list[str]:
    """In words: those that tell of the model and of its parallel ranks; how many more there are."""
    told = [f"{name} {args[name]}" for name in _TELLING if args.get(name) is not None]
    more = sum(value is not None for value in args.values()) - len(told)
    return [*told, *([f"and {more} more (--json)"] if more else [])]


def count(args: Mapping[str, Any], name: str) -> int | None:
    """An argument that is a whole number."""
    value = args.get(name)
    return value if type(value) is int else None


def as_argument(name: str, value: Any) -> Any:
    """As it is written: a dtype is torch's."""
    return Global("torch", value) if name == "params_dtype" and value in ITEMSIZE else value


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(each) for each in value]
        case Global():
            return value.name
        case Record():  # enumerations, paths
            return "/".join(str(_plain(each)) for each in value.args) or value.factory.name
        case _:
            return type(value).__name__
