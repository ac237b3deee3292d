"""Megatron's rank folders as they are written: what each rank holds by its rules, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from making import array, differing, read_file, same, write_file
from megatron_ranks import ARGS, FULL, chunk_of, saved, told, write_megatron
from reshard import Options
from reshard.errors import ReshardError
from reshard.names.wishes import Naming
from reshard.ops.inspect import inspect
from reshard.planning.names import NameRules


def written(source: Path, target: Path, **options: Any) -> Path:
    reshard.convert(source, target, Options(to="megatron", fsync=False, **options))
    return target


def rank(target: Path, name: str, folder: Path) -> dict[str, np.ndarray]:
    (path,) = target.glob(f"*/{name}/model_optim_rng.pt")
    reshard.convert(path, folder / f"{name}.safetensors", Options(family="full", fsync=False))
    return {n.removeprefix("model."): v for n, v in read_file(folder / f"{name}.safetensors").items()}


def refused(source: Path, target: Path, **options: Any) -> str:
    with pytest.raises(ReshardError) as caught:
        written(source, target, **options)
    assert not target.exists()
    return f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("sizes", [(1, 1), (2, 4), (4, 2)])
def test_each_rank_holds_what_the_rules_give_it(tmp_path: Path, sizes: tuple[int, int]) -> None:
    tensor, stages = sizes
    full = {name: value for name, value in FULL.items() if tensor < 4 or "linear_fc" not in name}
    source = write_file(tmp_path / "full.safetensors", full if tensor < 4 else FULL)
    if tensor == 4:  # six rows of a gate are no four parts
        said = refused(source, tmp_path / "no", tp=4)
        assert "6 rows of its gate do not divide among --tp 4 take a number that divides 6" in said
        return
    target = written(source, tmp_path / "m", tp=tensor, pp=stages)
    for stage in range(stages):
        for number in range(tensor):
            name = f"mp_rank_{number:02d}" + (f"_{stage:03d}" if stages > 1 else "")
            wanted = chunk_of(stage, 0, number, (tensor, stages, 1))
            found = rank(target, name, tmp_path)
            assert differing(found, wanted) == []
    assert (target / "latest_checkpointed_iteration.txt").read_text() == "release"


def test_ranks_are_cut_again_and_keep_their_arguments(tmp_path: Path) -> None:
    target = written(write_megatron(tmp_path / "m"), tmp_path / "made", tp=1, pp=4)
    assert sorted(p.name for p in (target / "iter_0000007").iterdir()) == [f"mp_rank_00_00{n}" for n in range(4)]
    found = inspect(str(target))
    assert found.args["pipeline_model_parallel_size"] == 4
    assert found.args["num_layers"] == ARGS["num_layers"]
    assert found.args["data_path"] == ["0.3", "corpus"]
    assert found.args["num_layers_per_virtual_pipeline_stage"] is None
    assert "pipeline_model_parallel_layout" not in found.args
    reshard.convert(target, tmp_path / "back.safetensors", Options(fsync=False))
    assert differing(read_file(tmp_path / "back.safetensors"), FULL) == []


def test_a_number_for_the_iteration(tmp_path: Path) -> None:
    target = written(write_megatron(tmp_path / "m"), tmp_path / "made", dst_iteration=20)
    assert (target / "latest_checkpointed_iteration.txt").read_text() == "20"
    assert (target / "iter_0000020" / "mp_rank_00").is_dir()


def test_a_tied_embedding_stands_on_the_last_stage_too(tmp_path: Path) -> None:
    held = {name: value for name, value in FULL.items() if name != "output_layer.weight"}
    target = written(write_file(tmp_path / "full.safetensors", held), tmp_path / "m", pp=2)
    last = rank(target, "mp_rank_00_001", tmp_path)
    assert same(last["output_layer.weight"], FULL["embedding.word_embeddings.weight"])
    reshard.convert(target, tmp_path / "back.safetensors", Options(fsync=False))
    assert read_file(tmp_path / "back.safetensors").keys() == held.keys()


@pytest.mark.parametrize("tied", [False, True])
def test_multi_token_layers_have_the_embedding_beside_them(tmp_path: Path, tied: bool) -> None:
    """Megatron 0.16.1 asks the last stage for it: it embeds the tokens that follow."""
    once = {f"mtp.layers.0.{name}.weight": array((4,), seed=n) for n, name in enumerate(("enorm", "final_layernorm"))}
    full = {name: value for name, value in {**FULL, **once}.items() if name != "output_layer.weight" or not tied}
    target = written(write_file(tmp_path / "full.safetensors", full), tmp_path / "m", pp=2)
    last, embedding = rank(target, "mp_rank_00_001", tmp_path), FULL["embedding.word_embeddings.weight"]
    assert same(last["embedding.word_embeddings.weight"], embedding)
    assert same(last["output_layer.weight"], embedding if tied else FULL["output_layer.weight"])
    reshard.convert(target, tmp_path / "back.safetensors", Options(fsync=False))
    assert differing(read_file(tmp_path / "back.safetensors"), full) == []


def test_the_specs_of_transformer_engine(tmp_path: Path) -> None:
    args = {**ARGS, "transformer_impl": "transformer_engine", "pipeline_model_parallel_size": 1}
    for tensor in range(2):
        held = {"model": chunk_of(0, 0, tensor, (2, 1, 1))}
        saved(tmp_path / "m" / "iter_0000007" / f"mp_rank_0{tensor}" / "model_optim_rng.pt", told(args), held)
    found = rank(written(tmp_path / "m", tmp_path / "made"), "mp_rank_00", tmp_path)
    assert "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in found
    assert "decoder.layers.0.input_layernorm.weight" not in found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pp": 3}, "8 layers do not divide among --pp 3 one of: 1, 2, 4, 8"),
        ({"ep": 2}, "--ep 2: the model has no experts leave --ep out"),  # Megatron itself refuses it
        ({"tp": 3}, "embedding.word_embeddings.weight: 8 of [8, 4] among --tp 3"),
        ({"tp": 3}, "--vocab-rows N pads the vocabulary and take fewer ranks"),
        ({"dst_strategy": "s"}, "--to megatron"),
        ({"tp": -1}, "numbers from 1"),
    ],
)
def test_what_does_not_divide_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    from making import write_strategy
    from reshard.layout.tensor import Sharding

    write_strategy(tmp_path / "s", [{"output_layer.weight": Sharding((1,), ((), ()))}])
    options = {k: str(tmp_path / v) if k == "dst_strategy" else v for k, v in options.items()}
    assert said in refused(write_file(tmp_path / "full.safetensors", FULL), tmp_path / "m", **options)


def test_states_have_no_place(tmp_path: Path) -> None:
    state = {"optimizer.state.exp_avg.output_layer.weight": array((8, 4))}
    source = write_file(tmp_path / "full.safetensors", {**FULL, **state})
    assert "--weights-only, or --to torch_dist" in refused(source, tmp_path / "m")
    written(source, tmp_path / "m", names=NameRules(weights_only=True))


def test_padding_that_is_added_is_told_by_the_arguments(tmp_path: Path) -> None:
    source = write_file(tmp_path / "full.safetensors", FULL)
    target = written(source, tmp_path / "m", tp=1, naming=Naming(vocab_rows=12))
    args = inspect(str(target)).args
    assert (args["vocab_size"], args["padded_vocab_size"]) == (8, 12)


@pytest.mark.parametrize("to", ["megatron", "torch_dist"])
def test_an_output_layer_that_is_dropped_is_tied_by_the_arguments(tmp_path: Path, to: str) -> None:
    held = chunk_of(0, 0, 0, (1, 1, 1))
    held["output_layer.weight"] = held["embedding.word_embeddings.weight"]
    place = tmp_path / "m" / "iter_0000007" / "mp_rank_00" / "model_optim_rng.pt"
    saved(place, told({"num_layers": 8, "untie_embeddings_and_output_weights": True}), {"model": held})
    options = Options(to=to, naming=Naming(tied="drop"), fsync=False)
    reshard.convert(tmp_path / "m", tmp_path / "made", options)
    assert inspect(str(tmp_path / "made")).args["untie_embeddings_and_output_weights"] is False


def test_heads_have_to_divide(tmp_path: Path) -> None:
    place = tmp_path / "m" / "iter_0000007" / "mp_rank_00" / "model_optim_rng.pt"
    saved(place, told({"num_layers": 8, "num_attention_heads": 3}), {"model": chunk_of(0, 0, 0, (1, 1, 1))})
    assert "3 attention heads do not divide" in refused(tmp_path / "m", tmp_path / "made", tp=2)


@pytest.mark.parametrize(
    ("to", "part", "said"),
    [("megatron", ".z", "a rank has one tensor of the parts"), ("torch_dist", "", "torch_dist has parts of each")],
)
def test_what_the_other_form_has_in_parts_is_not_made(tmp_path: Path, to: str, part: str, said: str) -> None:
    """Projections of state spaces and of linear attention: Megatron would look for other names than these."""
    held = {**FULL, f"decoder.layers.mixer.in_proj.weight{part}": array((8, 2, 4))}
    source = write_file(tmp_path / "full.safetensors", held)
    with pytest.raises(ReshardError) as caught:
        reshard.convert(source, tmp_path / "made", Options(to=to, fsync=False))
    assert said in caught.value.message


def test_names_of_others_are_not_written(tmp_path: Path) -> None:
    from reshard.names.wishes import Naming

    source = write_file(tmp_path / "full.safetensors", FULL)
    assert "leave --dst-names out" in refused(source, tmp_path / "m", naming=Naming(dst="hf"))


def test_whose_layers_megatron_builds_is_told_or_asked(tmp_path: Path) -> None:
    """The default of Megatron itself is Transformer Engine, which calls norms otherwise."""
    source = write_file(tmp_path / "full.safetensors", FULL)
    local, other = Naming(transformer_impl="local"), Naming(transformer_impl="transformer_engine")
    untold, *asked = (reshard.plan(source, "m", Options(to="megatron", naming=n)) for n in (Naming(), local, other))
    assert [plan.warnings for plan in asked] == [(), ()]
    assert "--transformer-impl transformer_engine" in untold.warnings[-1]
    found = rank(written(source, tmp_path / "other", naming=other), "mp_rank_00", tmp_path)
    assert "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in found
    assert inspect(str(tmp_path / "other")).args["transformer_impl"] == "transformer_engine"
    reshard.convert(tmp_path / "other", tmp_path / "back.safetensors", Options(fsync=False))
    assert differing(read_file(tmp_path / "back.safetensors"), FULL) == []
    (tmp_path / "again").mkdir()
    again = rank(written(tmp_path / "other", tmp_path / "local", naming=local), "mp_rank_00", tmp_path / "again")
    assert "decoder.layers.0.input_layernorm.weight" in again


def test_names_of_a_stack_that_do_not_depend_on_the_layers(tmp_path: Path) -> None:
    """Of dense layers alone: beside experts the norm stands by itself in Transformer Engine."""
    source, experts = (
        write_file(tmp_path / "full.safetensors", FULL),
        {
            name.replace("linear_fc", "experts.experts.linear_fc"): value[:, None] if "linear_fc" in name else value
            for name, value in FULL.items()
            if "layer_norm" not in name
        },
    )
    norms = {"decoder.layers.pre_mlp_layernorm.weight": FULL["decoder.layers.mlp.linear_fc1.layer_norm_weight"]}
    moe = write_file(tmp_path / "moe.safetensors", {**experts, **norms})
    assert reshard.plan(source, "m", Options(to="torch_dist")).warnings == ()
    assert "--transformer-impl" in reshard.plan(moe, "m", Options(to="torch_dist")).warnings[-1]
    for spec, norm in (
        ("local", "mlp.linear_fc1.layer_norm_weight"),
        ("transformer_engine", "pre_mlp_layernorm.weight"),
    ):
        made = reshard.plan(moe, "m", Options(to="torch_dist", naming=Naming(transformer_impl=spec)))
        assert f"decoder.layers.{norm}" in {tensor.name for tensor in made.tensors}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"to": "dcp"}, "no names of Megatron's are written --to megatron or --to torch_dist"),
        ({"to": "torch_dist"}, "keeps its keys in torch_dist leave it out, or --to megatron"),
    ],
)
def test_layers_that_nothing_is_built_of(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    source = write_megatron(tmp_path / "m")
    with pytest.raises(ReshardError) as caught:
        reshard.plan(source, "out", Options(naming=Naming(transformer_impl="transformer_engine"), **options))
    assert said in f"{caught.value.message} {caught.value.hint}"
    with pytest.raises(ReshardError, match="one of: local, transformer_engine"):
        Naming(transformer_impl="te")  # type: ignore[arg-type]
