"""Megatron's folders: which is meant, which ranks there are, how each tensor lies in the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from making import array, differing, read_file, same, write_file
from megatron_ranks import ARGS, FULL, chunk_of, saved, told, write_megatron, write_torch
from reshard import Options
from reshard.errors import InputError, UsageError
from reshard.formats.dcp_written import WrittenChunk, metadata_bytes
from reshard.formats.distcp import Distcp
from reshard.formats.pickled import Global, Record
from reshard.formats.torch_file import torch_bytes
from reshard.index import Extent, TensorSpec
from reshard.names.wishes import Naming
from reshard.ops.inspect import inspect

IT = "iter_0000007"


def converted(source: Path, folder: Path, **options: Any) -> dict[str, np.ndarray]:
    reshard.convert(source, folder / "o.safetensors", Options(fsync=False, **options))
    return read_file(folder / "o.safetensors")


def refused(source: Path) -> str:
    with pytest.raises(InputError) as caught:
        inspect(str(source))
    return f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("chunks", [1, 2])
def test_layers_count_anew_on_every_stage_and_chunk(tmp_path: Path, chunks: int) -> None:
    write_megatron(tmp_path / "m", chunks=chunks)
    assert differing(converted(tmp_path / "m", tmp_path), FULL) == []


def test_arguments_are_shown(tmp_path: Path) -> None:
    write_megatron(tmp_path / "m")
    found = inspect(str(tmp_path / "m"))
    assert found.args == ARGS
    assert found.family == "Megatron rank folders, tp 2, pp 2, 2 virtual stages, iteration 7"


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    write_megatron(tmp_path / "m")
    (tmp_path / "m" / IT / "mp_rank_01_001" / "model_optim_rng.pt").unlink()
    assert "mp_rank_01_001/model_optim_rng.pt" in refused(tmp_path / "m")
    (tmp_path / "m" / IT / "mp_rank_01_001").rmdir()
    assert "mp_rank_01_001" in refused(tmp_path / "m")


def test_files_of_two_saves_are_told(tmp_path: Path) -> None:
    write_megatron(tmp_path / "m", chunks=1)
    place = tmp_path / "m" / IT / "mp_rank_01_000" / "model_optim_rng.pt"
    saved(place, told(iteration=6), {"model": chunk_of(0, 0, 1, (2, 2, 1))})
    assert "iteration: 7 in mp_rank_00_000/model_optim_rng.pt, 6 in mp_rank_01_000" in refused(tmp_path / "m")


@pytest.mark.parametrize("swapped", [(0, 1), (0, 2), (1, 3)])
def test_files_in_each_other_s_folders_are_told(tmp_path: Path, swapped: tuple[int, int]) -> None:
    """Each says which process saved it; of eight the first of each pair of replicas did."""
    places = []
    for number in range(4):
        tensor, stage = number % 2, number // 2
        places.append(tmp_path / IT / f"mp_rank_{tensor:02d}_{stage:03d}" / "model_optim_rng.pt")
        args = {**ARGS, "rank": tensor + 4 * stage, "world_size": 8}
        saved(places[-1], told(args), {"model": chunk_of(stage, 0, tensor, (2, 2, 1))})
    assert differing(converted(tmp_path / IT, tmp_path), FULL) == []
    one, other = (places[number] for number in swapped)
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    assert "files lie in the folders of other ranks" in refused(tmp_path / IT)


def test_a_rank_beyond_the_arguments_is_of_another_save(tmp_path: Path) -> None:
    write_megatron(tmp_path / "m", chunks=1)
    saved(tmp_path / "m" / IT / "mp_rank_02_000" / "model_optim_rng.pt", told(), {"model": {}})
    assert "mp_rank_02_000: the arguments tell of tp 2, pp 2, ep 1" in refused(tmp_path / "m")


def test_a_lost_layer_is_told(tmp_path: Path) -> None:
    write_megatron(tmp_path / "m", chunks=1)
    for tensor in range(2):
        held = {n: v for n, v in chunk_of(1, 0, tensor, (2, 2, 1)).items() if ".layers.3." not in n}
        saved(tmp_path / "m" / IT / f"mp_rank_0{tensor}_001" / "model_optim_rng.pt", told(), {"model": held})
    assert "the stages hold 7 layers, and the arguments tell of 8" in refused(tmp_path / "m")


def test_the_folder_of_one_rank_is_no_model(tmp_path: Path) -> None:
    write_megatron(tmp_path / "m")
    assert "the folder of one rank" in refused(tmp_path / "m" / IT / "mp_rank_00_000")
    assert "one file of a checkpoint" in refused(tmp_path / "m" / IT / "mp_rank_00_000" / "model_optim_rng.pt")


def test_a_name_whose_cut_nobody_knows_is_refused(tmp_path: Path) -> None:
    args = {**ARGS, "num_layers": None, "pipeline_model_parallel_size": 1}
    for tensor in range(2):
        held = {"decoder.mixer.in_proj.weight": array((4, 4), seed=tensor)}
        saved(tmp_path / IT / f"mp_rank_0{tensor}" / "model_optim_rng.pt", told(args), {"model": held})
    assert "decoder.mixer.in_proj.weight: 2 tensor-parallel ranks hold it" in refused(tmp_path / IT)


def test_a_weight_that_is_not_plain_numbers_does_not_go_missing(tmp_path: Path) -> None:
    """As the float8 parameters of Transformer Engine, which are of a class of their own."""
    given = (Global("torch._utils", "_rebuild_wrapper_subclass"), Global("te.tensor", "Float8Tensor"), (), {})
    value = {"args": {}, "model": {"a.weight": Record(Global("torch._tensor", "_rebuild_from_type_v2"), given)}}
    write_torch(tmp_path / IT / "mp_rank_00" / "model_optim_rng.pt", value, {})
    assert "tensor 'a.weight' is a tensor of class te.tensor.Float8Tensor" in refused(tmp_path / IT)


def test_names_of_before_the_core_are_refused(tmp_path: Path) -> None:
    place = tmp_path / IT / "mp_rank_00" / "model_optim_rng.pt"
    saved(place, {"checkpoint_version": 2.0, "model": {"language_model": {"encoder": 1}}}, {})
    assert "checkpoint_version 2.0" in refused(tmp_path / IT)


@pytest.mark.parametrize("ranks", [1, 2])
def test_experts_that_lie_in_one_tensor_are_turned(tmp_path: Path, ranks: int) -> None:
    """Grouped: (hidden, experts x rows) is read as (experts, hidden, rows)."""
    experts, hidden, rows = 4, 6, 8
    first, second = array((experts, 2 * rows, hidden), seed=1), array((experts, hidden, rows), seed=2)
    args = {"tensor_model_parallel_size": ranks, "expert_model_parallel_size": 2, "num_experts": experts}
    for e in range(2):
        for t in range(ranks):
            mine = slice(2 * e, 2 * e + 2)
            gate, up = (np.split(half, ranks, axis=1)[t] for half in np.split(first[mine], 2, axis=1))
            one = np.concatenate([gate, up], axis=1).transpose(0, 2, 1)
            two = np.split(second[mine], ranks, axis=2)[t].transpose(0, 2, 1)
            held = {
                "decoder.layers.0.mlp.router.weight": array((experts, hidden), seed=3),
                "decoder.layers.0.mlp.experts.weight1": np.ascontiguousarray(one).reshape(hidden, -1),
                "decoder.layers.0.mlp.experts.weight2": np.ascontiguousarray(two).reshape(-1, hidden),
            }
            saved(tmp_path / IT / f"mp_rank_0{t}_00{e}" / "model_optim_rng.pt", told(args), {"model": held})
    found = converted(tmp_path / IT, tmp_path)
    assert same(found["decoder.layers.mlp.experts.experts.linear_fc1.weight"], first[None])
    assert same(found["decoder.layers.mlp.experts.experts.linear_fc2.weight"], second[None])


@pytest.mark.parametrize("form", ["local_experts.{}.linear_fc1.weight", "linear_fc1.weight{}"])
def test_experts_of_ranks_are_numbered_through(tmp_path: Path, form: str) -> None:
    first, second = array((4, 8, 6), seed=1), array((4, 6, 4), seed=2)
    args = {"expert_model_parallel_size": 2, "num_experts": 4, "moe_layer_freq": [1]}
    for e in range(2):
        held = {f"decoder.layers.0.mlp.experts.{form.format(i)}": first[2 * e + i] for i in range(2)}
        held |= {
            f"decoder.layers.0.mlp.experts.{form.format(i).replace('fc1', 'fc2')}": second[2 * e + i] for i in range(2)
        }
        saved(tmp_path / IT / f"mp_rank_00_00{e}" / "model_optim_rng.pt", told(args), {"model": held})
    found = converted(tmp_path / IT, tmp_path)
    assert same(found["decoder.layers.0.mlp.experts.experts.linear_fc1.weight"], first)
    assert same(found["decoder.layers.0.mlp.experts.experts.linear_fc2.weight"], second)


def test_without_arguments_ranks_of_experts_are_not_taken_for_stages(tmp_path: Path) -> None:
    embedding, expert = array((6, 4), seed=1), "decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight"
    for e in range(2):
        held = {"embedding.word_embeddings.weight": embedding, expert: array((4, 4), seed=e)}
        saved(tmp_path / IT / f"mp_rank_00_00{e}" / "model_optim_rng.pt", {}, {"model": held})
    assert "no arguments say whether its rank is one of a pipeline or of experts" in refused(tmp_path / IT)
    saved(tmp_path / IT / "mp_rank_00_001" / "model_optim_rng.pt", {}, {"model": {expert: array((4, 4), seed=1)}})
    assert "pp 2" in inspect(str(tmp_path / IT)).family


def test_experts_that_are_cut_otherwise_are_told_before_ranks_are_missed(tmp_path: Path) -> None:
    """With experts that are not cut Megatron numbers them along tensor-parallel ranks: two files of two ranks each."""
    args = {"tensor_model_parallel_size": 2, "expert_model_parallel_size": 2, "num_experts": 4}
    for n in range(2):
        value = told({**args, "expert_tensor_parallel_size": 1})
        saved(tmp_path / IT / f"mp_rank_0{n}_00{n}" / "model_optim_rng.pt", value, {"model": {}})
    said = refused(tmp_path / IT)
    assert "experts are cut 1 ways and all else 2 ways" in said
    assert "save it as torch_dist" in said


@pytest.mark.parametrize(
    ("said", "same_bytes", "kept"), [(None, True, False), (None, False, True), (False, True, False)]
)
def test_the_last_stage_s_copy_of_the_embedding(
    tmp_path: Path, said: bool | None, same_bytes: bool, kept: bool
) -> None:
    args = {"pipeline_model_parallel_size": 2, "untie_embeddings_and_output_weights": said}
    embedding = array((4, 2), seed=1)
    ranks = [
        {"embedding.word_embeddings.weight": embedding},
        {"output_layer.weight": embedding if same_bytes else array((4, 2), seed=2)},
    ]
    for stage, held in enumerate(ranks):
        saved(tmp_path / IT / f"mp_rank_00_00{stage}" / "model_optim_rng.pt", told(args), {"model": held})
    assert ("output_layer.weight" in converted(tmp_path / IT, tmp_path)) is kept


def test_copies_that_are_said_to_be_tied_and_differ_are_refused(tmp_path: Path) -> None:
    args = {"pipeline_model_parallel_size": 2, "untie_embeddings_and_output_weights": False}
    ranks = [{"embedding.word_embeddings.weight": array((4, 2))}, {"output_layer.weight": array((4, 2), seed=2)}]
    for stage, held in enumerate(ranks):
        saved(tmp_path / IT / f"mp_rank_00_00{stage}" / "model_optim_rng.pt", told(args), {"model": held})
    assert "the arguments say that they are tied" in refused(tmp_path / IT)


def test_saves_of_a_folder(tmp_path: Path) -> None:
    saves = tmp_path / "saves"
    write_megatron(saves)
    (saves / IT).rename(saves / "release")
    assert (
        "iter_0000007 is what latest_checkpointed_iteration.txt says, and is not there; there are: release"
        in refused(saves)
    )
    (saves / "latest_checkpointed_iteration.txt").write_text("release")
    assert differing(converted(saves, tmp_path), FULL) == []
    (saves / "latest_checkpointed_iteration.txt").unlink()
    assert any("no latest_checkpointed" in warning for warning in inspect(str(saves)).warnings)
    write_megatron(saves)
    (saves / "latest_checkpointed_iteration.txt").unlink()
    assert "2 saves and no latest_checkpointed_iteration.txt: iter_0000007, release" in refused(saves)
    assert differing(converted(saves, tmp_path / "x", iteration=7), FULL) == []


def test_the_common_state_may_be_an_entry(tmp_path: Path) -> None:
    """As Megatron-LM of 2026 saves it: without common.pt."""
    weight = array((4,))
    item = torch_bytes([told()], {})
    frame = Distcp().frame({"w": TensorSpec("float32", (4,))}, {}, {})
    tensor = frame.filled({"w": weight.tobytes()})
    folder = tmp_path / IT
    folder.mkdir()
    (folder / "__0_0.distcp").write_bytes(item + tensor)
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    chunk = WrittenChunk((0,), (4,), "__0_0.distcp", Extent(len(item), len(tensor)))
    random = ("rng_state/shard_0_1.0.torch_rng_state", (TensorSpec("float32", (4,)), [chunk]))
    metadata = metadata_bytes(
        {"w": (TensorSpec("float32", (4,)), [chunk]), random[0]: random[1]},
        {"common_state/shard_0_1": ("__0_0.distcp", Extent(0, len(item)))},
    )
    (folder / ".metadata").write_bytes(metadata)
    found = inspect(str(tmp_path / IT))
    assert found.args["num_layers"] == ARGS["num_layers"]
    assert [row.name for row in found.tensors] == ["w"]
    assert any("belongs to objects" in warning for warning in found.warnings)
    assert same(converted(tmp_path / IT, tmp_path)["w"], weight)


def test_split_gates_and_numbered_experts_are_one_to_others(tmp_path: Path) -> None:
    """As ``singleton_local_shards`` keeps them."""
    gate, up, down = (array((2, 3, 4), seed=1), array((2, 3, 4), seed=2), array((2, 4, 3), seed=3))
    tensors = {"decoder.layers.mlp.router.weight": array((1, 2, 4), seed=4)}
    before = "decoder.layers.0.mlp.experts.experts"
    for expert in range(2):
        tensors[f"{before}.{expert}.linear_fc1.weight_w"] = gate[expert]
        tensors[f"{before}.{expert}.linear_fc1.weight_v"] = up[expert]
        tensors[f"{before}.{expert}.linear_fc2.weight"] = down[expert]
    source = write_file(tmp_path / "full.safetensors", tensors)
    found = converted(source, tmp_path, naming=Naming(dst="megatron"))
    assert same(found["decoder.layers.mlp.experts.experts.linear_fc1.weight"], np.concatenate([gate, up], 1)[None])
    assert same(found["decoder.layers.mlp.experts.experts.linear_fc2.weight"], down[None])
    del tensors[f"{before}.1.linear_fc1.weight_v"]
    with pytest.raises(InputError, match="which are not all, or unlike"):
        converted(write_file(tmp_path / "less.safetensors", tensors), tmp_path / "x", naming=Naming(dst="megatron"))


def test_multi_token_layers_are_called_as_the_distributed_form_calls_them(tmp_path: Path) -> None:
    """Megatron-LM of 2026 has another name for them on its ranks."""
    on_rank, kept = (f"mtp.layers.0.{name}.input_layernorm.weight" for name in ("mtp_model_layer", "transformer_layer"))
    source = write_file(tmp_path / "full.safetensors", {**FULL, on_rank: array((4,))})
    assert converted(source, tmp_path, naming=Naming(dst="megatron")).keys() == {*FULL, kept}


def test_rows_of_states_follow_the_vocabulary_s(tmp_path: Path) -> None:
    name = "optimizer.state.exp_avg.output_layer.weight"
    source = write_file(tmp_path / "full.safetensors", {**FULL, name: array((8, 4))})
    assert same(converted(source, tmp_path, naming=Naming(vocab_rows=7))[name], array((8, 4))[:7])
    write_file(source, {**FULL, name: array((32,))})
    with pytest.raises(InputError, match="keeps its rows"):
        converted(source, tmp_path / "x", naming=Naming(vocab_rows=7))


@pytest.mark.parametrize("naming", [Naming(vocab_rows=6), Naming(tied="drop")])
def test_a_vocabulary_that_is_not_found_is_told(tmp_path: Path, naming: Naming) -> None:
    """As NeMo saves it: each name begins with what wraps the model."""
    source = write_file(tmp_path / "full.safetensors", {f"module.{name}": value for name, value in FULL.items()})
    with pytest.raises(UsageError, match="embedding") as told:
        converted(source, tmp_path / "x", naming=naming)
    assert told.value.hint == r"--rename '^module\.=>'"


@pytest.mark.parametrize("said", ["apply_layernorm_1p", "attention_output_gate", "rotary_interleaved"])
def test_numbers_that_mean_something_else_are_not_given_to_others(tmp_path: Path, said: str) -> None:
    place = tmp_path / IT / "mp_rank_00" / "model_optim_rng.pt"
    saved(place, told({"num_layers": 8, said: True}), {"model": chunk_of(0, 0, 0, (1, 1, 1))})
    with pytest.raises(InputError, match=said):
        converted(tmp_path / IT, tmp_path / "x", naming=Naming(dst="hf"))
