"""Families of models by formula: what NumPy makes of Hugging Face's tensors is what recipes make, and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from making import array, differing, read_file, read_rank, same, write_file, write_ranks, write_strategy
from reshard.errors import CheckpointError, PlanError
from reshard.layout.tensor import Sharding
from reshard.names.wishes import Asked, Naming
from reshard.ops.convert import convert
from reshard.ops.options import Options
from reshard.planning.names import NameRules

H, F, V, EXPERTS, MF, HEADS, KV, HD = 8, 12, 16, 3, 6, 4, 2, 4
Shapes = dict[str, tuple[int, ...]]


def hub(folder: Path, shapes: Shapes, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """A folder with these tensors, which are given."""
    folder.mkdir()
    tensors = {name: array(shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    write_file(folder / "model.safetensors", tensors)
    sizes = {"hidden_size": H, "vocab_size": V, "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": HD}
    (folder / "config.json").write_text(json.dumps({**sizes, "torch_dtype": "float32", **config}))
    return tensors


def there_and_back(folder: Path, tensors: dict[str, np.ndarray], naming: Naming, **back: Any) -> dict[str, np.ndarray]:
    """What the convention has; what is made of that again is what there was."""
    convert(folder / "hub", folder / "own.safetensors", Options(naming=naming))
    own = read_file(folder / "own.safetensors")
    again = Naming(dst="hf", model=str(folder / "hub" / "config.json"), **back)
    convert(folder / "own.safetensors", folder / "back.safetensors", Options(naming=again))
    made = read_file(folder / "back.safetensors")
    assert differing(made, tensors) == []
    return own


OUTER: Shapes = {"model.embed_tokens.weight": (V, H), "model.norm.weight": (H,), "lm_head.weight": (V, H)}
NORMS: Shapes = {"input_layernorm.weight": (H,), "post_attention_layernorm.weight": (H,)}
GROUPED: Shapes = {
    "self_attn.q_proj.weight": (HEADS * HD, H), "self_attn.k_proj.weight": (KV * HD, H),
    "self_attn.v_proj.weight": (KV * HD, H), "self_attn.o_proj.weight": (H, HEADS * HD),
}  # fmt: skip


def layer(number: int, *shapes: Shapes) -> Shapes:
    return {f"model.layers.{number}.{name}": shape for each in shapes for name, shape in each.items()}


def experts(shared: str, width: int) -> Shapes:
    made = {f"mlp.experts.{e}.{p}_proj.weight": s for e in range(EXPERTS) for p, s in (
        ("gate", (MF, H)), ("up", (MF, H)), ("down", (H, MF)))}  # fmt: skip
    beside = {f"mlp.{shared}.{p}_proj.weight": s for p, s in (
        ("gate", (width, H)), ("up", (width, H)), ("down", (H, width)))}  # fmt: skip
    return {"mlp.gate.weight": (EXPERTS, H), **made, **beside}


def stacked(tensors: dict[str, np.ndarray], before: str, part: str) -> np.ndarray:
    return np.stack([tensors[f"{before}mlp.experts.{e}.{part}_proj.weight"] for e in range(EXPERTS)])


LATENT: Shapes = {
    "self_attn.q_a_proj.weight": (5, H), "self_attn.q_a_layernorm.weight": (5,),
    "self_attn.q_b_proj.weight": (HEADS * 6, 5), "self_attn.kv_a_proj_with_mqa.weight": (3 + 2, H),
    "self_attn.kv_a_layernorm.weight": (3,), "self_attn.kv_b_proj.weight": (HEADS * 8, 3),
    "self_attn.o_proj.weight": (H, HEADS * 4),
}  # fmt: skip
DENSE: Shapes = {"mlp.gate_proj.weight": (F, H), "mlp.up_proj.weight": (F, H), "mlp.down_proj.weight": (H, F)}
V2 = {
    "model_type": "deepseek_v2", "num_hidden_layers": 2, "intermediate_size": F, "moe_intermediate_size": MF,
    "n_routed_experts": EXPERTS, "n_shared_experts": 2, "q_lora_rank": 5, "kv_lora_rank": 3, "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2, "v_head_dim": 4, "num_key_value_heads": HEADS, "head_dim": None, "first_k_dense_replace": 1,
}  # fmt: skip


def test_deepseek_v2_of_mindformers_r1_3(tmp_path: Path) -> None:
    """Any number of experts: the script of r1.3 counts to 160 and stacks across layers."""
    shapes = {**OUTER, **layer(0, NORMS, LATENT, DENSE), **layer(1, NORMS, LATENT, experts("shared_experts", 2 * MF))}
    tensors = hub(tmp_path / "hub", shapes, V2)
    own = there_and_back(tmp_path, tensors, Naming(dst="mindformers"))
    assert len(own) == len(shapes) - 3 * (EXPERTS - 1)
    before = "model.layers.1."
    for ours, theirs in {
        "attention.q2l_proj.weight": "self_attn.q_a_proj.weight",
        "attention.l2q_proj.weight": "self_attn.q_b_proj.weight",
        "attention.kv2l.weight": "self_attn.kv_a_proj_with_mqa.weight",
        "attention.lkv2kv.weight": "self_attn.kv_b_proj.weight",
        "attention.lkv_norm.weight": "self_attn.kv_a_layernorm.weight",
        "feed_forward.routed_experts.router.dense.weight": "mlp.gate.weight",
        "feed_forward.shared_experts.w2.weight": "mlp.shared_experts.down_proj.weight",
    }.items():  # fmt: skip
        assert same(own[before + ours], tensors[before + theirs])
    for ours, theirs in {"w1": "gate", "w2": "down", "w3": "up"}.items():
        made = own[f"{before}feed_forward.routed_experts.ffn.{ours}.weight"]
        assert same(made, stacked(tensors, before, theirs))


def test_names_of_two_families_ask_for_the_model(tmp_path: Path) -> None:
    """Latent attention is split in DeepSeek-V3 and not in V2: without a model nobody can know."""
    tensors = hub(tmp_path / "hub", {**OUTER, **layer(0, NORMS, LATENT, DENSE)}, {})
    (tmp_path / "hub" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="deepseek2, deepseek3"):
        convert(tmp_path / "hub", tmp_path / "out.safetensors", Options(naming=Naming(dst="mindformers")))
    assert tensors


@pytest.mark.parametrize("grouped", [None, True, False])
def test_qwen2_moe_of_mindformers(tmp_path: Path, grouped: bool | None) -> None:
    """Which way experts lie a YAML says, else shapes do; the script's default is for grouped matmul."""
    biases = {f"self_attn.{p}_proj.bias": (n * HD,) for p, n in (("q", HEADS), ("k", KV), ("v", KV))}
    shapes = {**OUTER}
    for n in range(2):
        gate = {"mlp.shared_expert_gate.weight": (1, H)}
        shapes |= layer(n, NORMS, GROUPED, biases, experts("shared_expert", 10), gate)
    config = {"model_type": "qwen2_moe", "num_hidden_layers": 2, "moe_intermediate_size": MF, "num_experts": EXPERTS,
              "shared_expert_intermediate_size": 10, "intermediate_size": 99}  # fmt: skip
    if grouped is not None:
        config["use_gmm"] = grouped
    tensors = hub(tmp_path / "hub", shapes, config)
    own = there_and_back(tmp_path, tensors, Naming(dst="mindformers"))
    before = "model.layers.1."
    w1, w2 = (own[f"{before}feed_forward.routed_experts.ffn.{w}.weight"] for w in ("w1", "w2"))
    turned = (lambda x: x) if grouped is False else (lambda x: x.swapaxes(1, 2))
    assert same(w1, np.ascontiguousarray(turned(stacked(tensors, before, "gate"))))
    assert same(w2, np.ascontiguousarray(turned(stacked(tensors, before, "down"))))
    assert same(
        own[f"{before}feed_forward.shared_experts_gate.weight"], tensors[f"{before}mlp.shared_expert_gate.weight"]
    )


