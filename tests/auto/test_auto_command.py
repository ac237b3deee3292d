"""The command line: the job's own command, launchers, keys on the command line, what is refused before all else."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from jobs import golden, handed_over, source_of, write_yaml
from ranks import Ranks

from golden.cases import judge_ranks
from waiting import wait_until

WORLD = 8
SHOW = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
rank = os.environ["OMPI_COMM_WORLD_RANK"]
threads = os.environ.get("OPENBLAS_NUM_THREADS")
json.dump({"argv": sys.argv[1:], "threads": threads, "pid": os.getpid()}, open(f"tmp{rank}", "w"))
os.rename(f"tmp{rank}", f"started{rank}")
time.sleep(60)
"""


def test_the_command_takes_the_place_of_each_rank(tmp_path: Path, ranks: Ranks) -> None:
    case = golden("full_to_dp2mp4", tmp_path / "case")
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(source_of(case)))
    command = ("--", "python3", "-c", SHOW, "--debug", "--config={config}", "--rank", "{config}")
    running = [
        ranks.start("--config", config, *command, cwd=tmp_path,
                    env={"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "8"}) for rank in range(WORLD)
    ]  # fmt: skip
    wait_until(lambda: len([*tmp_path.glob("started*")]) == WORLD)
    made = str(tmp_path / "output/reshard_run.yaml")
    for rank, process in enumerate(running):
        started = json.loads((tmp_path / f"started{rank}").read_text())
        words = ["--debug", f"--config={made}", "--rank", made]
        assert started == {"argv": words, "threads": None, "pid": process.pid}
        os.kill(process.pid, signal.SIGTERM)
    assert [r.ended().code for r in running] == [7] * WORLD
    assert judge_ranks(case, Path(handed_over(tmp_path)["load_checkpoint"])) == []


@pytest.mark.parametrize(
    "launcher",
    [
        {"RANK": "{r}", "WORLD_SIZE": "8", "LOCAL_RANK": "{r}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29501"},
        {"RANK_ID": "{r}", "MS_WORKER_NUM": "8", "MS_ROLE": "MS_WORKER"},
        {"SLURM_PROCID": "{r}", "SLURM_NTASKS": "8"},
    ],
    ids=["torchrun", "msrun", "Slurm"],
)
def test_keys_on_the_command_line_under_any_launcher(tmp_path: Path, ranks: Ranks, launcher: dict[str, str]) -> None:
    """As ModelArts passes hyper-parameters."""
    case = golden("full_to_dp2mp4", tmp_path / "case")
    config = write_yaml(tmp_path / "run.yaml", "dp8", auto_trans_ckpt=False)
    keys = ("--auto_trans_ckpt", "True", f"--load_checkpoint={source_of(case)}", "--parallel_config.data_parallel", "2",
            "--parallel_config.model_parallel=4")  # fmt: skip
    running = [
        ranks.start("--config", config, *keys, cwd=tmp_path, env={k: v.format(r=rank) for k, v in launcher.items()})
        for rank in range(WORLD)
    ]
    assert [r.ended().code for r in running] == [0] * WORLD
    after = handed_over(tmp_path)
    assert judge_ranks(case, Path(after["load_checkpoint"])) == []
    assert after["parallel_config"] == {"data_parallel": 2, "vocab_emb_dp": False, "model_parallel": 4}


def test_the_scheduler_takes_no_part(tmp_path: Path, ranks: Ranks) -> None:
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint="nowhere.ckpt")
    env = {"MS_ROLE": "MS_SCHED", "RANK_ID": "0", "MS_WORKER_NUM": "8"}
    words = ("--", "python3", "-c", "import sys; print(sys.argv[1]); sys.exit(9)", "{config}")
    ended = ranks.start("--config", config, "--quiet", *words, cwd=tmp_path, env=env).ended()
    assert (ended.code, ended.said) == (9, f"{config}\n")
    assert not (tmp_path / "output").exists()


def test_nothing_to_do_is_handed_over_too(tmp_path: Path, ranks: Ranks) -> None:
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", auto_trans_ckpt=False, load_checkpoint="/data/llama")
    before = yaml.safe_load(config.read_text())
    assert ranks.run(1, "--config", config, "--use_parallel", "False", cwd=tmp_path)[0].code == 0
    assert handed_over(tmp_path) == {**before, "use_parallel": False}


def test_the_command_starts_with_no_signal_ignored_by_us(tmp_path: Path, ranks: Ranks) -> None:
    """Python ignores some, and a program that is started in its place would, too: pipes in a job's script break."""
    config = write_yaml(tmp_path / "run.yaml", "", auto_trans_ckpt=False)
    command = ("--", "grep", "SigIgn", "/proc/self/status", "{config}")
    (ended,) = ranks.run(1, "--config", config, "--quiet", *command, cwd=tmp_path)
    ignored = int(ended.said.split()[-1], 16)
    assert [s.name for s in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM) if ignored >> (s - 1) & 1] == []


