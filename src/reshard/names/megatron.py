"""What Megatron's checkpoints call otherwise than its layers do, one by one: stacks, joined and split gates, norms.

Recipes of the convention ``megatron`` speak of layers one by one, each tensor as the local layer spec names it, gate
and up projection joined, experts stacked. Two more forms are made of that, and it of them: what the distributed form
keeps (layers that are alike in stacks), and what tensor-parallel ranks cut (of each rank its gate, then its up rows).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from reshard.errors import PlanError, UsageError
from reshard.index import TensorSpec
from reshard.names.links import Axis, AxisPlace, Link
from reshard.names.maker import Maker
from reshard.planning.catalog import Tensor
from reshard.planning.names import is_state

EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
Tensors = Mapping[str, Tensor]

_WRAPPER = re.compile(r"^(?:model\.)?(?:module\.)+")
_STACK = re.compile(r"(.*\blayers)\.(?!\d+\.)(.+)")
_LAYER = re.compile(r"(.*\bdecoder\.layers)\.(\d+)\.(.+)")
_HALF = re.compile(r"(.*linear_fc1\.(?:weight|bias))_([wv])")
_EXPERT = re.compile(r"(.*mlp\.experts\.experts)\.(\d+)\.(.+)")
_GATED = re.compile(r"(.*)linear_fc1\.(weight|bias)")
_MARKS = re.compile(r".*(?:layer_norm_(?:weight|bias)|mlp\.experts\.experts\..*|linear_fc1\.weight_[wv])")
_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "self_attention.linear_q_proj.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
    "self_attention.linear_q_up_proj.layer_norm_": "self_attention.q_layernorm.",
    "self_attention.linear_kv_up_proj.layer_norm_": "self_attention.kv_layernorm.",
}
"""Norms that are said to be part of the layer that follows them."""
_ARGS = {
    "layers": "num_layers", "hidden": "hidden_size", "heads": "num_attention_heads", "kv": "num_query_groups",
    "head": "kv_channels", "ffn": "ffn_hidden_size", "experts": "num_experts", "expert_ffn": "moe_ffn_hidden_size",
    "q_rank": "q_lora_rank", "kv_rank": "kv_lora_rank", "nope": "qk_head_dim", "rope": "qk_pos_emb_head_dim",
    "value_head": "v_head_dim", "mtp": "mtp_num_layers",
}  # fmt: skip
"""What Megatron calls the sizes of a model."""


def is_ours(names: Iterable[str]) -> bool:
    """Whether names show that they are Megatron's: stacks of layers, or what MindFormers' core calls otherwise."""
    return any(_MARKS.fullmatch(name) or (_STACK.fullmatch(name) and "decoder." in name) for name in names)


def layer_by_layer(tensors: Tensors) -> dict[str, Tensor]:
    """Of whichever form; states keep theirs. Raises PlanError for parts that are not all there."""
    states = {name: tensor for name, tensor in tensors.items() if is_state(name)}
    weights = {_WRAPPER.sub("", name): tensor for name, tensor in tensors.items() if name not in states}
    single = dict(_unsplit(dict(_unstacked(weights))))
    return {**{_plain_name(name): replace(t, name=_plain_name(name)) for name, t in single.items()}, **states}


def _unstacked(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    maker = Maker(tensors)
    for name, tensor in tensors.items():
        found = _STACK.fullmatch(name)
        if found is None or not tensor.spec.shape:
            yield name, tensor
            continue
        layers, *shape = tensor.spec.shape
        for layer in range(layers):
            one = f"{found[1]}.{layer}.{found[2]}"
            axes = (Axis(1, AxisPlace(0, layers, layer), None), *_same(shape, source=1))
            yield one, maker.made(one, TensorSpec(tensor.spec.dtype, tuple(shape)), [_link(name, axes)])


def _unsplit(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    """With what was split for the file joined: a gate and its up projection, experts."""
    parts: dict[str, dict[tuple[int, int], str]] = {}
    for name in tensors:
        half = _HALF.fullmatch(name)
        whole, part = (half[1], "wv".index(half[2])) if half else (name, -1)
        expert = _EXPERT.fullmatch(whole)
        own = f"{expert[1]}.{expert[3]}" if expert else whole
        parts.setdefault(own, {})[int(expert[2]) if expert else -1, part] = name
    maker = Maker(tensors)
    for own, members in parts.items():
        if set(members) == {(-1, -1)}:
            yield own, tensors[own]
        else:
            yield own, _put_together(own, members, tensors, maker)


def _put_together(own: str, members: Mapping[tuple[int, int], str], tensors: Tensors, maker: Maker) -> Tensor:
    experts, halves = (sorted({key[at] for key in members}) for at in (0, 1))
    whole = [*range(len(experts))] == experts or experts == [-1]
    specs = {tensors[name].spec for name in members.values()}
    if not whole or halves not in ([-1], [0, 1]) or len(members) != len(experts) * len(halves) or len(specs) > 1:
        raise PlanError(
            f"{own}: put together of {', '.join(sorted(members.values())[:4])}, which are not all, or unlike"
        )
    ((dtype, shape),) = [(spec.dtype, spec.shape) for spec in specs]
    lead = (len(experts),) if experts != [-1] else ()
    rows = shape[0] * len(halves)
    links = []
    for (expert, half), name in members.items():
        axes = [Axis(1, None, AxisPlace(0, len(experts), expert))] * len(lead)
        axes += [Axis(1, None, AxisPlace(len(lead), 2, half))] * (half >= 0)
        links.append(_link(name, (*axes, *_same(shape, target=len(lead)))))
    return maker.made(own, TensorSpec(dtype, (*lead, rows, *shape[1:])), links)


def _same(shape: Iterable[int], *, source: int = 0, target: int = 0) -> Iterator[Axis]:
    """Dims that are the same on both sides, from these numbers on."""
    for dim, n in enumerate(shape):
        yield Axis(n, AxisPlace(dim + source, n, 0), AxisPlace(dim + target, n, 0))


def _link(source: str, axes: tuple[Axis, ...], target: tuple[int, ...] | None = None) -> Link:
    return Link(source, axes, target or tuple(range(len(axes))))


def _plain_name(name: str) -> str:
    """Of norms by themselves, and of a multi-token layer as checkpoints keep it; releases of 2026 call it otherwise on
    ranks.
    """
    name = name.replace(".mtp_model_layer.", ".transformer_layer.")
    for fused, plain in _NORMS.items():
        if fused in name:
            return name.replace(fused, plain)
    return name


# ---- from layers one by one


def distributed(tensors: Tensors, args: Mapping[str, Any]) -> dict[str, Tensor]:
    """As ``torch_dist`` keeps it: layers that are alike in stacks, norms as parts of what follows them."""
    names = _fused_norms(tensors, transformer_engine=_of_transformer_engine(args))
    named = {name: replace(tensors[own], name=name) for own, name in names.items()}
    layers: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in named.items():
        found = _LAYER.fullmatch(name)
        if found:
            layers.setdefault(found[1], {}).setdefault(int(found[2]), {})[found[3]] = tensor
    stacked = {kind for kind, each in layers.items() if _are_alike(each) and not are_numbered(args)}
    maker = Maker(named)
    made: dict[str, Tensor] = {}
    for name, tensor in named.items():
        found = _LAYER.fullmatch(name)
        if found is None or found[1] not in stacked:
            made[name] = tensor
        elif found[2] == "0":
            stack = f"{found[1]}.{found[3]}"
            made[stack] = _stack(
                stack, [each[found[3]].name for _, each in sorted(layers[found[1]].items())], maker, tensor
            )
    return made


def _are_alike(layers: Mapping[int, Mapping[str, Tensor]]) -> bool:
    kinds = {frozenset((name, t.spec, t.cast_to) for name, t in each.items()) for each in layers.values()}
    return len(kinds) == 1 and sorted(layers) == list(range(len(layers)))


def are_numbered(args: Mapping[str, Any]) -> bool:
    """Whether Megatron numbers layers for their experts, though they may be alike."""
    often = args.get("moe_layer_freq")
    return bool(args.get("num_experts")) and (isinstance(often, list) or (isinstance(often, int) and often > 1))


def _stack(name: str, of: list[str], maker: Maker, first: Tensor) -> Tensor:
    shape = first.spec.shape
    links = [
        _link(each, (Axis(1, None, AxisPlace(0, len(of), layer)), *_same(shape, target=1)))
        for layer, each in enumerate(of)
    ]
    return replace(maker.made(name, TensorSpec(first.spec.dtype, (len(of), *shape)), links), cast_to=first.cast_to)


def _fused_norms(tensors: Tensors, *, transformer_engine: bool) -> dict[str, str]:
    """What the distributed form calls each tensor, by one of the two layer specs."""
    return {name: _fused_norm(name, tensors, transformer_engine=transformer_engine) for name in tensors}


def _of_transformer_engine(args: Mapping[str, Any]) -> bool:
    """Whether the arguments name its layer spec; else it is the local one."""
    return args.get("transformer_impl") == "transformer_engine"


def differ_by_spec(tensors: Tensors, *, on_ranks: bool) -> bool:
    """Whether Megatron calls tensors otherwise by one layer spec than by the other. Ranks have the local one plain."""
    plain = {name: name for name in tensors}
    local = plain if on_ranks else _fused_norms(tensors, transformer_engine=False)
    return local != _fused_norms(tensors, transformer_engine=True)


def _fused_norm(name: str, tensors: Tensors, *, transformer_engine: bool) -> str:
    for fused, plain in _NORMS.items():
        if f".{plain}" not in name or is_state(name):
            continue
        before = name.partition(plain)[0]
        host = f"{before}{fused.rpartition('.')[0]}.weight"
        latent = f"{before}self_attention.linear_qkv.weight" not in tensors
        if transformer_engine:
            fits = host in tensors
        else:  # the local spec maps both names of a layer, and none where attention is latent
            fits = not latent and plain in _MAPPED and fused.split(".")[-2] in ("linear_qkv", "linear_fc1")
        if fits:
            return name.replace(plain, fused)
    return name


_MAPPED = ("input_layernorm.", "pre_mlp_layernorm.")


def of_ranks(tensors: Tensors, ranks: int, args: Mapping[str, Any]) -> dict[str, Tensor]:
    """As so many tensor-parallel ranks cut it by rows: each rank's gate lies before its up projection."""
    if _of_transformer_engine(args):
        names = _fused_norms(tensors, transformer_engine=True)
        tensors = {name: replace(tensors[own], name=name) for own, name in names.items()}
    maker = Maker(tensors)
    made = {}
    for name, tensor in tensors.items():
        made[name] = _dealt(name, tensors, ranks, maker) if ranks > 1 and is_gated(name, tensors) else tensor
    return made


