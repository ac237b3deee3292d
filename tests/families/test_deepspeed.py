"""DeepSpeed folders from which files are missing, or that hold those of another save: told by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import reshard
from golden_families.test_recorded import unpacked
from reshard.errors import CheckpointError, UsageError
from reshard.ops.options import Options
from reshard.storage.disk import Disk
from reshard.storage.storage import Entry


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


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("z2_bf16_r2_groups", "mp_rank_00_model_states.pt"),
        ("z2_bf16_r2_groups", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        ("z3_bf16_r3_frozen", "zero_pp_rank_0_mp_rank_00_model_states.pt"),
        ("pp2_z0_fp16", "layer_01-model_states.pt"),
        ("moe2_ep2_z0_bf16", "layer_0_expert_0_mp_rank_00_model_states.pt"),
        ("moe2_ep2_z0_bf16", "expp_rank_0_mp_rank_00_optim_states.pt"),
    ],
)
def test_one_file_of_many_does_not_pass_for_the_model(case: str, name: str, tmp_path: Path) -> None:
    source = folder(case, tmp_path)
    for refused in (reshard.plan, lambda path, _: reshard.open(path)):
        with pytest.raises(CheckpointError, match=r"one file of a checkpoint") as caught:
            refused(source / name, "out.safetensors")
        assert str(source) in str(caught.value)
    assert reshard.plan(source / name, "out.safetensors", Options(family="full")).tensors


def test_folders_of_other_tags_are_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be a round trip in object storage."""
    source = folder("z2_bf16_r2_groups", tmp_path).parent
    for step in range(3, 9):
        shutil.copytree(source / "global_step2", source / f"global_step{step}")
    listed: list[str] = []
    real = Disk.entries

    def entries(self: Disk, path: str) -> list[Entry]:
        listed.append(Path(path).name)
        return real(self, path)

    monkeypatch.setattr(Disk, "entries", entries)
    reshard.plan(source, "out.safetensors")
    assert listed.count("global_step2") <= 2
    assert not {f"global_step{step}" for step in range(3, 9)} & set(listed)
