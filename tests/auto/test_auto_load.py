"""Loading without writing: every rank's arrays, straight from the source's files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import LARGE, golden, source_of, write_model, write_yaml
from ranks import Ranks

import reshard.auto
from making import array, counted, differing, read_file, read_rank, same, tree, write_file, write_strategy
from reshard.auto import Call, converting, job_names, load, prepare
from reshard.errors import CheckpointError, UsageError
from reshard.families import planner
from reshard.layout.tensor import Sharding

WORLD = 8


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("RANK", "WORLD_SIZE", "OMPI_", "SLURM_", "MS_", "MASTER_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("full_to_dp2mp4", "dp2mp4"), ("dp2mp2pp2_to_dp1mp4pp2", "dp1mp4pp2"), ("st_dp2mp2pp2_to_dp2mp4", "dp2mp4")],
)
def test_every_rank_of_a_golden_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, layout: str) -> None:
    monkeypatch.chdir(tmp_path)
    case = golden(name, tmp_path / "case")
    strategy = case.strategy("src")
    keys = {"src_strategy": str(strategy)} if strategy else {}
    config = write_yaml(
        tmp_path / "run.yaml", layout, load_checkpoint=str(source_of(case)), transform="on_load", **keys
    )
    before = tree(tmp_path)
    for rank in range(WORLD):
        wanted = read_rank(case.expected, rank)
        ours = load(config, rank=rank, world_size=WORLD)
        wanted = {n: a for n, a in wanted.items() if n in ours or not n.startswith("accu_grads")}
        assert differing(ours, wanted) == []
    assert tree(tmp_path) == before


def test_many_to_one_and_the_launchers_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden("dp2mp2pp2_to_full", tmp_path / "case")
    settings = {
        "load_checkpoint": str(source_of(case)),
        "src_strategy": str(case.strategy("src")),
        "use_parallel": False,
    }
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert differing(load(settings), read_rank(case.expected, 0)) == []


@pytest.mark.parametrize("rank", [0, 3])
def test_one_full_checkpoint_in_rank_0_is_every_ranks(tmp_path: Path, rank: int) -> None:
    """As a merge leaves it."""
    whole = {"w": counted(4, 3)}
    write_file(tmp_path / "merged/rank_0/checkpoint_0.ckpt", whole)
    keys = {"load_checkpoint": str(tmp_path / "merged"), "use_parallel": False}
    assert differing(load(keys, rank=rank, world_size=WORLD), whole) == []


def test_arrays_are_mapped_where_bytes_lie_together(tmp_path: Path) -> None:
    model = write_model(tmp_path / "llama.safetensors", write_yaml(tmp_path / "any.yaml", "dp2mp4", sizes=LARGE))
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(model), sizes=LARGE)
    ours = load(config, rank=0, world_size=WORLD)
    kinds = {name: isinstance(ours[name], np.memmap) for name in ours}
    assert kinds["model.layers.0.attention.wq.weight"]  # cut by rows
    assert not kinds["model.layers.0.attention.wo.weight"]  # cut by columns
    one = ours["model.layers.0.attention.wq.weight"]
    one[:] = 0
    assert not same(one, ours["model.layers.0.attention.wq.weight"])  # the caller's own


def read_nbytes() -> int:
    """What this process has asked the system to read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_what_is_read_and_when(tmp_path: Path) -> None:
    """Headers at once, of what is asked for a rank's own rows, and whole rows where these are cut."""
    names = {"rows": Sharding((4,), ((0,), ())), "columns": Sharding((4,), ((), (0,)))}
    model = {name: array((512, 512), seed=seed) for seed, name in enumerate((*names, "unused"))}
    write_strategy(tmp_path / "strategy", [{**names, "unused": names["rows"]}])
    nbytes = model["rows"].nbytes
    slack = 100_000  # a header is read with what follows it
    for suffix in ("ckpt", "safetensors"):
        load({"load_checkpoint": str(write_file(tmp_path / f"model.{suffix}", model))})["columns"]
        keys = {"load_checkpoint": str(tmp_path / f"model.{suffix}")}
        start = read_nbytes()
        ours = load(keys, rank=1, world_size=4, call=Call(dst_strategy=str(tmp_path / "strategy")))
        opened = read_nbytes()
        mapped = ours["rows"]
        got_rows = read_nbytes()
        read = ours["columns"]
        got_columns = read_nbytes()
        assert opened - start < slack
        assert got_rows - opened < slack  # mapped
        assert nbytes <= got_columns - got_rows < nbytes + slack
        assert same(np.array(mapped), model["rows"][128:256])
        assert same(read, np.ascontiguousarray(model["columns"][:, 128:256]))


def test_slices_that_match_without_a_strategy_are_this_ranks_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: Ranks
) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_model(tmp_path / "llama.ckpt", write_yaml(tmp_path / "any.yaml", "dp2mp4", sizes=LARGE))
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(model), sizes=LARGE)
    assert {e.code for e in ranks.run(WORLD, "--config", config, cwd=tmp_path)} == {0}
    made = tmp_path / "output/transformed_checkpoint/llama"
    for rank in range(WORLD):  # from what is handed over, and from the model itself: the same
        wanted = read_file(made / f"rank_{rank}/checkpoint_{rank}.ckpt")
        assert differing(load("output/reshard_run.yaml", rank=rank, world_size=WORLD), wanted) == []
        assert differing(load(config, rank=rank, world_size=WORLD), wanted) == []


