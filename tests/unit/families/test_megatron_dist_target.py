"""Megatron's distributed form as it is written: its keys, extra states, common state, and what is refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

import reshard
from golden_families.test_recorded import unpacked
from making import array, differing, read_file, write_file
from megatron_ranks import FULL, write_megatron
from reshard import Options
from reshard.errors import ReshardError
from reshard.formats.dcp_metadata import read_dcp_metadata
from reshard.formats.torch_records import read_torch_records
from reshard.formats.window import InBytes
from reshard.names.wishes import Naming
from reshard.ops.inspect import inspect
from reshard.planning.names import NameRules


def written(source: Path, target: Path, **options: Any) -> Path:
    reshard.convert(source, target, Options(to="torch_dist", fsync=False, **options))
    return target


def common(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = read_torch_records(InBytes((folder / "common.pt").read_bytes())).pickled.value
    return value


def others(folder: Path) -> set[str]:
    return set(read_dcp_metadata((folder / ".metadata").read_bytes()).others)


@pytest.mark.parametrize("files", [1, 3])
def test_layers_of_ranks_stand_in_stacks(tmp_path: Path, files: int) -> None:
    target = written(write_megatron(tmp_path / "m"), tmp_path / "made", files=files)
    folder = target / "iter_0000007"
    names = [f"__{n}_0.distcp" for n in range(files)]
    assert sorted(p.name for p in folder.iterdir()) == [".metadata", *names, "common.pt", "metadata.json"]
    assert json.loads((folder / "metadata.json").read_text())["sharded_backend"] == "torch_dist"
    reshard.convert(target, tmp_path / "back.safetensors", Options(fsync=False))
    found = read_file(tmp_path / "back.safetensors")
    assert differing(found, FULL) == []
    assert inspect(str(target)).args["num_layers"] == 8


def test_there_is_an_extra_state_for_each_layer_and_linear(tmp_path: Path) -> None:
    folder = written(write_megatron(tmp_path / "m"), tmp_path / "made") / "iter_0000007"
    per_layer = ("self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention")
    per_layer += ("mlp.linear_fc1", "mlp.linear_fc2")
    wanted = {f"decoder.layers.{name}._extra_state/shard_{layer}_8" for name in per_layer for layer in range(8)}
    assert others(folder) == wanted | {
        f"{n}._extra_state/shard_0_1" for n in ("output_layer", "decoder.final_layernorm")
    }


def test_there_is_an_extra_state_for_each_norm_and_for_what_joins_the_embedding(tmp_path: Path) -> None:
    """Transformer Engine's norms have one; the projection of a multi-token layer has one in either spec."""
    stacked = {f"decoder.layers.self_attention.{name}_layernorm": (8, 2) for name in "qk"}
    once = {"mtp.layers.0.eh_proj": (4, 8), "mtp.layers.0.enorm": (4,), "mtp.layers.0.mixer.out_proj": (4, 4)}
    held = {f"{name}.weight": array(shape) for name, shape in {**stacked, **once}.items()}
    held |= {f"mtp.layers.0.mixer.in_proj.weight.{part}": array((2, 4)) for part in "zx"}  # a state space's
    folder = written(write_file(tmp_path / "full.safetensors", {**FULL, **held}), tmp_path / "made") / "release"
    wanted = {f"{name}._extra_state/shard_{layer}_8" for name in stacked for layer in range(8)}
    once["mtp.layers.0.mixer.in_proj"] = ()
    assert wanted | {f"{name}._extra_state/shard_0_1" for name in once} <= others(folder)


@pytest.mark.parametrize("case", ["m_moe_ep2", "m_deepseek_tp2ep2", "m_nonhomogeneous_tp2", "m_gpt2_tp2"])
def test_all_extra_states_of_megatron_s_own_save_are_there(tmp_path: Path, case: str) -> None:
    source = unpacked("cases", case, tmp_path / "case") / "src"
    target = written(source, tmp_path / "made")
    wanted = {name for name in others(source / "iter_0000010") if "_extra_state" in name}
    assert wanted <= others(target / "iter_0000010")


def test_the_common_state_stays_as_it_is(tmp_path: Path) -> None:
    source = unpacked("cases", "m_distopt_fully_reshardable_dp2", tmp_path / "case") / "src"
    common = (source / "iter_0000010" / "common.pt").read_bytes()
    target = written(source, tmp_path / "made")
    assert (target / "iter_0000010" / "common.pt").read_bytes() == common
    reshard.convert(target, tmp_path / "back.safetensors", Options(fsync=False))
    reshard.convert(source, tmp_path / "whole.safetensors", Options(fsync=False))
    back, whole = read_file(tmp_path / "back.safetensors"), read_file(tmp_path / "whole.safetensors")
    assert differing(back, whole) == []


