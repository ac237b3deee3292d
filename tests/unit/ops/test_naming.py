"""Names in other conventions, end to end: what is told, what goes along, what the identity counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from hub_model import llama, qwen3, write_hub
from making import array, differing, read_file, same, write_file, write_strategy
from reshard.errors import PlanError
from reshard.layout.tensor import Sharding
from reshard.names.settings import Asked
from reshard.names.wishes import Naming
from reshard.ops.convert import convert, plan
from reshard.ops.model_files import corrected
from reshard.ops.options import Options
from reshard.planning.plan import SmallFile


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    folder = write_hub(tmp_path / "hub", qwen3(), quantization_config=None)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.txt").write_text("of somebody")
    return folder


def run(place: Path, out: Path, **said: object) -> dict[str, np.ndarray]:
    convert(place, out, Options(naming=Naming(**said)))  # type: ignore[arg-type]
    return read_file(out if out.is_file() else out / "model.safetensors")


def test_identity_counts_what_is_said_of_names(hub: Path, tmp_path: Path) -> None:
    base = Naming(dst="mcore")
    (tmp_path / "run.yaml").write_text("model:\n  model_config:\n    model_type: qwen3\n    num_layers: 2\n")
    changes = [
        Naming(dst="mcore"),
        Naming(dst="mcore", asked=Asked({"qkv": "concat"})),
        Naming(dst="mcore", asked=Asked({"gate_up": "concat"})),
        Naming(dst="mcore", vocab_rows=20),
        Naming(dst="mcore", tied="drop"),
        Naming(dst="mcore", release="r1.6"),
        Naming(dst="mcore", model=str(tmp_path / "run.yaml")),
    ]
    tensors = qwen3()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_hub(hub, tensors)
    made = [plan(hub, tmp_path / "out", Options(naming=naming)).identity for naming in changes]
    assert len(set(made)) == len(changes)
    config = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps({**config, "rope_theta": 5}))
    assert plan(hub, tmp_path / "out", Options(naming=base)).identity != made[0]


def test_what_goes_along_is_true_of_what_is_written(hub: Path, tmp_path: Path) -> None:
    tensors = qwen3()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_hub(hub, tensors, tie_word_embeddings=True)
    options = Options(naming=Naming(dst="hf", vocab_rows=20, files=True), dtype="bfloat16")
    convert(hub, tmp_path / "out", options)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (told["torch_dtype"], told["tie_word_embeddings"], told["vocab_size"]) == ("bfloat16", True, 20)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "out" / "notes.txt").exists()
    made = read_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in made
    assert made["model.embed_tokens.weight"].shape == (20, 8)
    assert not made["model.embed_tokens.weight"][16:].astype(np.float32).any()


def test_states_go_with_their_weights_and_have_no_place_at_hugging_face(hub: Path, tmp_path: Path) -> None:
    write_hub(hub, llama(), model_type="llama", architectures=["LlamaForCausalLM"])
    run(hub, tmp_path / "split.safetensors", dst="mindformers")
    weights = read_file(tmp_path / "split.safetensors")
    states = {f"adam_m.{name}": array(value.shape, "float32", 7 + n) for n, (name, value) in enumerate(weights.items())}
    write_file(tmp_path / "both.safetensors", {**weights, **states, "global_step": array((), "int64")})
    said = {
        "src": "mindformers",
        "src_model": str(hub / "config.json"),
        "asked": Asked({"qkv": "grouped", "gate_up": "interleaved"}),
    }
    fused = run(tmp_path / "both.safetensors", tmp_path / "fused.safetensors", dst="mindformers", **said)
    name = "model.layers.0.attention.w_qkv.weight"
    parts = [states[f"adam_m.model.layers.0.attention.{part}.weight"] for part in ("wq", "wk", "wv")]
    grouped = np.concatenate([part.reshape(2, -1, 8) for part in parts], 1).reshape(-1, 8)
    assert same(fused[f"adam_m.{name}"], grouped)
    back = plan(
        tmp_path / "both.safetensors", tmp_path / "back", Options(naming=Naming(dst="hf", **{**said, "asked": Asked()}))
    )
    left = {out.reason: len(out.names) for out in back.left_out}
    assert sorted(left.values()) == [1, len(states)]
    assert any("adam_m." in reason for reason in left)


def test_lora_factors_are_renamed(hub: Path, tmp_path: Path) -> None:
    write_hub(hub, llama(), model_type="llama", architectures=["LlamaForCausalLM"])
    factors = {
        f"base_model.model.model.layers.{n}.self_attn.q_proj.lora_{ab}.weight": array(shape, "float32", n)
        for n in range(2)
        for ab, shape in (("A", (2, 8)), ("B", (16, 2)))
    }
    write_file(tmp_path / "adapter_model.safetensors", factors)
    made = run(tmp_path / "adapter_model.safetensors", tmp_path / "own.safetensors", dst="mindformers")
    assert sorted(made) == [f"model.layers.{n}.attention.wq.lora_{ab}" for n in range(2) for ab in "ab"]
    back = run(tmp_path / "own.safetensors", tmp_path / "back.safetensors", dst="hf", model=str(hub / "config.json"))
    assert {name: value.tobytes() for name, value in back.items()} == {n: v.tobytes() for n, v in factors.items()}


def test_rows_and_names_that_were_left_out_are_no_fault(hub: Path, tmp_path: Path) -> None:
    options = Options(naming=Naming(dst="mcore"))
    options = replace(options, names=replace(options.names, exclude=(r"layers\.1\.",)))
    convert(hub, tmp_path / "out.safetensors", options)
    assert not any(".layers.1." in name for name in read_file(tmp_path / "out.safetensors"))


def test_what_a_release_fused_on_each_rank(hub: Path, tmp_path: Path) -> None:
    """Each of two ranks holds its own queries, keys and values; the ranks joined by rows are no [q|k|v]."""
    full = llama()
    write_hub(hub, full, model_type="llama", architectures=["LlamaForCausalLM"])
    run_yaml = tmp_path / "run.yaml"
    lines = [
        "type: LlamaConfig",
        "num_layers: 2",
        "hidden_size: 8",
        "num_heads: 4",
        "n_kv_heads: 2",
        "qkv_concat: True",
    ]
    run_yaml.write_text("model:\n  model_config:\n" + "".join(f"    {line}\n" for line in lines))
    rows = Sharding((2,), ((0,), ()))
    fused = {
        f"model.layers.{n}.{name}.weight": rows
        for n in range(2)
        for name in ("attention.w_qkv", "feed_forward.w_gate_hidden")
    }
    naming = Naming(dst="mindformers", model=str(run_yaml), release="r1.3")
    others = plan(hub, tmp_path / "none", Options(naming=replace(naming, release=""))).tensors
    cuts = {t.name: fused.get(t.name, Sharding.whole(2, len(t.spec.shape))) for t in others}
    strategy = write_strategy(tmp_path / "strategy", [cuts])
    convert(hub, tmp_path / "ranks", Options(naming=naming, dst_strategy=str(strategy)))
    parts = [full[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    for rank in range(2):
        held = next((tmp_path / "ranks" / f"rank_{rank}").glob("*.safetensors"))
        wanted = np.concatenate([np.split(part, 2)[rank] for part in parts])
        assert same(read_file(held)["model.layers.1.attention.w_qkv.weight"], wanted)
    back = Naming(dst="hf", model=str(run_yaml), release="r1.3")
    convert(tmp_path / "ranks", tmp_path / "back.safetensors", Options(naming=back, src_strategy=str(strategy)))
    again = read_file(tmp_path / "back.safetensors")
    assert differing(again, full) == []
    whole = Options(src_strategy=str(strategy))
    convert(tmp_path / "ranks", tmp_path / "merged.safetensors", whole)
    with pytest.raises(PlanError, match="no strategy says how they are cut"):
        plan(tmp_path / "merged.safetensors", tmp_path / "no", Options(naming=back))


def test_the_configuration_is_true_of_rows_that_were_asked_for(tmp_path: Path) -> None:
    """Without it the folder's own configuration would contradict what lies there."""
    hub = write_hub(tmp_path / "hub", qwen3())
    convert(hub, tmp_path / "core.safetensors", Options(naming=Naming(dst="mcore")))
    back = Naming(dst="hf", model=str(hub / "config.json"), release="1.9", vocab_rows=20)
    with pytest.raises(PlanError, match="vocab_size 16"):
        convert(tmp_path / "core.safetensors", tmp_path / "a", Options(naming=back, to="parts"))
    convert(tmp_path / "core.safetensors", tmp_path / "b", Options(naming=replace(back, files=True), to="parts"))
    assert json.loads((tmp_path / "b" / "config.json").read_text())["vocab_size"] == 20


