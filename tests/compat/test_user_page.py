"""Every command that the page for MindFormers' users prints, as written there apart from paths, on tiny weights."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from making import Stages, counted, differing, read_file, same, shard_of, write_file, write_ranks, write_strategy
from reshard.layout.tensor import Sharding
from reshard.ops.convert import convert
from reshard.ops.options import Options

SCRIPTS = Path(__file__).parents[2] / "scripts"
Run = Callable[[str], "subprocess.CompletedProcess[str]"]

DP2MP4: Stages = [{"w": Sharding((2, 4), ((0,), ())), "n": Sharding((2, 4), ((),))}]
DP2MP4PP2: Stages = [
    {"model.layers.0.w": Sharding((2, 4), ((0,), ()))},
    {"model.layers.1.w": Sharding((2, 4), ((), (0,)))},
]
FULL = {"w": counted(8, 4), "n": counted(4)}
LAYERS = {"model.layers.0.w": counted(8, 4), "model.layers.1.w": counted(4, 8)}
LORA = {
    "q.weight": counted(4, 4),
    "q.mindpet_delta_lora_a": counted(2, 4),
    "q.mindpet_delta_lora_b": counted(4, 2),
    "n": counted(4),
}
DP2MP2_LORA: Stages = [
    {
        "q.weight": Sharding((2, 2), ((0,), ())),
        "q.mindpet_delta_lora_a": Sharding((2, 2), ((), ())),
        "q.mindpet_delta_lora_b": Sharding((2, 2), ((0,), ())),
        "n": Sharding((2, 2), ((),)),
    }
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command of the page in ``tmp_path``, with our scripts in place of MindFormers'."""
    places = {"python": sys.executable}
    places |= {f"mindformers/tools/ckpt_transform/{p.name}": str(p) for p in SCRIPTS.iterdir()}
    places |= {f"mindformers/tools/{p.name}": str(p) for p in SCRIPTS.iterdir()}
    places |= {p.name: str(p) for p in SCRIPTS.iterdir()}

    def ran(command: str) -> subprocess.CompletedProcess[str]:
        words = [places.get(word, word) for word in shlex.split(command.replace("/worker/", f"{tmp_path}/worker/"))]
        return subprocess.run(
            words,
            cwd=tmp_path,
            env={**os.environ, "PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return ran


def assert_cut(folder: Path, full: dict[str, np.ndarray], stages: Stages) -> None:
    """Every rank has its slices of the full tensors, in the one file of the one name."""
    devices = next(iter(stages[0].values())).devices
    ranks = range(devices * len(stages))
    assert sorted(p.name for p in folder.glob("rank_*")) == sorted(f"rank_{r}" for r in ranks)
    for rank in ranks:
        assert [p.name for p in (folder / f"rank_{rank}").iterdir()] == [f"checkpoint_{rank}.ckpt"]
        held = read_file(folder / f"rank_{rank}" / f"checkpoint_{rank}.ckpt")
        want = {n: shard_of(full[n], s, rank % devices) for n, s in stages[rank // devices].items()}
        assert differing(held, want) == []


def test_one_to_eight_by_one_process(tmp_path: Path, run: Run) -> None:
    write_file(tmp_path / "worker/checkpoint/llama3-8b-2layer/rank_0/llama3_8b.ckpt", FULL)
    write_strategy(tmp_path / "worker/mindformers/output/strategy", DP2MP4)
    done = run("""python transform_checkpoint.py \
  --src_checkpoint=/worker/checkpoint/llama3-8b-2layer/rank_0/llama3_8b.ckpt \
  --dst_checkpoint=/worker/transform_ckpt/llama3_8b_1to8/ \
  --dst_strategy=/worker/mindformers/output/strategy/""")
    assert done.returncode == 0, done.stderr
    assert_cut(tmp_path / "worker/transform_ckpt/llama3_8b_1to8/llama3_8b", FULL, DP2MP4)
    assert done.stdout.endswith("......Transform finished!......\n")


def test_one_to_eight_by_two_processes(tmp_path: Path, run: Run) -> None:
    write_file(tmp_path / "worker/checkpoint/llam3-8b-2layer/rank_0/llama3_8b.ckpt", FULL)
    write_strategy(tmp_path / "worker/mindformers/output/strategy", DP2MP4)
    done = run("""bash transform_checkpoint.sh \
  /worker/checkpoint/llam3-8b-2layer/rank_0/llama3_8b.ckpt \
  None \
  /worker/transform_ckpt/llama3_8b_1to8/ \
  /worker/mindformers/output/strategy/ \
  8 2""")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "worker/transform_ckpt/llama3_8b_1to8/llama3_8b"
    assert_cut(out, FULL, DP2MP4)
    assert sorted(p.name for p in out.glob("*.txt")) == ["transform_succeed_rank_0.txt", "transform_succeed_rank_4.txt"]
    assert done.stdout.splitlines() == [
        "start device_0 with rank_id 0",
        f"transform log saved in {tmp_path}/log/transform_0.log",
        "start device_1 with rank_id 4",
        f"transform log saved in {tmp_path}/log/transform_1.log",
        "transform finished",
    ]
    assert "Transforming Ckpt For Rank: 7" in (tmp_path / "log/transform_1.log").read_text()


@pytest.mark.parametrize(
    "command",
    [
        """python mindformers/tools/ckpt_transform/transform_checkpoint.py \
      --src_checkpoint=/worker/checkpoint/llama3-8b/rank_0/llama_7b.ckpt \
      --dst_checkpoint=./output/llama3_8b_dp2mp4pp2 \
      --dst_strategy=./output/strategy""",
        """bash mindformers/tools/ckpt_transform/transform_checkpoint.sh \
      /worker/checkpoint/llama3-8b/rank_0/llama_7b.ckpt \
      None \
      ./output/llama3_8b_dp2mp4pp2 \
      ./output/strategy \
      16 2""",
    ],
    ids=["py", "sh"],
)
def test_dp2mp4pp2_for_two_servers(command: str, tmp_path: Path, run: Run) -> None:
    write_file(tmp_path / "worker/checkpoint/llama3-8b/rank_0/llama_7b.ckpt", LAYERS)
    write_strategy(tmp_path / "output/strategy", DP2MP4PP2)
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert_cut(tmp_path / "output/llama3_8b_dp2mp4pp2/llama_7b", LAYERS, DP2MP4PP2)
    assert "merged_ckpt_strategy.ckpt" in {p.name for p in (tmp_path / "output/strategy").iterdir()}


@pytest.mark.parametrize("source", ["full", "distributed"])
def test_lora(source: str, tmp_path: Path, run: Run) -> None:
    if source == "full":
        write_file(tmp_path / "worker/xxx/xxx.ckpt", LORA)
        given = "--src_ckpt_path_or_dir /worker/xxx/xxx.ckpt"
    else:
        write_ranks(tmp_path / "worker/xxx/model_dir", LORA, DP2MP2_LORA)
        write_strategy(tmp_path / "worker/xxx/mindformers/output/strategy", DP2MP2_LORA)
        given = """--src_ckpt_strategy /worker/xxx/mindformers/output/strategy/ \
  --src_ckpt_path_or_dir /worker/xxx/model_dir"""
    done = run(f"""python mindformers/tools/transform_ckpt_lora.py \
  {given} \
  --dst_ckpt_dir dst_ckpt_dir \
  --prefix "checkpoint_" \
  --lora_scaling 16/8""")
    assert done.returncode == 0, done.stderr
    made = read_file(tmp_path / "dst_ckpt_dir/merged_lora.ckpt")
    a, b = LORA["q.mindpet_delta_lora_a"], LORA["q.mindpet_delta_lora_b"]
    assert made.keys() == {"q.weight", "n"}
    assert same(made["q.weight"], LORA["q.weight"] + (b @ a) * np.float32(2))


@pytest.mark.parametrize("has_redundancy", ["True", "False"])
@pytest.mark.parametrize("thinned", [True, False])
def test_both_safetensors_merges(has_redundancy: str, thinned: bool, tmp_path: Path, run: Run) -> None:
    strategy = write_strategy(tmp_path / "strategy", DP2MP4)
    write_file(tmp_path / "full.safetensors", FULL)
    options = Options(dst_strategy=str(strategy), prefix="llama_rank_", drop_redundancy=thinned)
    convert(tmp_path / "full.safetensors", tmp_path / "mindspore_ckpt_dir", options)
    for path in (tmp_path / "mindspore_ckpt_dir").glob("rank_*/*"):
        path.rename(path.with_name(f"{path.stem}-1_1.safetensors"))
    done = run(f"""python mindformers/tools/convert_reversed.py \
  --src_strategy_dirs strategy \
  --mindspore_ckpt_dir mindspore_ckpt_dir\
  --tmp_dir tmp_dir \
  --file_suffix "1_1" \
  --has_redundancy {has_redundancy}""")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "tmp_dir/1_1_ckpt_convert"
    assert sorted(p.name for p in (out / "unified_safe").glob("[!.]*")) == ["param_name_map.json", "part0.safetensors"]
    assert (out / "merge_strategy/merge_strategy.ckpt").is_file()
    made = read_file(out / "unified_safe/part0.safetensors")
    assert differing(made, FULL) == []
