"""MindSpore's own answers, through the functions of its names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from golden.cases import NAMES, judge_merged_strategy, judge_ranks, judge_unified, unpack
from golden.readers import read_weights
from reshard.compat.mindspore import (
    merge_pipeline_strategys,
    rank_list_for_transform,
    transform_checkpoint_by_rank,
    transform_checkpoints,
    unified_safetensors,
)

REFUSED = {
    "merge_strategy_empty_dir": "no strategy file",
    "merge_strategy_mixed_ext": "both .ckpt and .json",
    "merge_strategy_stage1_missing": "1 missing",
    "unified_rr_err_missing_rank5": "no source file holds it",
    "unified_rr_layout_tuple": "net.w1: 75% missing",
    "unified_suffix_2_10": "no file whose name ends in '2_10'",
}
OUR_ANSWER_ALONE = {"unified_err_ckpt_src", "unified_split_dst_2of2"}
"""MindSpore fails: of .ckpt sources, and of a share that gets no part."""


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("byrank_")])
def test_by_rank(name: str, tmp_path: Path) -> None:
    case = unpack(name, tmp_path / "case")
    source, target = (_path(case.folder, case.about, f"{side}_strategy") for side in ("src", "dst"))
    out = tmp_path / "out"
    for rank in range(len(list(case.expected.glob("rank_*")))):
        files = {r: _only(case.folder / "src" / f"rank_{r}") for r in rank_list_for_transform(rank, source, target)}
        transform_checkpoint_by_rank(rank, files, str(out / f"rank_{rank}/checkpoint_{rank}.ckpt"), source, target)
    assert judge_ranks(case, out) == []
    assert [p.name for p in out.rglob("*") if p.name.startswith(".")] == []


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("merge_strategy_")])
def test_merge_pipeline_strategys(name: str, tmp_path: Path) -> None:
    case = unpack(name, tmp_path / "case")
    folder = case.folder / "src_strategy"
    suffix = ".json" if any(folder.glob("*.json")) and name not in REFUSED else ".ckpt"
    out = tmp_path / "new" / f"merged_ckpt_strategy{suffix}"
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            merge_pipeline_strategys(str(folder), str(out))
        return
    merge_pipeline_strategys(str(folder), str(out))
    assert judge_merged_strategy(case, out.parent) == []


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("unified_")])
def test_unified_safetensors(name: str, tmp_path: Path) -> None:
    case = unpack(name, tmp_path / "case")
    arguments: dict[str, Any] = dict(case.about["kwargs"])
    if "choice_func" in arguments:
        arguments["choice_func"] = _choice
    source, strategy, out = (
        str(p) for p in (case.folder / "src", case.folder / case.about["src_strategy"], tmp_path / "out")
    )
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            unified_safetensors(source, strategy, out, **arguments)
        assert not Path(out).exists()
        return
    unified_safetensors(source, strategy, out, **arguments)
    if name not in OUR_ANSWER_ALONE:
        assert judge_unified(case, Path(out)) == []
        if case.expected.name == "expected":  # else MindSpore fails, and no files of its own are there to compare
            names = {p.name for p in case.expected.iterdir() if p.suffix != ".txt"}
            assert {p.name for p in Path(out).iterdir()} - {".reshard"} <= names


def _choice(name: str) -> bool | str:
    """As recorded in the case ``unified_choice``."""
    if "norm" in name:
        return False
    return "backbone." + name if "layers.0" in name else True


def test_rank_lists(tmp_path: Path) -> None:
    compared = 0
    for name in NAMES:
        if name.startswith(("dp", "byrank", "mp8", "pp", "layout", "full", "st_", "json")):
            case = unpack(name, tmp_path / name)
            source, target = (_path(case.folder, case.about, f"{side}_strategy") for side in ("src", "dst"))
            for rank, ranks in case.about.get("rank_list_for_transform", {}).items():
                assert rank_list_for_transform(int(rank), source, target) == ranks, (name, rank)
                compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    "name",
    ["dp2mp2pp2_to_full", "full_to_dp2mp4", "json_dp2mp2_to_full", "st_dp2mp4_to_dp8_pn2", "st_mp8_to_dp4mp2_optshard"],
)
def test_transform_checkpoints(name: str, tmp_path: Path) -> None:
    case = unpack(name, tmp_path / "case")
    source, target = (_path(case.folder, case.about, f"{side}_strategy") for side in ("src", "dst"))
    about = case.about
    out = tmp_path / "out"
    transform_checkpoints(
        str(case.folder / "src"),
        str(out),
        about["ckpt_prefix"],
        source,
        target,
        process_num=about["process_num"],
        output_format=about["output_format"],
    )
    assert judge_ranks(case, out) == []
    ours, theirs = ({str(p.relative_to(f)) for p in f.rglob("rank_*/*")} for f in (out, case.expected))
    assert ours == theirs


def test_parts_are_called_as_the_reference_calls_them(tmp_path: Path) -> None:
    case = unpack("subset_dp2mp4_base_to_lora_alltrain", tmp_path / "case")
    source, target = (_path(case.folder, case.about, f"{side}_strategy") for side in ("src", "dst"))
    transform_checkpoints(str(case.folder / "src"), str(tmp_path / "out"), "checkpoint_", source, target)
    ours, theirs = ({str(p.relative_to(f)) for p in f.rglob("rank_*/*")} for f in (tmp_path / "out", case.expected))
    assert ours == theirs
    assert read_weights(tmp_path / "out/rank_3/checkpoint_3_part0.ckpt")


def _path(folder: Path, about: Any, key: str) -> str | None:
    return str(folder / about[key]) if about.get(key) else None


def _only(folder: Path) -> str:
    (file,) = folder.iterdir()
    return str(file)
