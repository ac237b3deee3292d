"""verl's ``model_merger``: its options, file names and answers, for the backend fsdp."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from families.test_fsdp import write_ranks
from golden_families.test_recorded import entries, section, unpacked
from making import array, read_file, same, tree
from reshard.compat.model_merger import main


def merge(source: Path, target: Path, *more: str) -> int:
    return main(["merge", "--backend", "fsdp", "--local_dir", str(source), "--target_dir", str(target), *more])


@pytest.mark.parametrize(
    "name", ["fsdp2_r4_uneven", "fsdp1_nomesh_r3_shardedtensor_uneven", "fsdp2_r4_hsdp_other_names"]
)
def test_its_answer(name: str, tmp_path: Path) -> None:
    made = unpacked("cases", name, tmp_path / name)
    source = made / "src" / "actor"
    before = tree(source)
    assert merge(source, tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "config.json", ".reshard"}
    found = read_file(tmp_path / "out" / "model.safetensors")
    tensors = json.loads((made / "tensors.json").read_text())
    answer = entries(section(tensors, "weights_cast_bf16_as_verl_merger"), layers=False)
    assert found.keys() == answer.keys()
    for name_, entry in answer.items():
        if found[name_].dtype.name == "bfloat16":  # integers stay what they are
            assert hashlib.sha256(np.ascontiguousarray(found[name_]).tobytes()).hexdigest() == entry["sha256"], name_
    assert tree(source) == before


def test_a_comparison_with_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = unpacked("cases", "fsdp2_r4_uneven", tmp_path) / "src" / "actor"
    assert merge(source, tmp_path / "out") == 0
    test = ["test", "--backend", "fsdp", "--local_dir", str(source), "--test_hf_dir", str(tmp_path / "out")]
    assert main(test) == 0
    assert "FSDP checks passed: 13 tensors" in capsys.readouterr().out
    path = tmp_path / "out" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(test) == 1


def test_other_files_in_the_target_stay(tmp_path: Path) -> None:
    source = unpacked("cases", "fsdp2_r4_uneven", tmp_path) / "src" / "actor"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert merge(source, tmp_path / "out") == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_lora_weights_become_an_adapter_beside_their_base(tmp_path: Path) -> None:
    base, a, b = array((8, 4), seed=1), array((2, 4), seed=2), array((8, 2), seed=3)
    before = "base_model.model.model.layers.0.q_proj"
    held = {
        f"{before}.base_layer.weight": base,
        f"{before}.lora_A.default.weight": a,
        f"{before}.lora_B.default.weight": b,
    }
    source = write_ranks(tmp_path / "actor", held, list(held)[1:])
    (source / "lora_train_meta.json").write_text('{"r": 2, "lora_alpha": 16, "task_type": "CAUSAL_LM"}')
    assert merge(source, tmp_path / "out") == 0
    assert list(read_file(tmp_path / "out" / "model.safetensors")) == ["model.layers.0.q_proj.weight"]
    adapter = tmp_path / "out" / "lora_adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 16, ["q_proj"])
    found = read_file(adapter / "adapter_model.safetensors")
    assert same(found[f"{before}.lora_A.weight"], a.astype("bfloat16"))
    (source / "lora_train_meta.json").write_text("[" * 9_999)
    assert merge(source, tmp_path / "none") == 3
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--hf_upload_path", "me/model"], "nothing is uploaded"),
        (["--backend", "megatron"], "not read yet"),
    ],
)
def test_what_it_does_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str) -> None:
    assert merge(tmp_path, tmp_path / "out", *more) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