@pytest.mark.parametrize("qkv", ["grouped", "concat"])
@pytest.mark.parametrize("gate_up", ["interleaved", "concat"])
def test_glm4_in_the_core(tmp_path: Path, qkv: str, gate_up: str) -> None:
    more = {"post_self_attn_layernorm.weight": (H,), "post_mlp_layernorm.weight": (H,)}
    mlp = {"mlp.gate_up_proj.weight": (2 * F, H), "mlp.down_proj.weight": (H, F)}
    shapes = {**OUTER, **layer(0, NORMS, more, GROUPED, mlp)}
    tensors = hub(tmp_path / "hub", shapes, {"model_type": "glm4", "num_hidden_layers": 1, "intermediate_size": F})
    asked = Asked({"qkv": qkv, "gate_up": gate_up})
    own = there_and_back(tmp_path, tensors, Naming(dst="mcore", asked=asked), asked=asked)
    before = "model.layers.0."
    fused = tensors[f"{before}mlp.gate_up_proj.weight"]
    rows = fused.reshape(2, F, H).swapaxes(0, 1).reshape(2 * F, H) if gate_up == "interleaved" else fused
    assert same(own["decoder.layers.0.mlp.linear_fc1.weight"], np.ascontiguousarray(rows))
    q, k, v = (tensors[f"{before}self_attn.{p}_proj.weight"] for p in "qkv")
    made = np.concatenate([q, k, v])
    if qkv == "grouped":
        made = np.concatenate([x.reshape(KV, -1, H) for x in (q, k, v)], 1).reshape(-1, H)
    assert same(own["decoder.layers.0.self_attention.linear_qkv.weight"], made)
    assert same(own["decoder.layers.0.post_mlp_layernorm.weight"], tensors[f"{before}post_mlp_layernorm.weight"])


