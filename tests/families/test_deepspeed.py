"""DeepSpeed folders from which files are missing, or that hold those of another save: told by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import reshard
from golden_families.test_recorded import unpacked
from reshard.errors import CheckpointError, UsageError
from reshard.ops.options import Options


def folder(name: str, tmp_path: Path) -> Path:
    return unpacked("cases", name, tmp_path / name) / "src" / "global_step2"


@pytest.mark.parametrize(
    ("case", "missing"),
    [
        ("tp2_z0_bf16", "mp_rank_01_model_states.pt"),
        ("tp2_z1_bf16", "mp_rank_01_model_states.pt"),
        ("tp2_z1_bf16", "mp_rank_00_model_states.pt"),
        ("z2_bf16_r3_paramalign", "mp_rank_00_model_states.pt"),
        ("z2_bf16_r3_paramalign", "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"),
        ("z3_bf16_r3_frozen", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        ("pp2_z0_fp16", "layer_05-model_states.pt"),
        ("pp2_z0_fp16", "layer_01-model_states.pt"),
        ("moe2_ep2_z0_bf16", "layer_1_expert_1_mp_rank_00_model_states.pt"),
        ("moe2_ep2_z0_bf16", "layer_0_expert_0_mp_rank_00_model_states.pt"),
    ],
)
def test_a_missing_file_is_told(case: str, missing: str, tmp_path: Path) -> None:
    source = folder(case, tmp_path)
    (source / missing).unlink()
    with pytest.raises(CheckpointError) as caught:
        reshard.plan(source, "out.safetensors")
    assert "missing" in str(caught.value) or "bring" in str(caught.value)


def test_optimizer_files_alone_are_no_model(tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path)
    (source / "mp_rank_00_model_states.pt").unlink()
    (source / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(CheckpointError, match="model states"):
        reshard.plan(source, "out.safetensors")


def test_files_of_two_saves_under_one_name_are_refused(tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path)
    other = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shutil.copy(source / f"bf16_{other}", source / other)
    with pytest.raises(CheckpointError, match="two files of one rank"):
        reshard.plan(source, "out.safetensors")


def test_full_weights_beside_have_to_be_told_apart(tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path).parent
    reshard.convert(source, source / "model.safetensors", Options(names=reshard.NameRules(weights_only=True)))
    with pytest.raises(UsageError, match="lie here"):
        reshard.plan(source, "out.safetensors")
    zero = reshard.plan(source, "out.safetensors", Options(family="deepspeed"))
    assert len(zero.tensors) > len(reshard.plan(source, "out.safetensors", Options(family="full")).tensors) > 0


def test_an_iteration_is_a_tag(tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path).parent
    assert reshard.plan(source, "out.safetensors", Options(iteration=2)).tensors
    with pytest.raises(CheckpointError, match=r"global_step3 is asked for.*global_step2"):
        reshard.plan(source, "out.safetensors", Options(iteration=3))
