"""A target that would lie in what it is made of: who reads that again would find both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import reshard
from golden.cases import run_reshard
from making import array, tree, write_file, write_ranks, write_strategy
from reshard.errors import UsageError
from reshard.layout.tensor import Sharding
from reshard.ops.options import Options

CUT = [{"w": Sharding((2,), ((0,), ()))}]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A full checkpoint, ranks, their strategy, an adapter; a link to the first."""
    monkeypatch.chdir(tmp_path)
    full = {"w": array((4, 4))}
    write_file(tmp_path / "model/model.safetensors", full)
    write_ranks(tmp_path / "ckpt", full, CUT)
    write_strategy(tmp_path / "cut", CUT)
    factors = {f"base_model.model.w.lora_{part}.weight": array((1, 4) if part == "A" else (4, 1)) for part in "AB"}
    write_file(tmp_path / "adapter/adapter_model.safetensors", factors)
    write_file(tmp_path / "base/model.safetensors", {"w.weight": array((4, 4))})
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 2}))
    (tmp_path / "link").symlink_to("model")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        "convert model model/sub",
        "convert model model/deep/sub/full.ckpt",
        "convert model link/sub --to dcp",
        "convert link model/sub --dry-run",
        "convert model/ ./model/../model/sub",
        "convert . out --from ranks --src-strategy cut",
        "split model model/ranks --dst-strategy cut",
        "merge ckpt ckpt/full.safetensors --src-strategy cut",
        "merge ckpt ckpt/rank_0/full.safetensors --src-strategy cut --resume",
        "plan model model/sub",
        "unify ckpt ckpt/out --src-strategy cut",
        "lora merge base base/merged --adapter adapter",
        "lora merge base adapter/merged --adapter adapter",
        "compat transform_checkpoint --src_checkpoint=ckpt --dst_checkpoint=ckpt/new --src_strategy=cut",
        "compat transform_ckpt --src_ckpt_dir ckpt --dst_ckpt_dir ckpt/new --src_ckpt_strategy cut",
    ],
)
def test_a_target_in_its_source_is_refused(given: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "--from ranks" in words:
        shutil.move(given / "ckpt/rank_0", given)
        shutil.move(given / "ckpt/rank_1", given)
    before = tree(given)
    assert run_reshard(words.split()) == 2, words
    said = capsys.readouterr().err
    assert "the target lies inside the source" in said
    assert "choose one beside it" in said
    merged = "cut/merged_ckpt_strategy.ckpt"  # which the older tool writes before all else
    assert {path: content for path, content in tree(given).items() if path != merged} == before


def test_a_file_and_a_place_that_is_not_said_are_no_such_case(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_reshard(["convert", "model/model.safetensors", "model/sub"]) == 0
    assert run_reshard(["convert", "model", "modelled"]) == 0
    monkeypatch.chdir(given / "ckpt")
    assert run_reshard(["plan", ".", "--src-strategy", "../cut"]) == 0
    assert run_reshard(["explain", "w", ".", "--src-strategy", "../cut", "--dst-strategy", "../cut"]) == 0
    (given / "ckpt/empty").mkdir()
    monkeypatch.chdir(given / "ckpt/empty")
    assert run_reshard(["convert", "..", ".", "--src-strategy", "../../cut"]) == 2


def test_names_that_change_on_the_way_change_nothing(given: Path) -> None:
    with pytest.raises(UsageError, match="lies inside the source"):
        reshard.convert("model", "model/sub", Options(names=reshard.NameRules(rename=(("w", "v"),))))