TELECHAT: Shapes = {
    "transformer.word_embeddings.weight": (V, H),
    "transformer.ln_f.weight": (H,),
    "lm_head.weight": (V, H),
    **{
        f"transformer.h.0.{name}": shape
        for name, shape in {
            **NORMS,
            "self_attention.query.weight": (HEADS * HD, H),
            "self_attention.key_value.weight": (2 * KV * HD, H),
            "self_attention.dense.weight": (H, HEADS * HD),
            "self_attention.dense.bias": (H,),
            **DENSE,
            "mlp.down_proj.bias": (H,),
        }.items()
    },
}


def telechat_rank(tensors: dict[str, np.ndarray], rank: int, ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """What a rank holds: its queries, keys and values behind one another; its gate and up."""
    at = "transformer.h.0."
    q = tensors[f"{at}self_attention.query.weight"].reshape(ranks, -1, H)[rank]
    kv = tensors[f"{at}self_attention.key_value.weight"].reshape(ranks, KV // ranks, 2, HD, H)[rank]
    mlp = [tensors[f"{at}mlp.{p}_proj.weight"].reshape(ranks, -1, H)[rank] for p in ("gate", "up")]
    return np.concatenate([q, *(kv[:, i].reshape(-1, H) for i in (0, 1))]), np.concatenate(mlp)


def test_telechat2_fused_in_one_file(tmp_path: Path) -> None:
    tensors = hub(tmp_path / "hub", TELECHAT, {"model_type": "telechat", "n_layer": 1, "ffn_hidden_size": F})
    asked = Asked({"qkv": "concat", "gate_up": "concat"})
    own = there_and_back(tmp_path, tensors, Naming(dst="mindformers", asked=asked), asked=asked)
    w_qkv, w_gate_hidden = telechat_rank(tensors, 0, 1)
    assert same(own["model.layers.0.attention.w_qkv.weight"], w_qkv)
    assert same(own["model.layers.0.feed_forward.w_gate_hidden.weight"], w_gate_hidden)


def test_telechat2_fused_on_each_rank_after_the_cut(tmp_path: Path) -> None:
    tensors = hub(tmp_path / "hub", TELECHAT, {"model_type": "telechat", "n_layer": 1, "ffn_hidden_size": F})
    run = tmp_path / "run.yaml"
    run.write_text("model:\n  arch: {type: TelechatForCausalLM}\n  model_config: {qkv_concat: True}\n")
    rows, columns, whole = ((0,), ()), ((), (0,)), ((),)
    cuts = {
        "model.tok_embeddings.embedding_weight": ((), ()), "model.norm_out.weight": whole, "lm_head.weight": ((), ()),
        **{f"model.layers.0.{name}": cut for name, cut in {
            "attention_norm.weight": whole, "ffn_norm.weight": whole, "attention.w_qkv.weight": rows,
            "attention.wo.weight": columns, "attention.wo.bias": whole, "feed_forward.w_gate_hidden.weight": rows,
            "feed_forward.w2.weight": columns, "feed_forward.w2.bias": whole}.items()},
    }  # fmt: skip
    strategy = str(write_strategy(tmp_path / "strategy", [{name: Sharding((2,), cut) for name, cut in cuts.items()}]))
    naming = Naming(dst="mindformers", model=str(run))
    convert(tmp_path / "hub", tmp_path / "ranks", Options(dst_strategy=strategy, naming=naming))
    for rank in range(2):
        made = read_rank(tmp_path / "ranks", rank)
        for name, value in zip(
            ("attention.w_qkv", "feed_forward.w_gate_hidden"), telechat_rank(tensors, rank, 2), strict=True
        ):
            assert same(made[f"model.layers.0.{name}.weight"], value)
    back = replace(naming, dst="hf", src_model=naming.model, model=str(tmp_path / "hub" / "config.json"))
    convert(tmp_path / "ranks", tmp_path / "back.safetensors", Options(src_strategy=strategy, naming=back))
    made = read_file(tmp_path / "back.safetensors")
    assert all(same(made[name], value) for name, value in tensors.items())


SMALL = {**OUTER, **layer(0, NORMS, LATENT, DENSE), **layer(1, NORMS, LATENT, experts("shared_experts", 2 * MF))}
"""A model of latent attention, its first layer dense."""
BIASED = {**OUTER, **layer(0, NORMS, GROUPED, DENSE, {f"self_attn.{p}_proj.bias": (n * HD,) for p, n in (
    ("q", HEADS), ("k", KV), ("v", KV))}, {f"self_attn.{p}_norm.weight": (HD,) for p in "qk"})}  # fmt: skip
QWEN = {"model_type": "qwen3", "num_hidden_layers": 1, "intermediate_size": F}
LACKING = {
    "half of the shared experts": (SMALL, V2, "shared_experts.down_proj", {}, ["shared_experts.down_proj.weight: not"]),
    "shared experts that are told": (SMALL, V2, "shared_experts", {}, ["shared_experts.gate_proj.weight: not there"]),
    "queries": (SMALL, V2, "self_attn.q_", {}, ["layers.0.self_attn.q_proj.weight: not there"]),
    "half of low-rank queries": (
        SMALL,
        V2,
        "q_a_layernorm",
        {},
        ["layers.1.self_attn.q_a_layernorm.weight: not there"],
    ),
    "a correction that is told": (SMALL, V2, "", {"topk_method": "noaux_tc"}, ["e_score_correction_bias: not there"]),
    "dense layers": (SMALL, V2, "", {"first_k_dense_replace": 2}, ["layer of experts", "first_k_dense_replace 2"]),
    "layers of experts": (SMALL, V2, "", {"first_k_dense_replace": 0}, ["layer of dense", "first_k_dense_replace 0"]),
    "the norm of keys alone": (BIASED, QWEN, "k_norm", {}, ["layers.0.self_attn.k_norm.weight: not there"]),
    "the bias of keys alone": (BIASED, QWEN, "k_proj.bias", {}, ["layers.0.self_attn.k_proj.bias"]),
}


@pytest.mark.parametrize("what", LACKING)
def test_what_stands_together_is_not_there_by_half(tmp_path: Path, what: str) -> None:
    """In no layer at all: what one layer has and another has not is told anyway."""
    shapes, config, gone, more, words = LACKING[what]
    hub(tmp_path / "hub", {n: s for n, s in shapes.items() if not gone or gone not in n}, {**config, **more})
    with pytest.raises(PlanError) as told:
        convert(tmp_path / "hub", tmp_path / "out.safetensors", Options(naming=Naming(dst="mcore")))
    assert not [word for word in words if word not in told.value.message], told.value.message


@pytest.mark.parametrize("heads", [(6, 3), (40, 8), (28, 4), (12, 2)])
@pytest.mark.parametrize("cut", [(), (0,), (1,)])
def test_queries_keys_and_values_are_fused_another_way(
    tmp_path: Path, heads: tuple[int, int], cut: tuple[int, ...]
) -> None:
    """Of slices, too; whatever number of queries there are for a key."""
    queries, keys = heads
    rows = {"q": queries * HD, "k": keys * HD, "v": keys * HD}
    fused = {f"self_attn.{p}_proj.weight": (n, H) for p, n in rows.items()}
    fused |= {"self_attn.o_proj.weight": (H, queries * HD)}
    shapes = {**OUTER, **layer(0, NORMS, DENSE, fused)}
    tensors = hub(tmp_path / "hub", shapes, {**QWEN, "num_attention_heads": queries, "num_key_value_heads": keys})
    convert(tmp_path / "hub", tmp_path / "grouped.safetensors", Options(naming=Naming(dst="mcore")))
    grouped = read_file(tmp_path / "grouped.safetensors")
    stage = {n: Sharding((2,), tuple((0,) if d in cut else () for d in range(a.ndim))) for n, a in grouped.items()}
    stage |= {n: Sharding.whole(2, a.ndim) for n, a in grouped.items() if a.ndim < 2}
    source = write_ranks(tmp_path / "ranks", grouped, [stage])
    ways = Asked({"qkv": "grouped", "gate_up": "interleaved"}), Asked({"qkv": "concat", "gate_up": "concat"})
    model, strategy = str(tmp_path / "hub"), str(write_strategy(tmp_path / "strategy", [stage]))
    there = Naming(dst="mcore", model=model, src_asked=ways[0], asked=ways[1])
    convert(source, tmp_path / "concat.safetensors", Options(naming=there, src_strategy=strategy))
    concat = read_file(tmp_path / "concat.safetensors")["decoder.layers.0.self_attention.linear_qkv.weight"]
    parts = [tensors[f"model.layers.0.self_attn.{p}_proj.weight"] for p in "qkv"]
    assert same(concat, np.concatenate(parts))
    back = Naming(dst="mcore", model=model, src_asked=ways[1], asked=ways[0])
    convert(tmp_path / "concat.safetensors", tmp_path / "back.safetensors", Options(naming=back))
    assert differing(read_file(tmp_path / "back.safetensors"), grouped) == []


def test_multi_token_layers_that_are_told_and_not_there_can_be_left_out(tmp_path: Path) -> None:
    """As transformers saves them: config.json tells of what it does not keep."""
    whole = hub(tmp_path / "hub", SMALL, {**V2, "num_nextn_predict_layers": 1})
    naming, out = Naming(dst="mcore"), tmp_path / "out.safetensors"
    with pytest.raises(PlanError, match=r"model.layers.2.enorm.weight: not there") as told:
        convert(tmp_path / "hub", out, Options(naming=naming))
    assert r"--exclude '^model\.layers\.2\.', if transformers saved it" in told.value.hint
    convert(tmp_path / "hub", out, Options(naming=naming, names=NameRules(exclude=(r"^model\.layers\.2\.",))))
    assert "decoder.layers.1.mlp.router.weight" in read_file(out)
    naming = Naming(dst="hf", model=str(tmp_path / "hub"), asked=Asked({"gate_up": "interleaved"}))
    back = tmp_path / "back.safetensors"
    with pytest.raises(PlanError, match=r"mtp.layers.0.enorm.weight: not there") as told:
        convert(out, back, Options(naming=naming))
    assert r"--exclude '^mtp\.layers\.0\.', if the training was without" in told.value.hint
    convert(out, back, Options(naming=naming, names=NameRules(exclude=(r"^mtp\.layers\.0\.",))))
    assert differing(read_file(back), whole) == []


def test_multi_token_layers_that_are_left_out_are_not_blamed_for_what_else_lacks(tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in SMALL.items() if "self_attn.q_" not in name}
    hub(tmp_path / "hub", shapes, {**V2, "num_nextn_predict_layers": 1})
    rules = NameRules(exclude=(r"^model\.layers\.2\.",))
    with pytest.raises(PlanError, match=r"q_proj.weight: not there") as told:
        convert(tmp_path / "hub", tmp_path / "out.safetensors", Options(naming=Naming(dst="mcore"), names=rules))
    assert "multi-token" not in told.value.hint


@pytest.mark.parametrize(
    ("before", "shapes"), [("model.", {**OUTER, **layer(0, NORMS, GROUPED, DENSE)}), ("transformer.", TELECHAT)]
)
def test_a_model_that_was_saved_without_its_head(tmp_path: Path, before: str, shapes: Shapes) -> None:
    """As the Hub keeps GPT-2, and models that embed: names begin with what is in the model of the head."""
    base = {name.removeprefix(before): shape for name, shape in shapes.items() if name.startswith(before)}
    hub(tmp_path / "hub", base, {"num_hidden_layers": 1})
    with pytest.raises(CheckpointError, match="no recipe knows") as told:
        convert(tmp_path / "hub", tmp_path / "out.safetensors", Options(naming=Naming(dst="mindformers")))
    assert told.value.hint.startswith(f"--rename '^=>{before}'")
    rules = NameRules(rename=(("^", before),))
    convert(tmp_path / "hub", tmp_path / "out.safetensors", Options(naming=Naming(dst="mindformers"), names=rules))


def test_a_head_that_is_known_keeps_its_name(tmp_path: Path) -> None:
    """Renamed with the others it would not be there, and one who leaves it out as the next refusal says has lost it."""
    whole = {**OUTER, **layer(0, NORMS, GROUPED, DENSE)}
    tensors = hub(tmp_path / "hub", {n.removeprefix("model."): s for n, s in whole.items()}, {"num_hidden_layers": 1})
    options = Options(naming=Naming(dst="mindformers"))
    with pytest.raises(CheckpointError, match="no recipe knows") as told:
        convert(tmp_path / "hub", tmp_path / "out.safetensors", options)
    ((old, new),) = re.findall(r"--rename '(.+?)=>(.+?)'", told.value.hint or "")
    rules = NameRules(rename=((old, new),))
    convert(tmp_path / "hub", tmp_path / "out.safetensors", replace(options, names=rules))
    assert same(read_file(tmp_path / "out.safetensors")["lm_head.weight"], tensors["lm_head.weight"])


@pytest.mark.parametrize("whole", ["self_attn.o_proj.lora_magnitude_vector", "input_layernorm.weight"])
def test_an_adapter_of_more_than_factors_is_to_be_merged(whole: str, tmp_path: Path) -> None:
    """What DoRA and layers trained whole are, no convention has a name for; without it the rest is no adapter."""
    factors = {"self_attn.o_proj.lora_A.weight": (2, 8), "self_attn.o_proj.lora_B.weight": (8, 2), whole: (8,)}
    write_file(
        tmp_path / "adapter.safetensors",
        {f"base_model.model.model.layers.0.{name}": array(shape) for name, shape in factors.items()},
    )
    with pytest.raises(PlanError, match="no rule knows it") as refused:
        convert(tmp_path / "adapter.safetensors", tmp_path / "out", Options(naming=Naming(dst="torchtitan", src="hf")))
    assert refused.value.hint == "merge it first: reshard lora merge"


@pytest.mark.parametrize(
    ("text", "towers", "excluded"),
    [
        ("model.language_model.", ("model.visual.", "model.projector."), r"--exclude '^model\.visual\.' "),
        ("language_model.model.", ("vision_tower.", "projector."), r"--exclude '^vision_tower\.'"),
        ("thinker.model.", ("thinker.audio_tower.layers.0.", "talker.model."), r"--exclude '^thinker\.audio_tower\.'"),
    ],
)
def test_the_language_model_of_a_model_that_sees(
    text: str, towers: tuple[str, ...], excluded: str, tmp_path: Path
) -> None:
    """The refusal says what takes it out, and what it says does."""
    plain = {**OUTER, **layer(0, NORMS, GROUPED, DENSE)}
    shapes = {name.replace("model.", text, 1): shape for name, shape in plain.items()}
    shapes |= {f"{tower}{end}.weight": (3, 3) for tower in towers for end in ("proj", "blocks.0.qkv", "norm")}
    hub(tmp_path / "hub", shapes, {"num_hidden_layers": 1, "intermediate_size": F})
    with pytest.raises(CheckpointError, match="no recipe knows its names") as refused:
        convert(tmp_path / "hub", tmp_path / "out.safetensors", Options(naming=Naming(dst="mcore")))
    hint = refused.value.hint or ""
    assert excluded in hint
    excludes = tuple(re.findall(r"--exclude '(.+?)'", hint))
    renames = tuple(tuple(said.split("=>")) for said in re.findall(r"--rename '(.+?)'", hint))
    rules = NameRules(exclude=excludes, rename=renames)
    convert(tmp_path / "hub", tmp_path / "out.safetensors", Options(naming=Naming(dst="mcore"), names=rules))
    assert "decoder.layers.0.self_attention.linear_qkv.weight" in read_file(tmp_path / "out.safetensors")
