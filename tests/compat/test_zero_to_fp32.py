"""DeepSpeed's ``zero_to_fp32``: its names, defaults and answers; frozen weights where it loses them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import reshard
from golden.cases import run_reshard
from golden_families.test_recorded import entries, section, unpacked
from making import tree
from reshard.compat.zero_to_fp32 import main


def case(name: str, tmp_path: Path) -> tuple[str, dict[str, dict[str, object]]]:
    """Where it lies, and the answer as the script has it: all that is floating in fp32."""
    made = unpacked("cases", name, tmp_path / name)
    tensors = json.loads((made / "tensors.json").read_text())
    answer = entries(section(tensors, "weights_fp32"), layers=False)
    return str(made / "src"), answer


def held(folder: Path) -> dict[str, np.ndarray]:
    files = [path for path in folder.iterdir() if path.suffix in (".bin", ".safetensors")]
    opened = [reshard.open(path) for path in files]
    return {name: np.asarray(of[name].read()) for of in opened for name in of}


def as_recorded(found: dict[str, np.ndarray], answer: dict[str, dict[str, object]]) -> None:
    """Of what the answer keeps in fp32 the same bytes; the rest is fp32 here."""
    assert found.keys() >= answer.keys()
    for name, entry in answer.items():
        assert list(found[name].shape) == entry["shape"]
        if entry["dtype"] == found[name].dtype.name:
            assert hashlib.sha256(np.ascontiguousarray(found[name]).tobytes()).hexdigest() == entry["sha256"], name
        else:
            assert found[name].dtype == np.float32


@pytest.mark.parametrize("name", ["z2_fp16_r2_tied_buf", "z3_bf16_r4_frozen_tied", "z2_bf16_r2_groups"])
def test_its_answer(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, answer = case(name, tmp_path)
    before = tree(Path(source))
    assert main([source, str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"pytorch_model.bin", ".reshard"}
    found = held(tmp_path / "out")
    as_recorded(found, answer)
    assert found.keys() == answer.keys()
    assert f"state dict with {len(answer)} params" in capsys.readouterr().out
    assert tree(Path(source)) == before


def test_parts_and_their_index(tmp_path: Path) -> None:
    source, answer = case("z3_bf16_r3_frozen", tmp_path)
    assert main([source, str(tmp_path / "out"), "--safe_serialization", "--max_shard_size", "1KB"]) == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    as_recorded(held(tmp_path / "out"), answer)
    assert index["weight_map"].keys() == answer.keys()
    assert len(set(index["weight_map"].values())) > 2
    assert main([source, str(tmp_path / "bin"), "--max_shard_size=1KB"]) == 0
    assert (tmp_path / "bin" / "pytorch_model.bin.index.json").exists()


@pytest.mark.parametrize("leave_out", [False, True])
def test_frozen_weights_are_there_at_stage_1(
    leave_out: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, answer = case("z1_fp16_r2_frozen", tmp_path)
    assert main([source, str(tmp_path / "out"), *(["-e"] if leave_out else [])]) == 0
    found, said = held(tmp_path / "out"), capsys.readouterr().out
    as_recorded(found, answer)
    assert len(found) == len(answer) + (0 if leave_out else 11)
    assert all(value.dtype == np.float32 for value in found.values())
    assert ("left out" if leave_out else "own script loses them at stage 1") in said


def test_a_tag_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, answer = case("z2_fp32_r2_fused_tag", tmp_path)
    (tag,) = (path.name for path in Path(source).iterdir() if path.is_dir())
    (Path(source) / "latest").write_text("elsewhere")
    assert main([source, str(tmp_path / "out")]) == 3
    assert "elsewhere" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run_reshard(["compat", "zero_to_fp32", source, str(tmp_path / "out"), "-t", tag]) == 0
    as_recorded(held(tmp_path / "out"), answer)


def test_what_else_lies_in_the_target_stays(tmp_path: Path) -> None:
    """Many call it with the checkpoint's own folder as the target."""
    source, answer = case("z2_bf16_r2_groups", tmp_path)
    before = tree(Path(source))
    assert main([source, source]) == 0
    as_recorded(held(Path(source)), answer)
    assert {name: content for name, content in tree(Path(source)).items() if name in before} == before


def test_a_folder_of_a_file_s_name(tmp_path: Path) -> None:
    source, answer = case("z2_bf16_r2_groups", tmp_path)
    assert main([source, str(tmp_path / "pytorch_model.bin")]) == 0
    as_recorded(held(tmp_path / "pytorch_model.bin"), answer)


@pytest.mark.parametrize("words", [["--max_shard_size", "5"], ["--max_shard_size", "x"], ["--max_shard_size", "0GB"]])
def test_sizes(words: list[str], tmp_path: Path) -> None:
    source, _ = case("z2_bf16_r2_groups", tmp_path)
    if words[1] == "5":
        assert main([source, str(tmp_path / "out"), *words]) == 0
        assert len(held(tmp_path / "out")) == 23
        return
    with pytest.raises(SystemExit):
        main([source, str(tmp_path / "out"), *words])


def test_without_zero_nothing_says_what_was_frozen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(unpacked("cases", "z0_fp16_r2", tmp_path / "case") / "src")
    assert main([source, str(tmp_path / "out"), "-e"]) == 2
    assert "frozen" in capsys.readouterr().err
    assert main([source, str(tmp_path / "out")]) == 0
    assert all(value.dtype == np.float32 for value in held(tmp_path / "out").values())