def is_gated(name: str, tensors: Tensors) -> bool:
    """Whether it is a gate and its up projection: with twice the rows that the layer after it has columns."""
    found = _GATED.fullmatch(name)
    after = tensors.get(f"{found[1]}linear_fc2.weight") if found else None
    if found is None or after is None:
        return False
    lead = len(after.spec.shape) - 2
    return tensors[name].spec.shape[lead] == 2 * after.spec.shape[-1]


def _dealt(name: str, tensors: Tensors, ranks: int, maker: Maker) -> Tensor:
    tensor = tensors[name]
    lead = len(tensors[f"{name.rpartition('linear_fc1')[0]}linear_fc2.weight"].spec.shape) - 2
    shape = tensor.spec.shape
    rows = shape[lead] // 2
    if rows % ranks:
        fault = f"{name}: {rows} rows of its gate do not divide among --tp {ranks}"
        raise UsageError(fault, hint=f"take a number that divides {rows}")
    axes = [Axis(n, AxisPlace(dim, n, 0), AxisPlace(dim, n, 0)) for dim, n in enumerate(shape)]
    axes[lead : lead + 1] = [Axis(n, AxisPlace(lead, n, 0), AxisPlace(lead, n, 0)) for n in (2, ranks, rows // ranks)]
    order = [*range(len(axes))]
    order[lead : lead + 2] = [lead + 1, lead]
    return replace(maker.made(name, tensor.spec, [_link(name, tuple(axes), tuple(order))]), cast_to=tensor.cast_to)


def refuse_other_values(args: Mapping[str, Any]) -> None:
    """Raises PlanError for what Megatron keeps as other numbers than others do."""
    if args.get("apply_layernorm_1p"):
        raise PlanError("args.apply_layernorm_1p: norms are kept less one, which is not converted")
    if args.get("attention_output_gate"):
        raise PlanError("args.attention_output_gate: queries with gates beside them are not converted")
    if args.get("rotary_interleaved"):
        raise PlanError("args.rotary_interleaved: rotary rows of queries and keys lie in pairs, which is not converted")


def args_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Megatron's arguments as a model's settings tell them."""
    return {name: settings[axis] for axis, name in _ARGS.items() if type(settings.get(axis)) is int}
