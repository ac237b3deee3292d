"""Eight real processes a case: what each rank is handed is MindSpore's own answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import LARGE, golden, handed_over, source_of, write_model, write_yaml, written_by_job
from ranks import Ended, Ranks

from golden.cases import judge_ranks
from making import read_file, tree, write_file

WORLD = 8


def assert_all(ended: list[Ended], code: int = 0) -> None:
    assert [e.code for e in ended] == [code] * len(ended), "\n".join(e.said for e in ended)


@pytest.mark.parametrize(
    ("case_name", "layout", "writers"),
    [
        ("full_to_dp2mp4", "dp2mp4", 1),
        ("st_full_to_dp2mp4", "dp2mp4", 4),
        ("dp2mp2pp2_to_dp1mp4pp2", "dp1mp4pp2", 2),
        ("st_dp2mp2pp2_to_dp2mp4", "dp2mp4", "auto"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True], ids=["made", "compiled"])
def test_each_rank_gets_its_slice(
    tmp_path: Path, ranks: Ranks, case_name: str, layout: str, writers: object, compiled: bool
) -> None:
    case = golden(case_name, tmp_path / "case")
    strategy = case.strategy("src")
    config = write_yaml(
        tmp_path / "run.yaml",
        layout,
        load_checkpoint=str(source_of(case)),
        transform_process_num=writers,
        **({"src_strategy_path_or_dir": str(strategy)} if strategy else {}),
    )
    if compiled:
        written_by_job(case, tmp_path / "output")
    before = tree(case.folder)
    assert_all(ranks.run(WORLD, "--config", config, cwd=tmp_path))
    after = handed_over(tmp_path)
    root = "unified_checkpoint" if case_name.startswith("st_") else "transformed_checkpoint"
    assert Path(after["load_checkpoint"]).parent == tmp_path / "output" / root
    assert after["auto_trans_ckpt"] is False
    assert judge_ranks(case, Path(after["load_checkpoint"])) == []
    assert (tmp_path / "output/strategy").is_dir()
    assert tree(case.folder) == before


def test_many_to_one(tmp_path: Path, ranks: Ranks) -> None:
    case = golden("dp2mp2pp2_to_full", tmp_path / "case")
    config = write_yaml(
        tmp_path / "run.yaml",
        "dp2mp2pp2",
        use_parallel=False,
        load_checkpoint=str(source_of(case)),
        src_strategy_path_or_dir=str(case.strategy("src")),
    )
    assert_all(ranks.run(1, "--config", config, cwd=tmp_path))
    loaded = Path(handed_over(tmp_path)["load_checkpoint"])
    assert loaded == tmp_path / "output/transformed_checkpoint/src/rank_0/checkpoint_0.ckpt"
    assert judge_ranks(case, loaded.parents[1]) == []
    first = loaded.stat().st_ino
    # the same for processes that each load the whole
    assert_all(ranks.run(WORLD, "--config", config, cwd=tmp_path))
    assert judge_ranks(case, loaded.parents[1]) == []
    assert loaded.stat().st_ino != first


def test_a_full_checkpoint_in_several_files(tmp_path: Path, ranks: Ranks) -> None:
    case = golden("full_to_dp2mp4", tmp_path / "case")
    whole = read_file(source_of(case))
    for part in range(3):
        names = sorted(whole)[part::3]
        write_file(tmp_path / f"llama/part-{part}.ckpt", {name: whole[name] for name in names})
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(tmp_path / "llama"))
    assert_all(ranks.run(WORLD, "--config", config, cwd=tmp_path))
    assert judge_ranks(case, tmp_path / "output/transformed_checkpoint/llama") == []


def test_weights_that_match_are_not_touched(tmp_path: Path, ranks: Ranks) -> None:
    case = golden("full_to_dp2mp4", tmp_path / "case")
    keys = {"load_checkpoint": str(case.expected), "src_strategy": str(case.strategy("dst"))}
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", **keys)
    ended = ranks.run(WORLD, "--config", config, cwd=tmp_path)
    assert_all(ended)
    assert all("nothing to convert" in e.said for e in ended)
    after = handed_over(tmp_path)
    assert (after["load_checkpoint"], after["auto_trans_ckpt"]) == (str(case.expected), False)
    assert [p.name for p in (tmp_path / "output").iterdir()] == ["reshard_run.yaml"]


@pytest.mark.parametrize("knows_strategy", [True, False], ids=["by strategy", "by shapes"])
def test_a_machine_with_its_own_ranks_alone(tmp_path: Path, ranks: Ranks, knows_strategy: bool) -> None:
    model = write_model(tmp_path / "llama.ckpt", write_yaml(tmp_path / "any.yaml", "dp2mp4", sizes=LARGE))
    first = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(model), sizes=LARGE, output_dir="./first")
    assert_all(ranks.run(WORLD, "--config", first, cwd=tmp_path))
    made = tmp_path / "first/transformed_checkpoint/llama"
    for rank in range(4):
        (made / f"rank_{rank}").rename(tmp_path / f"elsewhere_{rank}")
    keys = {"src_strategy": str(tmp_path / "first/strategy")} if knows_strategy else {}
    config = write_yaml(
        tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(made), sizes=LARGE, npu_num_per_node=4, **keys
    )
    node = [("--rank", str(rank), "--world-size", "8") for rank in range(4, 8)]
    ended = [r.ended() for r in [ranks.start("--config", config, *words, cwd=tmp_path) for words in node]]
    assert_all(ended)
    assert all("nothing to convert" in e.said for e in ended)
    # a rank of the machine is missing: nothing matches any more, and the others are not here
    (made / "rank_6").rename(tmp_path / "elsewhere_6")
    running = [ranks.start("--config", config, *words, "--peer-timeout", "2", cwd=tmp_path) for words in node]
    ended = [r.ended() for r in running]
    if knows_strategy:
        assert_all(ended, 5)
        assert "rank 0 did not come in 2 s" in ended[0].said
    else:
        assert_all(ended, 3)
        assert "src_strategy_path_or_dir" in ended[0].said


def test_no_strategy_and_another_cut_is_refused(tmp_path: Path, ranks: Ranks) -> None:
    case = golden("dp2mp2pp2_to_dp1mp4pp2", tmp_path / "case")
    config = write_yaml(tmp_path / "run.yaml", "dp1mp4pp2", load_checkpoint=str(source_of(case)))
    ended = ranks.run(WORLD, "--config", config, cwd=tmp_path)
    assert_all(ended, 3)
    assert "src_strategy_path_or_dir" in ended[0].said
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("left", "why"),
    [("dp8", "cuts lm_head.weight in another way"), ("dp2mp2pp2", "2 pipeline stages"), ("16", "16 ranks")],
)
def test_a_strategy_of_an_earlier_job_is_passed_over(tmp_path: Path, ranks: Ranks, left: str, why: str) -> None:
    case = golden("full_to_dp2mp4", tmp_path / "case")
    earlier = {"dp8": "dp2mp4_to_dp8", "dp2mp2pp2": "full_to_dp2mp2pp2", "16": "full_to_dp2mp4pp2_16ranks"}[left]
    written_by_job(golden(earlier, tmp_path / "earlier"), tmp_path / "output")
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(source_of(case)))
    ended = ranks.run(WORLD, "--config", config, cwd=tmp_path)
    assert_all(ended)
    assert "output/strategy is passed over" in ended[0].said
    assert why in ended[0].said
    assert judge_ranks(case, Path(handed_over(tmp_path)["load_checkpoint"])) == []
    assert (tmp_path / "output/strategy/ckpt_strategy_rank_7.ckpt").is_file()


def test_a_model_of_no_known_family(tmp_path: Path, ranks: Ranks) -> None:
    """The job's own strategy is taken; without it the job is refused, and told what to do."""
    case = golden("full_to_dp2mp4", tmp_path / "case")
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(source_of(case)))
    config.write_text(config.read_text().replace("Llama", "Novel"))
    ended = ranks.run(WORLD, "--config", config, cwd=tmp_path)
    assert_all(ended, 3)
    assert "give --dst-strategy" in ended[0].said
    assert not (tmp_path / "output").exists()
    assert_all(ranks.run(WORLD, "--config", config, "--dst-strategy", str(case.strategy("dst")), cwd=tmp_path))
    assert judge_ranks(case, Path(handed_over(tmp_path)["load_checkpoint"])) == []
    written_by_job(case, tmp_path / "output")
    assert_all(ranks.run(WORLD, "--config", config, cwd=tmp_path))
    assert judge_ranks(case, Path(handed_over(tmp_path)["load_checkpoint"])) == []


def test_a_strategy_that_differs_a_little_is_refused(tmp_path: Path, ranks: Ranks) -> None:
    """Here by ``vocab_emb_dp`` alone: it may be an earlier job's, or of a release with other rules."""
    case = golden("full_to_dp2mp4", tmp_path / "case")
    written_by_job(golden("dp2mp4_to_vocabembdp", tmp_path / "other"), tmp_path / "output")
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(source_of(case)))
    ended = ranks.run(WORLD, "--config", config, cwd=tmp_path)
    assert_all(ended, 3)
    assert "cuts lm_head.weight in another way" in ended[0].said
    assert sorted(p.name for p in (tmp_path / "output").iterdir()) == ["strategy"]
