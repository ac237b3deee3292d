"""The model's own files beside a source, and what is told of a tensor under either side's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from golden.cases import run_reshard
from hub_model import llama, qwen3, write_hub
from making import array, differing, read_file, same, write_file
from reshard.errors import InputError, PlanError, UsageError
from reshard.names.wishes import Asked, Naming
from reshard.ops.convert import convert
from reshard.ops.explain import explain
from reshard.ops.names import told
from reshard.ops.options import Options
from reshard.planning.names import NameRules


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    """What is said where a command ends so."""
    assert run_reshard([*map(str, words), "--quiet"]) == code
    return capsys.readouterr().err


RUN = """
model:
  arch: {type: Qwen3ForCausalLM}
  model_config:
    num_layers: 2
    hidden_size: 8
    num_attention_heads: 4
    num_query_groups: 2
    kv_channels: 4
    ffn_hidden_size: 12
    vocab_size: 16
    use_contiguous_weight_layout_attention: False
    use_interleaved_weight_layout_mlp: True
"""


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """A folder with a model as MindFormers' core has it; its configuration is elsewhere."""
    write_hub(tmp_path / "hub", qwen3())
    (tmp_path / "core").mkdir()
    convert(tmp_path / "hub", tmp_path / "core" / "model.safetensors", Options(naming=Naming(dst="mcore")))
    return tmp_path / "core"


@pytest.mark.parametrize(("model", "said"), [("gemma", True), ("qwen3", False)])
def test_a_model_that_no_recipe_is_written_for_is_told(tmp_path: Path, model: str, said: bool) -> None:
    """Its names may be another's: Gemma's are Llama's, and its norms are kept less one."""
    write_hub(tmp_path / "hub", qwen3(), model_type=model, architectures=None)
    warnings = told(tmp_path / "hub", Options(naming=Naming(dst="mcore"))).warnings
    assert any(f"no recipe is written for {model} of config.json" in warning for warning in warnings) is said


@pytest.mark.parametrize("name", ["config.json", "run.yaml"])
def test_a_configuration_that_windows_saved(tmp_path: Path, name: str) -> None:
    source = write_hub(tmp_path / "hub", qwen3())
    given = source / name
    given.write_text(RUN if name == "run.yaml" else given.read_text(), "utf-8-sig")
    assert told(source, Options(naming=Naming(dst="mcore", model=str(given)))).tensors
    given.write_text(given.read_text("utf-8-sig"), "utf-16")
    with pytest.raises(InputError, match="text in UTF-16"):
        told(source, Options(naming=Naming(dst="mcore", model=str(given))))


@pytest.mark.parametrize("names", ["hf", "mcore"])
def test_a_configuration_of_more_than_text_does_not_go_along_with_text_alone(tmp_path: Path, names: str) -> None:
    """transformers would make up the tower's weights."""
    tower = {"visual.merger.weight": array((4, 4))}
    source = write_hub(tmp_path / "hub", {**qwen3(), **tower}, vision_config={"depth": 1})
    convert(source, tmp_path / "whole", Options(naming=Naming(files=True), to="parts"))
    text = NameRules(exclude=("^visual",))
    if names == "mcore":
        convert(source, tmp_path / "core.safetensors", Options(naming=Naming(dst="mcore"), names=text))
        source, text = tmp_path / "core.safetensors", NameRules()
    asked = Asked({"qkv": "grouped", "gate_up": "interleaved"} if names == "mcore" else {})
    naming = Naming(dst="hf", files=True, model=str(tmp_path / "hub"), asked=asked)
    with pytest.raises(PlanError, match=r"vision_config of config.json: no tensor is of that"):
        convert(source, tmp_path / "text", Options(naming=naming, names=text, to="parts"))


@pytest.mark.parametrize("source", ["core", "core/model.safetensors"])
def test_the_yaml_of_a_run_beside_the_source_is_found(core: Path, tmp_path: Path, source: str) -> None:
    (core / "run.yaml").write_text(RUN)
    (core / "notes.yml").write_text("a: [1, 2]")  # of something else
    (core / "broken.yaml").write_text("a: [1, 2")
    convert(tmp_path / source, tmp_path / "back.safetensors", Options(naming=Naming(dst="hf")))
    back = read_file(tmp_path / "back.safetensors")
    assert all(same(back[name], value) for name, value in qwen3().items())