def test_codes_stay_what_the_configuration_says_they_mean(tmp_path: Path) -> None:
    tensors = qwen3("bfloat16")
    codes = {n: array(v.shape, "float8_e4m3fn") for n, v in tensors.items() if "_proj" in n}
    scales = {f"{n}_scale_inv": array((1, 1), seed=1) for n in codes}
    hub = write_hub(tmp_path / "hub", tensors | codes | scales, torch_dtype="bfloat16", quantization_config={"a": 1})
    convert(hub, tmp_path / "out", Options(naming=Naming(dst="hf", files=True), to="parts"))
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (said["torch_dtype"], said["quantization_config"]) == ("bfloat16", {"a": 1})


def test_half_a_lora_pair_is_refused(hub: Path, tmp_path: Path) -> None:
    write_hub(hub, llama(), model_type="llama", architectures=["LlamaForCausalLM"])
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    shapes = {name.format(0, "A"): (2, 8), name.format(0, "B"): (16, 2), name.format(1, "A"): (2, 8)}
    source = write_file(tmp_path / "adapter_model.safetensors", {n: array(shape) for n, shape in shapes.items()})
    naming = Naming(dst="mindformers", model=str(hub / "config.json"))
    with pytest.raises(PlanError, match=r"layers.1.self_attn.q_proj.lora_A.weight: its other factor is not there"):
        convert(source, tmp_path / "out.safetensors", Options(naming=naming))


def test_factors_of_a_core_s_attention_are_told_by_the_model(hub: Path, tmp_path: Path) -> None:
    """One name of latent attention and of the other."""
    own = {
        f"decoder.layers.0.self_attention.linear_proj.lora_{ab}": array(s) for ab, s in (("a", (2, 16)), ("b", (8, 2)))
    }
    source = write_file(tmp_path / "lora.safetensors", own)
    made = run(source, tmp_path / "out.safetensors", dst="hf", model=str(hub / "config.json"))
    assert sorted(made) == [f"base_model.model.model.layers.0.self_attn.o_proj.lora_{ab}.weight" for ab in "AB"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"vocab_size": 4}, {"vocab_size": 6}),
        ({"text_config": {"vocab_size": 4}}, {"text_config": {"vocab_size": 6}}),
        ({"vocab_size": 4, "text_config": {"vocab_size": 4}}, {"vocab_size": 6, "text_config": {"vocab_size": 6}}),
        ({"text_config": {}}, {"text_config": {"vocab_size": 6}}),
    ],
)
def test_rows_are_told_where_a_configuration_says_them(config: dict[str, object], told: dict[str, object]) -> None:
    (small,) = corrected((SmallFile("config.json", json.dumps(config).encode()),), {"vocab_size": 6})
    assert json.loads(small.content) == told
