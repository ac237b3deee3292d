"""msrun starts MindSpore workers behind ``reshard auto``: their parts of a model, put together, are the model."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from making import array, write_file, write_strategy
from ports import free_port
from reshard.layout.tensor import Sharding

pytestmark = pytest.mark.oracle
WORKER = Path(__file__).with_name("auto_worker.py")
HIDDEN, INNER, RANKS = 8, 12, 4  # dp2·mp2
MATRIX = (2, 2)
LAYOUT = {
    "up.weight": Sharding(MATRIX, ((0,), ())),
    "up.bias": Sharding(MATRIX, ((0,),)),
    "down.weight": Sharding(MATRIX, ((), (0,))),
}
YAML = """
use_parallel: True
auto_trans_ckpt: True
load_checkpoint: model.ckpt
transform_process_num: 2
parallel_config: {data_parallel: 2, model_parallel: 2}
"""


def test_parts_computed_by_workers_make_the_model(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    shapes = {"up.weight": (INNER, HIDDEN), "up.bias": (INNER,), "down.weight": (HIDDEN, INNER)}
    model = {name: random.integers(-4, 5, shape).astype(np.float32) for name, shape in shapes.items()}  # sums are exact
    x = random.integers(-4, 5, (3, HIDDEN)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    write_file(tmp_path / "model.ckpt", model)
    write_strategy(tmp_path / "strategy", [LAYOUT])
    (tmp_path / "run.yaml").write_text(YAML)
    _msrun(pytestconfig, tmp_path)
    expected = np.maximum(x @ model["up.weight"].T + model["up.bias"], 0) @ model["down.weight"].T
    whole = np.load(tmp_path / "unsplit_0.npy")
    assert np.array_equal(whole, expected)  # MindSpore read the model as we wrote it
    for way in ("from_files", "from_source"):
        parts = [np.load(tmp_path / f"{way}_{rank}.npy") for rank in range(RANKS)]
        assert not np.array_equal(parts[0], parts[1])
        for group in (parts[:2], parts[2:]):  # each replica of the model
            assert np.array_equal(sum(group), whole)


def test_parameters_keep_their_bits(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    kinds = ("float32", "bfloat16", "float16", "int64", "int8", "bool")
    arrays = {kind: array((4, 6), kind, seed=seed) for seed, kind in enumerate(kinds)}
    arrays |= {"scalar": np.array(7.5, np.float32)}
    arrays["bfloat16"][np.isnan(arrays["bfloat16"].astype(np.float32))] = 1  # MindSpore casts NaNs to one of them
    write_file(tmp_path / "a.safetensors", arrays)
    code = """if True:
        import reshard.auto
        for name, p in reshard.auto.load({"load_checkpoint": "a.safetensors"}, arrays_as="mindspore").items():
            print(name, p.name, p.dtype, list(p.shape), p.get_bytes().hex())
    """
    python, env = _mindspore(pytestconfig)
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    types = {"bfloat16": "BFloat16", "bool": "Bool"}
    wanted = [
        f"{name} {name} {types.get(a.dtype.name, a.dtype.name.capitalize())} {list(a.shape)} {a.tobytes().hex()}"
        for name, a in arrays.items()
    ]
    assert sorted(done.stdout.splitlines()) == sorted(wanted)


def _mindspore(pytestconfig: pytest.Config) -> tuple[Path, dict[str, str]]:
    """The interpreter that has MindSpore, and its environment."""
    python = Path(pytestconfig.getoption("--mindspore")).absolute()
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return python, {**os.environ, "PATH": path, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "GLOG_v": "3"}


def _msrun(pytestconfig: pytest.Config, folder: Path) -> None:
    python, env = _mindspore(pytestconfig)
    command = [
        python.parent / "msrun", f"--worker_num={RANKS}", f"--local_worker_num={RANKS}", f"--master_port={free_port()}",
        "--join=True", "--cluster_time_out=120", f"--log_dir={folder / 'log'}",
        "python", "-m", "reshard", "auto", "--config", "run.yaml", "--dst-strategy", "strategy",
        "--", "python", WORKER, "{config}", folder,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    logs = "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted((folder / "log").glob("*.log")))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