def test_of_two_that_differ_none_is_taken(core: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (core / "run.yaml").write_text(RUN)
    (core / "copy.yaml").write_text(RUN + "# a word\n")
    assert run_reshard(["convert", str(core), str(tmp_path / "a.safetensors"), "--dst-names", "hf", "--quiet"]) == 0
    (core / "copy.yaml").write_text(RUN.replace("mlp: True", "mlp: False"))
    assert "it may be" in refused(capsys, 3, "convert", core, tmp_path / "b.safetensors", "--dst-names", "hf")
    words = ["--dst-names", "hf", "--model", str(core / "run.yaml"), "--quiet"]
    assert run_reshard(["convert", str(core), str(tmp_path / "b.safetensors"), *words]) == 0


def test_one_beside_that_contradicts_is_refused(core: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (core / "run.yaml").write_text(RUN.replace("num_query_groups: 2", "num_query_groups: 4"))
    said = refused(capsys, 3, "convert", core, tmp_path / "out", "--dst-names", "hf")
    assert "num_query_groups 4 of run.yaml" in said
    assert "32" in said


@pytest.mark.parametrize("to", ["megatron", "torch_dist"])
def test_how_a_source_is_fused_is_told_of_megatrons_targets_too(
    core: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    """Their names are their own, so --dst-names need not be said."""
    words = ["convert", core, tmp_path / "out", "--to", to, "--model", tmp_path / "hub"]
    said = refused(capsys, 3, *words, "--src-qkv", "grouped")
    assert "say it: --src-gate-up interleaved|concat, or" in said
    told = ["--src-qkv", "grouped", "--src-gate-up", "interleaved", "--quiet"]
    assert run_reshard([*map(str, words), *told]) == 0
    naming = Naming(dst="hf", model=str(tmp_path / "hub"))
    convert(tmp_path / "out", tmp_path / "back.safetensors", Options(naming=naming))
    back = read_file(tmp_path / "back.safetensors")
    assert all(same(back[name], value) for name, value in qwen3().items())


@pytest.mark.parametrize(("one", "other"), [("--qkv grouped", "--gate-up"), ("--gate-up interleaved", "--qkv")])
def test_what_is_fused_together_is_not_fused_by_half(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one: str, other: str
) -> None:
    """qkv_concat of MindFormers' own models fuses both, and a model of halves loads nowhere."""
    hub = write_hub(tmp_path / "hub", llama(), model_type="qwen2")
    said = refused(capsys, 2, "convert", hub, tmp_path / "out.safetensors", "--dst-names", "mindformers", *one.split())
    assert f"add {other}" in said
    assert not (tmp_path / "out.safetensors").exists()


def test_a_model_without_a_head_gets_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As one that embeds, whose configuration says that its ends are not tied: its embedding is no output layer."""
    hub = write_hub(tmp_path / "hub", {n: v for n, v in qwen3().items() if not n.startswith("lm_head")})
    words = ("convert", hub, tmp_path / "out.safetensors", "--dst-names", "mcore")
    said = refused(capsys, 3, *words)
    assert r"--exclude '^lm_head\.weight', if the model has none" in said
    assert run_reshard([*map(str, words), "--exclude", r"^lm_head\.weight", "--quiet"]) == 0
    assert "output_layer.weight" not in read_file(tmp_path / "out.safetensors")


def test_what_has_no_gate_is_not_said_to_be_fused_by_half(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Nemotron has it; nobody asked for anything fused."""
    hub = write_hub(tmp_path / "hub", {n: v for n, v in llama().items() if "gate_proj" not in n}, model_type="nemotron")
    said = refused(capsys, 3, "convert", hub, tmp_path / "out.safetensors", "--dst-names", "mindformers")
    assert "model.layers.0.mlp.gate_proj.weight: missing" in said


def test_a_tensor_is_explained_under_the_source_s_name_too(core: Path, tmp_path: Path) -> None:
    options = Options(naming=Naming(dst="mcore"))
    name, fused = "model.layers.1.self_attn.k_proj.weight", "decoder.layers.1.self_attention.linear_qkv.weight"
    ours, theirs = (explain(each, tmp_path / "hub", options) for each in (fused, name))
    assert (theirs.name, theirs.parts) == (fused, ours.parts)
    assert ours.asked == ""
    assert theirs.asked == f"{name}: key of (kv group+key+value head) hidden"
    back = Options(naming=Naming(dst="hf", model=str(tmp_path / "hub" / "config.json"), release="1.9"))
    split = explain(fused, core, back)
    assert split.name == "model.layers.1.self_attn.q_proj.weight"
    assert "also made into model.layers.1.self_attn.k_proj.weight, " in split.asked


def test_how_many_experts_there_are_shapes_tell(tmp_path: Path) -> None:
    shapes = {"mlp.gate": (3, 8), **{f"mlp.experts.{e}.{p}_proj": s for e in range(3) for p, s in (
        ("gate", (6, 8)), ("up", (6, 8)), ("down", (8, 6)))}}  # fmt: skip
    tensors = {n: v for n, v in qwen3().items() if ".mlp." not in n}
    tensors |= {f"model.layers.{n}.{name}.weight": array(s, seed=n) for n in range(2) for name, s in shapes.items()}
    write_hub(tmp_path / "hub", tensors, model_type="qwen3_moe", num_experts=3, moe_intermediate_size=6)
    convert(tmp_path / "hub", tmp_path / "core.safetensors", Options(naming=Naming(dst="mcore")))
    write_file(tmp_path / "stray.safetensors", {**read_file(tmp_path / "core.safetensors"),
                                                "mtp.output_layer.weight": tensors["lm_head.weight"]})  # fmt: skip
    (tmp_path / "run.yaml").write_text(RUN)  # which says nothing of experts
    naming = Naming(dst="hf", model=str(tmp_path / "run.yaml"))
    convert(tmp_path / "stray.safetensors", tmp_path / "back.safetensors", Options(naming=naming))
    back = read_file(tmp_path / "back.safetensors")
    assert differing(back, tensors) == []


def test_two_tensors_that_a_rename_makes_one_are_refused(tmp_path: Path) -> None:
    source = write_hub(tmp_path / "hub", qwen3()) / "model.safetensors"
    rules = NameRules(rename=(("layers.1.", "layers.0."),))
    (tmp_path / "hub" / "config.json").unlink()
    with pytest.raises(UsageError, match="would both be called model"):
        convert(source, tmp_path / "out", Options(naming=Naming(dst="megatron"), names=rules, to="dcp"))