def test_on_load_converts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case = golden("full_to_dp2mp4", tmp_path / "case")
    config = write_yaml(tmp_path / "run.yaml", "dp2mp4", load_checkpoint=str(source_of(case)))
    done = prepare(config, rank=2, world_size=WORLD, call=Call(changes={"transform": "on_load"}))
    assert (done.action, done.load_checkpoint) == ("on load", str(source_of(case)))
    assert [p.name for p in (tmp_path / "output").iterdir()] == ["reshard_run.yaml"]
    assert differing(load(done.config, rank=2, world_size=WORLD), read_rank(case.expected, 2)) == []


def test_prepare_in_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process alone, settings as a mapping: the whole checkpoint from its slices."""
    monkeypatch.chdir(tmp_path)
    case = golden("dp2mp2pp2_to_full", tmp_path / "case")
    settings = {
        "auto_trans_ckpt": True, "load_checkpoint": str(source_of(case)), "src_strategy": str(case.strategy("src")),
        "use_parallel": False,
    }  # fmt: skip
    done = reshard.auto.prepare(settings)
    assert done.action == "converted"
    assert differing(read_file(Path(done.load_checkpoint)), read_rank(case.expected, 0)) == []


@pytest.mark.skipif(find_spec("mindspore") is not None, reason="MindSpore is installed here")
def test_a_framework_that_is_absent(tmp_path: Path) -> None:
    model = write_file(tmp_path / "a.ckpt", {"w": np.zeros(2, np.float32)})
    with pytest.raises(UsageError, match="mindspore is not installed"):
        load({"load_checkpoint": str(model)}, arrays_as="mindspore")


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    case = golden("dp2mp2pp2_to_full", tmp_path / "case")
    with pytest.raises(UsageError, match="load_checkpoint is empty"):
        load({})
    with pytest.raises(CheckpointError, match="no strategy"):
        load({"load_checkpoint": str(source_of(case)), "use_parallel": False})
    model = write_file(tmp_path / "a.ckpt", {"w": np.zeros(2, np.float32)})
    with pytest.raises(UsageError, match="arrays as 'jax'"):
        load({"load_checkpoint": str(model)}, arrays_as="jax")  # type: ignore[arg-type]


def test_nothing_of_a_framework_is_imported(tmp_path: Path) -> None:
    write_file(tmp_path / "a.ckpt", {"w": np.zeros(2, np.float32)})
    code = """if True:
        import sys, reshard.auto
        reshard.auto.load({"load_checkpoint": "a.ckpt"})["w"]
        sys.exit(bool({"torch", "mindspore"} & set(sys.modules)))
    """
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


KINDS = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float64", "int64", "int8", "uint16", "bool")


def test_torch_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    arrays = {kind: array((4, 6), kind, seed=seed) for seed, kind in enumerate(KINDS)}
    arrays |= {"scalar": np.array(7.5, np.float32), "empty": np.zeros((0, 3), np.float32)}
    model = write_file(tmp_path / "a.safetensors", arrays)
    tensors = load({"load_checkpoint": str(model)}, arrays_as="torch")
    assert tensors.keys() == arrays.keys()
    for name, tensor in tensors.items():
        wanted = arrays[name]
        assert str(tensor.dtype) == f"torch.{wanted.dtype.name}"
        assert tuple(tensor.shape) == wanted.shape
        assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == wanted.tobytes()
    tensors["float32"][0, 0] = 1  # the caller's own
    assert same(read_file(model)["float32"], arrays["float32"])


@pytest.mark.parametrize(("name", "layout"), [("full_to_dp2mp4", "dp2mp4"), ("dp2mp2pp2_to_dp1mp4pp2", "dp1mp4pp2")])
def test_who_leads_and_writes_reads_headers_once_plans_once_and_notes_no_strategy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, layout: str
) -> None:
    monkeypatch.chdir(tmp_path)
    case = golden(name, tmp_path / "case")
    strategy = case.strategy("src")
    keys = {"src_strategy": str(strategy)} if strategy else {}
    config = write_yaml(tmp_path / "run.yaml", layout, load_checkpoint=str(source_of(case)), npu_num_per_node=1, **keys)
    asked: list[str] = []
    for place, step in ((job_names, "open_source"), (converting, "planned"), (planner, "make_plan")):
        monkeypatch.setattr(place, step, _noting(asked, getattr(place, step)))
    prepare(config, rank=3, world_size=WORLD, call=Call(per_node=True))
    assert sorted(asked) == ["make_plan", "open_source", "planned"]
    made = tmp_path / "output" / "transformed_checkpoint"
    ours, wanted = (read_rank(folder, 3) for folder in (next(made.iterdir()), case.expected))
    assert ours.keys() <= wanted.keys()
    assert all(same(ours[name], wanted[name]) for name in ours)
    assert [p for p in (tmp_path / "output" / ".reshard-auto").rglob("*") if p.suffix == ".ckpt"] == []


def _noting(asked: list[str], call: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*given: Any) -> Any:
        asked.append(call.__name__)
        return call(*given)

    return noted
