"""A real GPTModel loads what we write, at other sizes; what its ranks save we read as it means it, in either form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from beside import SHARED
from making import read_file, same
from reshard import Options
from reshard.planning.names import NameRules

pytest.importorskip("megatron.core", reason="no Megatron-Core here; make test-megatron has an environment with it")
GOLDEN = SHARED / "golden-families" / "torch"
pytestmark = [
    pytest.mark.megatron,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden Megatron checkpoints are not beside this repository"),
]


def run(script: Path, *words: object) -> None:
    command = [sys.executable, str(script), *map(str, words)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "GOLDEN": str(GOLDEN)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def whole(source: Path, folder: Path) -> dict[str, np.ndarray]:
    reshard.convert(source, folder, Options(fsync=False))
    return read_file(folder)


LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "virtual stages": ({"tp": 2, "pp": 2, "vp": 2, "L": 8}, {"untie_embeddings_and_output_weights": True}),
    "tied": ({"tp": 2, "pp": 2, "L": 2, "tied": True}, {"untie_embeddings_and_output_weights": False}),
    "gpt2": ({"tp": 2, "pp": 2, "kind": "gpt2", "L": 4}, {}),
    "qwen3": ({"pp": 2, "kind": "qwen3", "L": 4}, {}),
    "experts": ({"ep": 2, "kind": "moe", "L": 2}, {}),
    "experts cut": ({"tp": 2, "kind": "moe", "L": 2}, {}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_ranks_and_the_distributed_form_are_read_as_the_same(name: str, tmp_path: Path) -> None:
    gpt, told = LAYOUTS[name]
    run(Path(__file__).with_name("save_model.py"), tmp_path, json.dumps(gpt), json.dumps(told))
    ranks, dist = (whole(tmp_path / kind, tmp_path / f"{kind}.safetensors") for kind in ("legacy", "dist"))
    assert ranks.keys() == dist.keys()
    assert all(same(ranks[name], value) for name, value in dist.items())


@pytest.mark.parametrize(
    ("case", "gpt"),
    [
        ("m_legacy_tp2pp2", {"pp": 4, "L": 4}),
        ("m_llama_tp2pp2", {"tp": 4, "L": 4}),
        ("w_megatron_from_hf", {"tp": 2, "pp": 2, "L": 4}),
        ("m_tied_pp2", {"tp": 2, "L": 2, "tied": True}),
        ("m_qwen2_tp2", {"pp": 2, "L": 2, "kind": "qwen2"}),
        ("m_moe_ep2", {"tp": 2, "pp": 2, "L": 2, "kind": "moe"}),
        ("m_gpt2_tp2", {"tp": 4, "L": 2, "kind": "gpt2"}),
    ],
)
def test_a_model_loads_the_distributed_form(case: str, gpt: dict[str, Any], tmp_path: Path) -> None:
    reshard.convert(GOLDEN / "cases" / case / "src", tmp_path / "out", Options(to="torch_dist", files=2, fsync=False))
    (save,) = (entry for entry in (tmp_path / "out").iterdir() if entry.is_dir() and entry.name[0] != ".")
    right = GOLDEN / "cases" / case / "tensors.json"
    run(GOLDEN / "check_loads.py", "megatron-gpt", save, right, "--gpt", json.dumps(gpt))


@pytest.mark.parametrize(
    ("case", "gpt"),
    [
        ("w_megatron_from_hf", {"tp": 2, "pp": 2, "L": 4}),
        ("m_llama_tp2pp2", {"tp": 1, "pp": 4, "L": 4}),
        ("m_tied_pp2", {"tp": 2, "pp": 2, "L": 2, "tied": True}),
        ("m_moe_ep2", {"tp": 2, "L": 2, "kind": "moe"}),
        ("m_gpt2_tp2", {"pp": 2, "L": 2, "kind": "gpt2"}),
    ],
)
def test_a_model_loads_rank_folders(case: str, gpt: dict[str, Any], tmp_path: Path) -> None:
    rules = NameRules(weights_only=True)
    options = Options(to="megatron", tp=gpt.get("tp", 1), pp=gpt.get("pp", 1), names=rules, fsync=False)
    reshard.convert(GOLDEN / "cases" / case / "src", tmp_path / "out", options)
    (save,) = (entry for entry in (tmp_path / "out").iterdir() if entry.is_dir() and entry.name[0] != ".")
    right = GOLDEN / "cases" / case / "tensors.json"
    run(GOLDEN / "check_loads.py", "legacy", save, right, "--gpt", json.dumps(gpt))
