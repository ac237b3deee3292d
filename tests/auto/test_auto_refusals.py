"""Weights that are not the YAML's model, slices given as whole ones, ranks killed early, what is left to the job."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs import LARGE, handed_over, write_model, write_yaml
from ranks import Ended, Ranks, Running
from test_auto_failing import started

from making import read_file, tree, write_file
from reshard.auto.earlier import Earlier
from reshard.auto.processes import Process, launcher, this_process
from reshard.auto.records import Word
from waiting import wait_until

TWO = {"model_parallel": 2}


def model_of(tmp_path: Path, **sizes: int) -> Path:
    """A full checkpoint of the large model with other sizes."""
    return write_model(tmp_path / "llama.ckpt", write_yaml(tmp_path / "any.yaml", "dp2mp4", sizes={**LARGE, **sizes}))


def run_two(tmp_path: Path, ranks: Ranks, load: Path, *words: str, **keys: Any) -> list[Ended]:
    keys = {"parallel_config": TWO, **keys}
    config = write_yaml(tmp_path / "run.yaml", "", load_checkpoint=str(load), sizes=LARGE, **keys)
    return ranks.run(2, "--config", config, *words, cwd=tmp_path)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"vocab_size": 768}, "model.tok_embeddings.embedding_weight: [768, 64] in the file, [512, 64] by the YAML"),
        ({"hidden_size": 128}, "[512, 128] in the file, [512, 64] by the YAML"),
        ({"intermediate_size": 96}, "model.layers.0.feed_forward.w1.weight: [96, 64] in the file, "),
        ({"n_kv_heads": 8}, "model.layers.0.attention.wk.weight: [64, 64] in the file, [32, 64] by the YAML"),
        ({"num_layers": 6}, "model.layers.4.attention_norm.weight: [64] in the file, absent by the YAML"),
        ({"num_layers": 2}, "model.layers.2.attention_norm.weight: absent in the file, [64] by the YAML"),
    ],
)
def test_weights_of_another_model_than_the_yamls(
    tmp_path: Path, ranks: Ranks, sizes: dict[str, int], said: str
) -> None:
    ended = run_two(tmp_path, ranks, model_of(tmp_path, **sizes))
    assert [e.code for e in ended] == [3, 5]
    assert all(said in e.said for e in ended), ended[0].said
    assert "model_config" in ended[0].said
    assert not (tmp_path / "output/transformed_checkpoint").exists()


def test_they_are_refused_where_nothing_is_to_be_converted_too(tmp_path: Path, ranks: Ranks) -> None:
    ended = run_two(tmp_path, ranks, model_of(tmp_path, vocab_size=768), use_parallel=False)
    assert [e.code for e in ended] == [3, 3]
    assert "[768, 64] in the file, [512, 64] by the YAML" in ended[0].said


def test_slices_of_the_same_cut_and_of_another_model(tmp_path: Path, ranks: Ranks) -> None:
    config = write_yaml(tmp_path / "first.yaml", "", parallel_config=TWO, sizes={**LARGE, "vocab_size": 768})
    first = ("--config", config, "--load_checkpoint", str(model_of(tmp_path, vocab_size=768)), "--output_dir", "first")
    assert [e.code for e in ranks.run(2, *first, cwd=tmp_path)] == [0, 0]
    made = tmp_path / "first/transformed_checkpoint/llama"
    ended = run_two(tmp_path, ranks, made, src_strategy=str(tmp_path / "first/strategy"))
    assert [e.code for e in ended] == [3, 3]
    assert "[768, 64], [512, 64] by the YAML" in ended[0].said


@pytest.mark.parametrize("named", ["ckpt/rank_1/llama_rank_1-1_10.ckpt", "ckpt/rank_1", "flat/llama_rank_0-1_10.ckpt"])
def test_a_slice_whose_neighbours_tell(tmp_path: Path, ranks: Ranks, named: str) -> None:
    """Where the YAML does not say how large the model is."""
    weights = read_file(model_of(tmp_path))
    for rank in (0, 1):
        write_file(tmp_path / f"ckpt/rank_{rank}/llama_rank_{rank}-1_10.ckpt", weights)
        write_file(tmp_path / f"flat/llama_rank_{rank}-1_10.ckpt", weights)
    config = write_yaml(tmp_path / "run.yaml", "", load_checkpoint=str(tmp_path / named), parallel_config=TWO)
    content = yaml.safe_load(config.read_text())
    content["model"] = {"arch": {"type": "UnknownModel"}}
    config.write_text(yaml.safe_dump(content))
    ended = ranks.run(2, "--config", config, cwd=tmp_path)
    assert [e.code for e in ended] == [3, 3]
    assert "one rank's file, given as a full checkpoint" in ended[0].said
    assert ("rank_0" if "rank_1" in named else "llama_rank_1-1_10.ckpt") in ended[0].said


def test_a_rank_that_holds_the_whole_is_taken(tmp_path: Path, ranks: Ranks) -> None:
    """As of a job of data parallel alone: the YAML says how large the model is."""
    weights = read_file(model_of(tmp_path))
    for rank in (0, 1):
        write_file(tmp_path / f"ckpt/rank_{rank}/llama_rank_{rank}-1_10.ckpt", weights)
    ended = run_two(tmp_path, ranks, tmp_path / "ckpt/rank_1/llama_rank_1-1_10.ckpt")
    assert [e.code for e in ended] == [0, 0], ended[0].said


@pytest.mark.parametrize("keys", [{"use_legacy_format": False}, {"checkpoint": {"load_balanced": True}}])
def test_the_loader_that_cuts_by_itself_is_left_alone(tmp_path: Path, ranks: Ranks, keys: dict[str, Any]) -> None:
    load = tmp_path / "full"
    write_file(load / "model.safetensors", read_file(model_of(tmp_path)))
    ended = run_two(tmp_path, ranks, load, **keys)
    assert [e.code for e in ended] == [0, 0]
    assert "use_legacy_format: False: the job reads load_checkpoint" in ended[0].said
    assert [p.name for p in (tmp_path / "output").iterdir()] == ["reshard_run.yaml"]
    assert handed_over(tmp_path) == yaml.safe_load((tmp_path / "run.yaml").read_text())


# --- what is left to the job, what is only said

STARTS = ("--", "python3", "-c", "import sys; open('started', 'a').write(sys.argv[1] + '\\n')", "{config}")


def unknown_model(tmp_path: Path) -> Path:
    config = write_yaml(tmp_path / "run.yaml", "", parallel_config=TWO, only_save_strategy=True)
    content = yaml.safe_load(config.read_text())
    content["model"]["arch"]["type"] = "UnknownModel"
    config.write_text(yaml.safe_dump(content))
    return config


def test_the_job_writes_the_strategy_that_the_yaml_does_not_tell(tmp_path: Path, ranks: Ranks) -> None:
    config = unknown_model(tmp_path)
    ended = ranks.run(2, "--config", config, *STARTS, cwd=tmp_path)
    assert [e.code for e in ended] == [0, 0]
    assert all("the job writes its own" in e.said for e in ended)
    assert (tmp_path / "started").read_text().splitlines() == [str(tmp_path / "output/reshard_run.yaml")] * 2
    assert handed_over(tmp_path)["only_save_strategy"] is True


def test_without_a_command_nobody_would_write_it(tmp_path: Path, ranks: Ranks) -> None:
    ended = ranks.run(2, "--config", unknown_model(tmp_path), cwd=tmp_path)
    assert [e.code for e in ended] == [3, 3]
    assert "unknown family" in ended[0].said


def test_each_machine_gets_the_strategy(tmp_path: Path, ranks: Ranks) -> None:
    """Where no disk is shared: the working folders of the ranks are two."""
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", only_save_strategy=True, npu_num_per_node=4)
    running = []
    for rank in (0, 3, 4, 7):
        (tmp_path / f"node_{rank // 4}").mkdir(exist_ok=True)
        words = ("--rank", str(rank), "--world-size", "8", "--per-node")
        running.append(ranks.start("--config", config, *words, cwd=tmp_path / f"node_{rank // 4}"))
    ended = [r.ended() for r in running]
    assert [e.code for e in ended] == [0] * 4
    assert "rank 4 saves it" in ended[3].said
    for node in (0, 1):
        made = sorted(p.name for p in (tmp_path / f"node_{node}/output/strategy").iterdir())
        assert made == [f"ckpt_strategy_rank_{r}.ckpt" for r in range(8)]


@pytest.mark.parametrize("load", ["full", "nothing", "strategy"])
def test_a_dry_run_says_and_does_nothing(tmp_path: Path, ranks: Ranks, load: str) -> None:
    model = model_of(tmp_path)
    keys: dict[str, Any] = {"transform_process_num": 2, "only_save_strategy": load == "strategy"}
    config = write_yaml(
        tmp_path / "run.yaml", "", sizes=LARGE, parallel_config=TWO,
        load_checkpoint=str(model) if load == "full" else "", **keys,
    )  # fmt: skip
    before = tree(tmp_path)
    ended = ranks.start(
        "--config", config, "--rank", "1", "--world-size", "2", "--dry-run", *STARTS, cwd=tmp_path
    ).ended()
    assert ended.code == 0
    assert tree(tmp_path) == before
    if load == "full":
        wanted = [f"would convert {model}: 1 file, one full checkpoint", "transformed_checkpoint/llama: 2 files",
                  "rank 0 writes rank 0", "rank 1 writes rank 1", "made from", "nothing was written"]  # fmt: skip
        assert [words for words in wanted if words not in ended.said] == []


# --- ranks that are killed early


def test_a_first_rank_killed_before_others_come(tmp_path: Path, ranks: Ranks) -> None:
    model = model_of(tmp_path)
    config = write_yaml(tmp_path / "run.yaml", "", load_checkpoint=str(model), sizes=LARGE, parallel_config=TWO)
    first = ranks.start("--config", config, "--rank", "0", "--world-size", "2", cwd=tmp_path)
    wait_until(lambda: started(tmp_path, first, 0))
    os.kill(first.pid, signal.SIGKILL)
    assert first.ended().code == -signal.SIGKILL
    late: Running = ranks.start("--config", config, "--rank", "1", "--world-size", "2", cwd=tmp_path)
    ended = late.ended()
    assert ended.code == 5
    assert f"rank 0 (process {first.pid} on" in ended.said  # and not: did not come in 120 s


def word_of(process: Process, **changes: Any) -> Word:
    return Word(**{"rank": 0, "nonce": "a", "process": process, "about": "x", **changes})


def test_whose_word_is_of_an_earlier_run(shorten: Callable[..., None]) -> None:
    mine, parent = this_process(), launcher()
    killed = Process(mine.host, mine.space, 2**22 + 1, mine.began)
    before = Process(mine.host, mine.space, 2**22 + 1, str(int(parent.began) - 1))
    assert not Earlier({0: word_of(mine)}).has(word_of(mine))
    for word in (word_of(killed), word_of(before), word_of(killed, generation="b"), word_of(killed, left=True)):
        assert Earlier({0: word}).has(word)  # another may come in its place
        assert not Earlier({0: word}).has(word_of(mine, nonce="b"))
    shorten(replaced_s=0.0)
    assert not Earlier({0: word_of(killed)}).has(word_of(killed))
    for word in (word_of(before), word_of(killed, generation="b"), word_of(killed, left=True)):
        assert Earlier({0: word}).has(word)