def test_only_save_strategy(tmp_path: Path, ranks: Ranks) -> None:
    config = write_yaml(tmp_path / "run.yaml", "dp2mp2pp2", only_save_strategy=True)
    command = ("--", "python3", "-c", "open('started', 'w')", "{config}")
    ended = ranks.run(WORLD, "--config", config, *command, cwd=tmp_path)
    assert [e.code for e in ended] == [0] * WORLD
    assert sorted(p.name for p in (tmp_path / "output/strategy").iterdir()) == [
        *(f"ckpt_strategy_rank_{r}.ckpt" for r in range(8)), "merged_ckpt_strategy.ckpt",
    ]  # fmt: skip
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("keys", "words", "code", "said"),
    [
        ({"transform_process_num": 3}, (), 2, "transform_process_num: 3, allowed: a number that divides"),
        ({"npu_num_per_node": 6}, (), 2, "npu_num_per_node: 6, allowed: a power of two"),
        ({"auto_trans_ckpt": "yes"}, (), 2, "auto_trans_ckpt: 'yes', allowed: True or False"),
        ({"load_ckpt_format": "pt"}, (), 2, "load_ckpt_format: 'pt', allowed: ckpt or safetensors"),
        ({}, ("--parallel_config.data_parallel", "16"), 2, "= 64, allowed: a product of 8, the world size"),
        ({"auto_trans_chkpt": True, "auto_trans_ckpt": None}, (), 2, "did you mean 'auto_trans_ckpt'?"),
        ({"src_strategy": "a", "src_strategy_path_or_dir": "b"}, (), 2, "allowed: one of the two"),
        ({"output_dir": "s3://bucket/out"}, (), 2, "allowed: a folder on disk"),
        ({"output_dir": "./run.yaml/out"}, (), 2, "run.yaml is a file"),
        ({"transform": "later"}, (), 2, "transform: 'later', allowed: write or on_load"),
        ({}, ("--transform_proces_num", "2"), 2, "did you mean --transform_process_num?"),
        ({}, ("--load_checkpoint",), 2, "--load_checkpoint has no value"),
        ({}, ("extra",), 2, "'extra': expected --KEY VALUE"),
        ({}, ("--", "no-such-command", "{config}"), 2, "no such command"),
        ({}, ("--",), 2, "no command after --"),
        ({}, ("--peer-timeout", "0"), 2, "--peer-timeout takes seconds above 0"),
        ({}, ("--hello-port", "65536"), 2, "--hello-port takes a number below 65536"),
        ({"load_checkpoint": "nowhere.ckpt"}, (), 3, "nowhere.ckpt"),
        ({"load_checkpoint": "run.yaml"}, (), 3, "run.yaml"),
        ({"src_strategy": "nowhere"}, (), 3, "nowhere"),
    ],
)
def test_what_is_refused_before_anything_is_written(
    tmp_path: Path, ranks: Ranks, keys: dict[str, object], words: tuple[str, ...], code: int, said: str
) -> None:
    (tmp_path / "rank_0").mkdir()
    (tmp_path / "rank_0/a.ckpt").touch()
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", **{"load_checkpoint": str(tmp_path), **keys})
    launched = {"RANK": "1", "WORLD_SIZE": "8"}
    ended = ranks.start("--config", config, *words, cwd=tmp_path, env=launched).ended()
    assert ended.code == code, ended.said
    assert said in ended.said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rank_0", "run.yaml"]


@pytest.mark.parametrize(
    ("env", "words", "said"),
    [
        ({}, ("--rank", "1"), "--rank and --world-size belong together"),
        ({"RANK": "1"}, (), "torchrun started this process and did not set WORLD_SIZE"),
        ({"MS_WORKER_NUM": "8"}, (), "MindSpore started this process and did not set RANK_ID"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, (), "RANK='x' is not a number"),
        ({}, ("--rank", "8", "--world-size", "8"), "rank 8 of 8"),
    ],
)
def test_half_a_launch_is_refused(
    tmp_path: Path, ranks: Ranks, env: dict[str, str], words: tuple[str, ...], said: str
) -> None:
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4")
    ended = ranks.start("--config", config, *words, cwd=tmp_path, env=env).ended()
    assert (ended.code, said in ended.said) == (2, True), ended.said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [", "not YAML"),
        ("- a", "not a MindFormers configuration"),
        ('{"architectures": ["Llama"]}', "none of its keys"),
        (None, "no such file"),
    ],
)
def test_what_is_no_yaml(tmp_path: Path, ranks: Ranks, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "run.yaml").write_text(content)
    ended = ranks.start("--config", "run.yaml", cwd=tmp_path).ended()
    assert (ended.code, said in ended.said) == (3, True), ended.said
