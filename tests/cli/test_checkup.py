"""reshard doctor PATH: what is wrong with a checkpoint, where, and what to do; what is no checkpoint is no fault."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import reshard
from families.rows import FAMILIES
from golden.cases import run_reshard
from making import array, write_file, write_strategy
from reshard.layout.tensor import Sharding
from reshard.ops.checkup import checkup
from reshard.ops.options import Options


def ranks(folder: Path, *numbers: int, step: int = 10) -> Path:
    for rank in numbers:
        write_file(folder / f"rank_{rank}/m-1_{step}.ckpt", {"w": array((2, 4), seed=rank)})
    return folder


def one_fault(path: Path) -> tuple[str, str, str]:
    found = checkup(str(path))
    assert found is not None
    (fault,) = found.faults
    return fault.what, fault.where.removeprefix(f"{path}/"), fault.hint


def test_exit_code_words_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_file(tmp_path / "model.safetensors", {"w": array((4,))})
    assert run_reshard(["doctor", str(path)]) == 0
    assert "whole by its headers" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-3])
    assert run_reshard(["doctor", str(path)]) == 1
    said = capsys.readouterr().out
    assert f"problem: {path}: file has " in said
    assert "\n  hint: copy the file again" in said
    assert run_reshard(["doctor", str(path), "--json"]) == 1
    (told,) = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [fault["hint"] for fault in told["faults"]] == ["copy the file again"]


def test_every_broken_file_is_told(tmp_path: Path) -> None:
    ranks(tmp_path, 0, 1, 2, 3)
    for rank in (1, 3):
        file = tmp_path / f"rank_{rank}/m-1_10.ckpt"
        file.write_bytes(file.read_bytes()[:-5])
    found = checkup(str(tmp_path))
    assert found is not None
    assert sorted(fault.where for fault in found.faults) == [str(tmp_path / f"rank_{r}/m-1_10.ckpt") for r in (1, 3)]


def test_a_folder_that_may_not_be_looked_into_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, listed = ranks(tmp_path, 0, 1), os.listdir

    def refusing(folder: str) -> list[str]:
        if str(folder).endswith("rank_1"):
            raise PermissionError(13, "Permission denied", folder)
        return listed(folder)

    monkeypatch.setattr(os, "listdir", refusing)
    what, where, hint = one_fault(path)
    assert (what, where) == ("not allowed: Permission denied", "rank_1")
    assert hint.startswith("check owner and mode")


def test_ranks_at_different_steps_and_a_gap(tmp_path: Path) -> None:
    ranks(ranks(tmp_path, 0, 1), 3, step=9)
    found = checkup(str(tmp_path))
    assert found is not None
    mixed, gap = found.faults
    assert mixed.what == "ranks are at different steps (epoch_step: 1_9: rank 3; 1_10: ranks 0, 1)"
    assert "--suffix" in mixed.hint
    assert gap.what == "no weight file of rank 2, and of rank 3 there is one"
    assert not any("different steps" in note for note in found.notes)


def test_ranks_that_are_all_there(tmp_path: Path) -> None:
    found = checkup(str(ranks(tmp_path, 0, 1)))
    assert found is not None
    assert not found.faults


def test_a_slice_of_ours_that_lies_nowhere(tmp_path: Path) -> None:
    write_file(tmp_path / "m.safetensors", {"w": array((4, 4))})
    strategy = write_strategy(tmp_path / "s", [{"w": Sharding((2,), ((0,), ()))}])
    reshard.convert(tmp_path / "m.safetensors", tmp_path / "out", Options(dst_strategy=str(strategy)))
    shutil.rmtree(tmp_path / "out/rank_1")
    what, _, hint = one_fault(tmp_path / "out")
    assert what == "slices of rank 1 that no file holds, of 1 tensor as w"
    assert hint.startswith("bring the missing files")


@pytest.mark.parametrize("single", [False, True])
def test_a_target_that_is_half_written(tmp_path: Path, single: bool) -> None:
    target = tmp_path / ("out.safetensors" if single else "out")
    notes = tmp_path / ".reshard/out.safetensors" if single else target / ".reshard"
    notes.mkdir(parents=True)
    (notes / "begun.json").write_text('{"plan":"0"}')
    what, where, hint = one_fault(target)
    assert what == "a conversion into it has not ended: 0 files of it whole so far"
    assert where == str(target)
    assert "--resume" in hint


def test_ranks_that_were_made_alone_count(tmp_path: Path) -> None:
    source = write_file(tmp_path / "m.safetensors", {"w": array((4,))})
    strategy = write_strategy(tmp_path / "s", [{"w": Sharding((2,), ((0,),))}])
    options = Options(dst_strategy=str(strategy), ranks=frozenset({1}), fsync=False)
    reshard.convert(source, tmp_path / "out", options)
    found = checkup(str(tmp_path / "out"))
    assert found is not None
    assert (found.faults, found.files, found.tensors) == ((), 1, 1)
    assert found.untold == ("1 of 2 ranks were made so far, as --ranks asked",)
    os.truncate(tmp_path / "out/rank_1/checkpoint_1.safetensors", 3)
    assert "3 bytes, and" in one_fault(tmp_path / "out")[0]
    (tmp_path / "out/.reshard/done/0.json").write_text("{}")  # of a run for other ranks, killed
    assert "1 file of it whole so far" in one_fault(tmp_path / "out")[0]


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    assert one_fault(tmp_path / "link")[0] == "a link that leads nowhere"


def test_an_index_that_names_what_is_not_there(tmp_path: Path) -> None:
    write_file(tmp_path / "model-00001-of-00002.safetensors", {"w": array((4,))})
    names = {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    what, where, _ = one_fault(tmp_path)
    assert what == "files that it names are missing:\nmodel-00002-of-00002.safetensors"
    assert where == "model.safetensors.index.json"


def test_a_pickle_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.")
    _, where, hint = one_fault(tmp_path)
    assert where == "pytorch_model.bin"
    assert hint


@pytest.mark.parametrize(
    ("family", "file"),
    [
        ("DCP, a grid", "__0_0.distcp"),
        ("DeepSpeed, stage 2", "*/*_optim_states.pt"),
        ("Megatron, rank folders", "**/model_optim_rng.pt"),
        ("Checkpoint 2.0", "**/*model-*.safetensors"),
    ],
)
def test_a_file_of_a_family_that_is_cut_short(tmp_path: Path, family: str, file: str) -> None:
    source = FAMILIES[family](tmp_path).path
    whole = checkup(str(source))
    assert whole is not None
    assert not whole.faults
    broken = min(source.glob(file))
    broken.chmod(0o644)
    broken.write_bytes(broken.read_bytes()[:-60])
    found = checkup(str(source))
    assert found is not None
    assert any(broken.name in f"{fault.where} {fault.what}" for fault in found.faults)


def noted(path: Path) -> tuple[Any, ...]:
    found = checkup(str(path))
    assert found is not None
    assert not found.faults
    return found.notes


def test_what_is_no_checkpoint_is_no_fault(tmp_path: Path) -> None:
    assert checkup(str(tmp_path / "nothing")) is None
    assert noted(tmp_path) == ("it is empty",)
    (tmp_path / "notes.txt").write_text("hello")
    assert noted(tmp_path)[0] == "no checkpoint: it holds 1 .txt"
    ranks(tmp_path / "runs/a", 0)
    write_file(tmp_path / "b/model.safetensors", {"w": array((4,))})
    below = f"give one of what lies below: {tmp_path}/b or {tmp_path}/runs/a"
    assert noted(tmp_path) == ("no checkpoint: it holds 2 folders, 1 .txt", below)
    for name in ("x", "y"):
        write_file(tmp_path / f"two/{name}.safetensors", {"w": array((4,))})
    (note,) = noted(tmp_path / "two")
    assert note.startswith("2 full checkpoints in one folder")


def test_checkpoints_of_several_families_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for family, name in (("DCP, uneven rows", "step-7"), ("FSDP2, uneven rows", "actor")):
        shutil.copytree(FAMILIES[family](tmp_path / f"made-{name}").path, tmp_path / "runs" / name)
    (note,) = noted(tmp_path / "runs")
    assert note.startswith("checkpoints of several families lie here: step-7 (dcp), actor (fsdp)")
    assert run_reshard(["inspect", str(tmp_path / "runs")]) == 2
    assert f"hint: give one of them: {tmp_path}/runs/step-7 or {tmp_path}/runs/actor" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["latest", "latest_checkpointed_iteration.txt", "adapter_config.json", "config.json", "m.safetensors.part"]
)
def test_what_goes_with_weights_that_are_not_there_is_a_fault(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    what, *_ = one_fault(tmp_path)
    assert name in what or "it holds 1 .part" in what


def test_an_index_alone_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-00001-of-00002.safetensors"}}')
    what, where, _ = one_fault(tmp_path)
    assert what == "files that it names are missing:\nmodel-00001-of-00002.safetensors"
    assert where == "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("family", "file", "told"),
    [
        ("FSDP2, uneven rows", "model_world_size_4_rank_3.pt", "files of ranks are missing"),
        ("FSDP2, uneven rows", "optim_world_size_4_rank_3.pt", "optim_world_size_4_rank_3.pt is missing"),
        ("ours", "rank_7/checkpoint_7.ckpt", "rank_7/checkpoint_7.ckpt is missing"),
        ("Checkpoint 2.0", "*/*model-0000007-*", "model-0000007-0000008.safetensors is missing"),
        ("Checkpoint 2.0, one device", "*/*model-0*", "files of weights are missing"),
        ("FSDP2, uneven rows", "extra_state_world_size_4_rank_3.pt", "extra_state_world_size_4_rank_3.pt is missing"),
        ("Megatron, torch_dist of experts", "*/common.pt", "has no common.pt"),
        ("Megatron, torch_dist of experts", "*/metadata.json", "has no metadata.json"),
        ("Megatron, flattened ranges", "metadata.json", "has no metadata.json"),
        ("parts", "*.index.json", "it was written, and is missing"),
        ("Checkpoint 2.0 that we wrote", "latest_*", "it was written, and is missing"),
        ("parts", ".reshard/manifest.json", "reshard wrote it, and its manifest is missing"),
        ("ours", ".reshard/manifest.json", "reshard wrote it, and its manifest is missing"),
    ],
)
def test_a_file_of_a_family_that_is_missing(tmp_path: Path, family: str, file: str, told: str) -> None:
    source = FAMILIES[family](tmp_path).path
    min(source.glob(file)).unlink()
    what, *_ = one_fault(source)
    assert told in what


def test_a_manifest_that_is_not_trusted(tmp_path: Path) -> None:
    source = FAMILIES["ours"](tmp_path).path
    (source / ".reshard/manifest.json").write_text("{")
    what, *_ = one_fault(source)
    assert what.startswith("its manifest is not trusted: ")


@pytest.mark.parametrize("family", ["parts", "DCP, ours", "Checkpoint 2.0 that we wrote"])
def test_a_manifest_that_cannot_be_read(tmp_path: Path, family: str) -> None:
    source = FAMILIES[family](tmp_path).path
    manifest = source / ".reshard/manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    what, *_ = one_fault(source)
    assert what.startswith("a manifest that cannot be read: ")


def test_a_file_of_another_length_than_was_written(tmp_path: Path) -> None:
    source = FAMILIES["DCP, ours"](tmp_path).path
    with (source / "__1_0.distcp").open("ab") as file:
        before = file.tell()
        file.write(b"\0" * 8)
    what, where, _ = one_fault(source)
    assert (what, where) == (f"{before + 8:,} bytes, and {before:,} were written", "__1_0.distcp")


@pytest.mark.parametrize("text", ["", '{"model_type": "lla', "[]", "[" * 9_999])
def test_a_configuration_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    file = write_file(tmp_path / "model.safetensors", {"w": array((4,))})
    (tmp_path / "config.json").write_text("{}")
    found = checkup(str(tmp_path))
    assert found is not None
    assert not found.faults
    (tmp_path / "config.json").write_text(text)
    assert one_fault(tmp_path)[1] == "config.json"
    assert one_fault(file)[1] == str(tmp_path / "config.json")


def test_a_description_of_megatron_s_that_cannot_be_read(tmp_path: Path) -> None:
    source = FAMILIES["Megatron, flattened ranges"](tmp_path).path
    (source / "metadata.json").chmod(0o644)
    (source / "metadata.json").write_text("{")
    what, where, _ = one_fault(source)
    assert (what, where) == ("it does not say a sharded_backend", "metadata.json")


@pytest.mark.parametrize(
    ("family", "file", "why"),
    [
        ("rank folders", "rank_7", "no strategy says of how many ranks it is"),
        ("DCP, as Hugging Face's", "shard-00004-*", "nothing says how many shards there were"),
    ],
)
def test_a_last_file_of_which_nothing_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, file: str, why: str
) -> None:
    source = FAMILIES[family](tmp_path).path
    for last in source.glob(file):
        shutil.rmtree(last) if last.is_dir() else last.unlink()
    assert run_reshard(["doctor", str(source)]) == 0
    said = capsys.readouterr().out
    assert "whether it is whole, cannot tell" in said
    assert f"  cannot tell: {why}" in said
    assert "whole by its headers" not in said


def test_what_a_write_left_over_is_noted(tmp_path: Path) -> None:
    write_file(tmp_path / "m.safetensors", {"w": array((4,))})
    (tmp_path / "m.safetensors.part").write_bytes(b"x")
    assert "m.safetensors.part" in noted(tmp_path)[0]


def test_strategy_files_are_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FAMILIES["rank folders"](tmp_path)
    assert run_reshard(["inspect", str(tmp_path / "s")]) == 3
    assert f"hint: see them: reshard strategy show {tmp_path}/s" in capsys.readouterr().err


def test_a_folder_of_checkpoints_is_told_by_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_file(tmp_path / "exp/model.safetensors", {"w": array((4,))})
    assert run_reshard(["inspect", str(tmp_path)]) == 3
    assert f"hint: give one of what lies below: {tmp_path}/exp" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("run.yaml", "reshard strategy make --config "),
        ("notes.txt", "give a weight file, or the folder"),
        ("config.json", "give the folder that it lies in"),
        ("model.safetensors", "download the file again"),
    ],
)
def test_text_is_told_what_it_is_good_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, hint: str
) -> None:
    (tmp_path / name).write_text('{"a": 1}' if name.endswith("json") else "seed: 1, use_parallel: True")
    assert run_reshard(["inspect", str(tmp_path / name)]) == 3
    assert hint in capsys.readouterr().err
