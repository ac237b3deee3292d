"""MindFormers' own operators judge what Hugging Face's weights become in its core, and what is made of them again."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hub_model import SIZES, qwen3, write_hub
from making import array, read_file, same, write_file
from reshard import Options
from reshard.names.wishes import Asked, Naming
from reshard.ops.convert import convert

pytestmark = pytest.mark.oracle

SIDE = Path(__file__).with_name("mindformers_names.py")
KEYS = {"num_attention_heads": "num_attention_heads", "num_query_groups": "num_key_value_heads",
        "kv_channels": "head_dim", "hidden_size": "hidden_size"}  # fmt: skip


@pytest.fixture
def side(pytestconfig: pytest.Config) -> list[str]:
    python = pytestconfig.getoption("--mindspore")
    package = Path(python).absolute().parent.parent / "mindformers" if python else None
    if package is None or not package.is_dir():
        pytest.skip("MindFormers does not lie beside MindSpore; make test-oracle brings it")
    return [str(Path(python).absolute()), str(SIDE), str(package), "qwen3"]


def judged(side: list[str], folder: Path, weights: dict[str, np.ndarray], way: str, *, interleaved: bool) -> Path:
    """What MindFormers makes of the weights, as a file."""
    np.savez(folder / "weights.npz", **weights)  # type: ignore[arg-type]
    sizes = {ours: SIZES[theirs] for ours, theirs in KEYS.items()} | {"use_interleaved_weight_layout_mlp": interleaved}
    words = [*side, json.dumps(sizes), str(folder / "weights.npz"), str(folder / "answer.npz"), way]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "answer.npz"


@pytest.mark.parametrize("gate_up", ["interleaved", "concat"])
def test_it_makes_the_same(side: list[str], tmp_path: Path, gate_up: str) -> None:
    hub = write_hub(tmp_path / "hub", qwen3())
    asked = Asked({"qkv": "grouped", "gate_up": gate_up})
    convert(hub, tmp_path / "core.safetensors", Options(naming=Naming(dst="mcore", asked=asked)))
    ours = read_file(tmp_path / "core.safetensors")
    theirs = np.load(judged(side, tmp_path, qwen3(), "there", interleaved=gate_up == "interleaved"))
    assert ours.keys() == set(theirs)
    assert all(same(ours[name], theirs[name]) for name in ours)
    trained = {name: array(value.shape, seed=99 + n) for n, (name, value) in enumerate(ours.items())}
    write_file(tmp_path / "trained.safetensors", trained)
    back = Naming(dst="hf", model=str(hub / "config.json"), asked=asked)
    convert(tmp_path / "trained.safetensors", tmp_path / "back.safetensors", Options(naming=back))
    ours = read_file(tmp_path / "back.safetensors")
    theirs = np.load(judged(side, tmp_path, trained, "back", interleaved=gate_up == "interleaved"))
    assert ours.keys() == set(theirs)
    assert all(same(ours[name], theirs[name]) for name in ours)