@pytest.mark.parametrize("options", [{"dst_iteration": 20}, {"naming": Naming(vocab_rows=48)}])
def test_what_the_optimizer_keeps_beside_its_states_goes_along(tmp_path: Path, options: dict[str, Any]) -> None:
    """Its groups, their learning rate and the step lie in common.pt: without them Megatron cannot load the states."""
    source = unpacked("cases", "m_distopt_fully_reshardable_dp2", tmp_path / "case") / "src" / "iter_0000010"
    (folder,) = written(source, tmp_path / "made", **options).glob("iter_*")
    before, after = (common(each) for each in (source, folder))
    assert after.keys() == before.keys()
    assert after["optimizer"] == before["optimizer"]
    assert after["iteration"] == options.get("dst_iteration", 10)
    rows = {"padded_vocab_size": 48} if "naming" in options else {}
    assert after["args"].fields.items() >= {**before["args"].fields, **rows}.items()


def test_a_common_state_that_is_not_written_again_is_refused(tmp_path: Path) -> None:
    source = unpacked("cases", "m_distopt_fully_reshardable_dp2", tmp_path / "case") / "src" / "iter_0000010"
    pickled = b"\x80\x04}(\x8c\x09iterationK\x0a\x8c\x03set\x8f(K\x01\x90u."  # {"iteration": 10, "set": {1}}
    with zipfile.ZipFile(source / "common.pt", "w") as made:
        made.writestr("common/data.pkl", pickled)
    with pytest.raises(ReshardError, match="not written again with another iteration") as told:
        written(source, tmp_path / "made", dst_iteration=20)
    assert "leave --dst-iteration" in told.value.hint
    assert (written(source, tmp_path / "kept") / "iter_0000010" / "common.pt").read_bytes()


def test_rows_of_the_vocabulary_are_other_arguments(tmp_path: Path) -> None:
    source = unpacked("cases", "m_vocab_pad_tp2", tmp_path / "case") / "src"
    target = written(source, tmp_path / "made", naming=Naming(vocab_rows=27))
    assert inspect(str(target)).args["padded_vocab_size"] == 27


@pytest.mark.parametrize("chained", ["", "chained_1."])
def test_buckets_are_refused_by_name(tmp_path: Path, chained: str) -> None:
    name = f"{chained}optimizer.distributed.dp_group_idx_0.gbuf_idx_0.bucket_idx_0.param"
    source = write_file(tmp_path / "full.safetensors", {**FULL, name: array((5,))})
    with pytest.raises(ReshardError, match=r"optimizer\.distributed") as caught:
        written(source, tmp_path / "made")
    assert "--weights-only" in caught.value.hint


def test_states_of_several_optimizers_are_states(tmp_path: Path) -> None:
    """Of a model with experts: Megatron chains the optimizer of experts to that of all else."""
    of = "decoder.layers.mlp.linear_fc2.weight"
    states = {f"chained_{n}.optimizer.state.exp_avg.{of}": array(FULL[of].shape, seed=n) for n in range(2)}
    source = write_file(tmp_path / "full.safetensors", {**FULL, **states})
    folder = written(source, tmp_path / "made") / "release"
    assert not [name for name in others(folder) if "optimizer" in name]
    reshard.convert(tmp_path / "made", tmp_path / "back.safetensors", Options(fsync=False))
    assert differing(read_file(tmp_path / "back.safetensors"), {**FULL, **states}) == []
    rules = NameRules(weights_only=True)
    reshard.convert(tmp_path / "made", tmp_path / "weights.safetensors", Options(fsync=False, names=rules))
    assert read_file(tmp_path / "weights.safetensors").keys() == FULL.keys()


def test_without_arguments_megatron_s_own_save_is_not_written_again(tmp_path: Path) -> None:
    target = written(write_megatron(tmp_path / "m"), tmp_path / "made")
    (target / "iter_0000007" / "common.pt").unlink()
    for to in ("torch_dist", "megatron"):
        with pytest.raises(ReshardError, match=r"common\.pt"):
            reshard.convert(target, tmp_path / "again", Options(to=to, fsync=False))
