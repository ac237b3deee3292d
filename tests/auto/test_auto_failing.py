"""When ranks are late, die, or do not share a disk: nobody waits for ever, everybody hears why, a rerun succeeds."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from jobs import LARGE, golden, handed_over, source_of, write_model, write_yaml
from ranks import Ended, Ranks, Running

from golden.cases import judge_ranks
from making import differing, read_rank, tree
from ports import free_port
from waiting import wait_until

WORLD = 8
SLOW = ("--max-rate", "60KiB/s", "--workers", "1")
PATIENT = ("--peer-timeout", "600")  # who would wait for it is taken to hang by ``ended``


@pytest.mark.parametrize("victim", [0, 4], ids=["the first rank", "another writer"])
def test_a_killed_writer_fails_all_and_a_rerun_succeeds(tmp_path: Path, ranks: Ranks, victim: int) -> None:
    model = write_model(tmp_path / "llama.ckpt", write_yaml(tmp_path / "any.yaml", "dp2mp4", sizes=LARGE))
    config = write_yaml(
        tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(model), sizes=LARGE, transform_process_num=2
    )
    old = tmp_path / "output/transformed_checkpoint/older/rank_0/mine.ckpt"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"mine")
    running = ranks.job(WORLD, "--config", config, *SLOW, *PATIENT, cwd=tmp_path)
    wait_until(lambda: [*tmp_path.glob(f"output/.transformed*/llama/rank_{victim}/*.part")])
    os.kill(running[victim].pid, signal.SIGKILL)
    ended = [r.ended() for r in running]
    assert [e.code for e in ended] == [-signal.SIGKILL if rank == victim else 5 for rank in range(WORLD)]
    assert all(f"rank {victim} (process {running[victim].pid} on" in e.said for r, e in enumerate(ended) if r != victim)
    assert old.read_bytes() == b"mine"
    assert not (tmp_path / "output/reshard_run.yaml").exists()
    ended = ranks.run(WORLD, "--config", config, cwd=tmp_path)
    assert [e.code for e in ended] == [0] * WORLD
    assert sorted(p.name for p in (tmp_path / "output").iterdir()) == [
        ".reshard-auto", "reshard_run.yaml", "strategy", "transformed_checkpoint",
    ]  # fmt: skip
    assert Path(handed_over(tmp_path)["load_checkpoint"]) == tmp_path / "output/transformed_checkpoint/llama"
    assert not old.exists()


def test_an_error_on_one_rank_reaches_all(tmp_path: Path, ranks: Ranks) -> None:
    case = golden("full_to_dp2mp4", tmp_path / "case")
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(source_of(case)), transform_process_num=2)
    blind = tmp_path / "blind"  # rank 4 sees another file of the same name
    blind.mkdir()
    (blind / source_of(case).name).write_bytes(source_of(case).read_bytes())
    running = [
        ranks.start(
            "--config", config, "--rank", str(rank), "--world-size", "8",
            *(["--load_checkpoint", str(blind / source_of(case).name)] if rank == 4 else []), cwd=tmp_path,
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    ended = [r.ended() for r in running]
    assert [e.code for e in ended] == [3 if rank == 4 else 5 for rank in range(WORLD)]
    assert "sees other source files than rank 0 does" in ended[4].said
    for rank in (0, 1, 7):
        assert "rank 4 failed (exit code 3): rank 4 sees other source files than rank 0 does" in ended[rank].said


def started(tmp_path: Path, rank: Running, number: int, output: str = "output") -> bool:
    """Whether a rank waits for others."""
    said = tmp_path / output / f".reshard-auto/rank_{number}.json"
    text = said.read_text() if said.exists() else ""
    return f'"pid":{rank.pid},' in text and '"joined":true' in text


@pytest.mark.parametrize("blind", [0, 5], ids=["the first rank", "another"])
def test_an_error_of_one_rank_before_it_meets_others_reaches_all(tmp_path: Path, ranks: Ranks, blind: int) -> None:
    """One machine does not see the weights, all others wait for it."""
    model = write_model(tmp_path / "llama.ckpt", write_yaml(tmp_path / "any.yaml", "dp2mp4", sizes=LARGE))
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(model), sizes=LARGE)
    words = ("--config", config, *PATIENT, "--world-size", "8", "--rank")
    running = {rank: ranks.start(*words, str(rank), cwd=tmp_path) for rank in range(WORLD) if rank != blind}
    wait_until(lambda: all(started(tmp_path, running[rank], rank) for rank in running))
    running[blind] = ranks.start(*words, str(blind), "--load_checkpoint", str(tmp_path / "not.ckpt"), cwd=tmp_path)
    ended = {rank: r.ended() for rank, r in running.items()}
    assert {rank: e.code for rank, e in ended.items()} == {r: 3 if r == blind else 5 for r in range(WORLD)}
    assert f"{tmp_path}/not.ckpt: no such file" in ended[blind].said
    for rank in ended.keys() - {blind}:
        assert f"rank {blind} failed (exit code 3): no such file or folder" in ended[rank].said


def test_a_first_rank_killed_while_others_wait_with_it(tmp_path: Path, ranks: Ranks) -> None:
    """They came after it, and rank 7 is still to come."""
    model = write_model(tmp_path / "llama.ckpt", write_yaml(tmp_path / "any.yaml", "dp2mp4", sizes=LARGE))
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(model), sizes=LARGE)
    words = ("--config", config, *PATIENT, "--world-size", "8", "--rank")
    first = ranks.start(*words, "0", cwd=tmp_path)
    wait_until(lambda: started(tmp_path, first, 0))
    others = [ranks.start(*words, str(rank), cwd=tmp_path) for rank in range(1, 7)]
    wait_until(lambda: all(started(tmp_path, rank, i) for i, rank in enumerate(others, 1)))
    os.kill(first.pid, signal.SIGKILL)
    ended = [rank.ended() for rank in others]
    assert first.ended().code == -signal.SIGKILL
    assert [e.code for e in ended] == [5] * 6
    assert all(f"rank 0 (process {first.pid} on" in e.said for e in ended)


def test_a_rank_that_comes_late_hears_why_there_is_no_run(tmp_path: Path, ranks: Ranks) -> None:
    model = write_model(tmp_path / "llama.ckpt", write_yaml(tmp_path / "any.yaml", "dp2mp4", sizes=LARGE))
    config = write_yaml(
        tmp_path / "run.yaml", "", load_checkpoint=str(model), sizes=LARGE, parallel_config={"model_parallel": 4}
    )
    words = ("--config", config, "--world-size", "4", "--rank")
    early = [
        ranks.start(*words, "0", cwd=tmp_path),
        ranks.start(*words, "1", "--transform_process_num", "2", cwd=tmp_path),
        ranks.start(*words, "2", cwd=tmp_path),
    ]
    heard = early[1].ended()
    late = ranks.start(*words, "3", cwd=tmp_path).ended()
    assert (heard.code, late.code) == (5, 5)
    assert [rank.ended().code for rank in (early[0], early[2])] == [2, 5]
    assert "rank 1 was started with other settings than rank 0" in late.said


def test_an_early_rank_does_not_take_the_last_run_for_this_one(tmp_path: Path, ranks: Ranks) -> None:
    case = golden("full_to_dp2mp4", tmp_path / "case")
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(source_of(case)))
    assert [e.code for e in ranks.run(WORLD, "--config", config, cwd=tmp_path)] == [0] * WORLD
    first = (tmp_path / "output/.reshard-auto/generation.json").read_bytes()
    early = [
        ranks.start("--config", config, "--rank", str(rank), "--world-size", "8", cwd=tmp_path) for rank in range(1, 8)
    ]
    said = tmp_path / "output/.reshard-auto/rank_7.json"
    wait_until(lambda: str(early[-1].pid).encode() in said.read_bytes())
    time.sleep(0.5)
    assert all(rank.said() == "" for rank in early)  # they found all of a run that was done, and wait
    last = ranks.start("--config", config, "--rank", "0", "--world-size", "8", cwd=tmp_path)
    assert [rank.ended().code for rank in (*early, last)] == [0] * WORLD
    assert (tmp_path / "output/.reshard-auto/generation.json").read_bytes() != first
    assert judge_ranks(case, Path(handed_over(tmp_path)["load_checkpoint"])) == []


def test_two_layouts_one_after_the_other_into_one_output(tmp_path: Path, ranks: Ranks) -> None:
    first, second = golden("full_to_dp2mp4", tmp_path / "a"), golden("full_to_dp2mp2pp2", tmp_path / "b")
    for case, layout in ((first, "dp2mp4"), (second, "dp2mp2pp2"), (first, "dp2mp4")):
        config = write_yaml(tmp_path / "run.yaml", layout, load_checkpoint=str(source_of(case)))
        assert [e.code for e in ranks.run(WORLD, "--config", config, cwd=tmp_path)] == [0] * WORLD
        assert judge_ranks(case, Path(handed_over(tmp_path)["load_checkpoint"])) == []
        merged = tmp_path / "output/strategy/merged_ckpt_strategy.ckpt"
        assert merged.exists() == (layout == "dp2mp2pp2")
    assert not [*(tmp_path / "output").glob(".*.reshard-*")]


def test_the_source_may_not_lie_in_what_is_replaced(tmp_path: Path, ranks: Ranks) -> None:
    case = golden("full_to_dp2mp4", tmp_path / "case")
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(source_of(case)))
    assert [e.code for e in ranks.run(WORLD, "--config", config, cwd=tmp_path)] == [0] * WORLD
    before = tree(tmp_path / "output/transformed_checkpoint")
    made, strategy = Path(handed_over(tmp_path)["load_checkpoint"]), tmp_path / "output/strategy"
    config = write_yaml(tmp_path / "run.yaml", "dp8", load_checkpoint=str(made), src_strategy=str(strategy))
    ended = ranks.run(WORLD, "--config", config, cwd=tmp_path)
    assert [e.code for e in ended] == [2] * WORLD
    assert "which this job's results replace" in ended[3].said
    assert tree(tmp_path / "output/transformed_checkpoint") == before


def two_nodes(tmp_path: Path, ranks: Ranks, *more: str, late: int = WORLD) -> list[Ended]:
    """Ranks 0-3 and 4-7 in working folders of their own, so that ``./output`` is two folders. Ranks from ``late`` on
    start when the one before has ended.
    """
    case = golden("full_to_dp2mp4", tmp_path / "case")
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(source_of(case)), npu_num_per_node=4)
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "8"}
    running = []
    for rank in range(WORLD):
        node = tmp_path / f"node_{rank // 4}"
        node.mkdir(exist_ok=True)
        if rank == late:
            running[rank - 1].ended()
        running.append(ranks.start("--config", config, *more, cwd=node, env={**master, "RANK": str(rank)}))
    return [r.ended() for r in running]


@pytest.mark.parametrize("late", [WORLD, 5], ids=["together", "some late"])
def test_two_nodes_without_a_shared_disk_are_refused(tmp_path: Path, ranks: Ranks, late: int) -> None:
    ended = two_nodes(tmp_path, ranks, *PATIENT, late=late)
    assert [e.code for e in ended[4:]] == [2] * 4
    assert ended[0].code == 2
    assert {e.code for e in ended[1:4]} <= {2, 5}
    for e in ended:
        assert "output_dir is not one folder for all ranks" in e.said
        assert "node_0" in e.said
        assert "node_1" in e.said
        assert "--per-node" in e.said
    assert not [*tmp_path.glob("node_*/output/transformed_checkpoint")]


def test_two_nodes_each_make_their_own_ranks(tmp_path: Path, ranks: Ranks) -> None:
    ended = two_nodes(tmp_path, ranks, "--per-node")
    assert [e.code for e in ended] == [0] * WORLD, ended[0].said
    expected = tmp_path / "case/expected"
    for rank in range(WORLD):
        made = tmp_path / f"node_{rank // 4}/output/transformed_checkpoint/llama_rank_0-1_10"
        ours, wanted = read_rank(made, rank), read_rank(expected, rank)
        assert differing(ours, wanted) == []
        assert sorted(p.name for p in made.glob("rank_*")) == [
            f"rank_{r}" for r in range(rank // 4 * 4, rank // 4 * 4 + 4)
        ]


def test_a_rank_that_does_not_come_is_named(tmp_path: Path, ranks: Ranks) -> None:
    case = golden("full_to_dp2mp4", tmp_path / "case")
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(source_of(case)))
    running = [
        ranks.start("--config", config, "--rank", str(r), "--world-size", "8", "--peer-timeout", "8", cwd=tmp_path)
        for r in range(WORLD) if r not in (2, 5)
    ]  # fmt: skip
    for ended in [r.ended() for r in running]:
        assert ended.code == 5
        assert "ranks 2, 5 of 8 did not come in 8 s" in ended.said


def test_a_rank_that_hangs_is_named(tmp_path: Path, ranks: Ranks) -> None:
    model = write_model(tmp_path / "llama.ckpt", write_yaml(tmp_path / "any.yaml", "dp2mp4", sizes=LARGE))
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(model), sizes=LARGE)
    sizes = ("--parallel_config.data_parallel", "1", "--parallel_config.model_parallel", "2")
    running = ranks.job(2, "--config", config, *sizes, "--peer-timeout", "6", *SLOW, cwd=tmp_path)
    wait_until(lambda: [*tmp_path.glob("output/.transformed*/llama/rank_0/*.part")])
    os.kill(running[1].pid, signal.SIGSTOP)
    ended = running[0].ended()
    os.kill(running[1].pid, signal.SIGKILL)
    running[1].ended()
    assert ended.code == 5
    assert "gave no sign of life" in ended.said


def test_two_jobs_in_one_output_are_told(tmp_path: Path, ranks: Ranks) -> None:
    model = write_model(tmp_path / "llama.ckpt", write_yaml(tmp_path / "any.yaml", "dp2mp4", sizes=LARGE))
    config = write_yaml(
        tmp_path / "run.yaml", "", load_checkpoint=str(model), sizes=LARGE, parallel_config={"model_parallel": 2}
    )
    first = ranks.job(2, "--config", config, *SLOW, cwd=tmp_path)
    wait_until(lambda: [*tmp_path.glob("output/.transformed*/llama/rank_0/*.part")])
    second = ranks.job(2, "--config", config, "--no-fsync", cwd=tmp_path)
    ended = [r.ended() for r in first]
    assert {e.code for e in ended} <= {2, 5}
    assert "two jobs use one output_dir" in "".join(e.said for e in ended)
    for r in second:
        r.ended()
