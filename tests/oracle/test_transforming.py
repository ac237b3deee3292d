"""Fresh checkpoints cut, re-cut and merged by MindSpore and by reshard: the same, byte for byte.

MindSpore saves a full checkpoint of random weights, cuts it for the first strategy of a chain, re-cuts it for each that
follows, and merges it at the end; reshard starts every step from MindSpore's own files.
"""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden.cases import faults, run_reshard
from golden.readers import read_weights, tensor_names, weight_files
from making import array, write_file

pytestmark = pytest.mark.oracle

GOLDEN = Path(__file__).parents[1] / "golden"
CHAINS = [
    ["strategies/layout_tuple", "strategies/layout_tuple_opt", "strategies/layout_interleave"],
    [
        "strategies/llama_dp2mp2pp2",
        "strategies/llama_dp4mp2_allopt",
        "strategies/llama_mp8",
        "strategies/llama_dp2mp4pp2",
    ],
    [
        "strategies/llama_dp2mp2pp2_interleave2",
        "strategies/llama_dp2mp4_vocabembdp",
        "strategies/llama_dp2mp2_bf16_json",
    ],
    ["families/qwen25_dp2mp4_opt_ws4", "families/qwen25_dp2mp2pp2_opt_ws8_pp", "families/qwen25_dp2cp4_opt"],
    ["families/qwen25_dp4mp2_opt_thr16", "families/qwen25_dp2mp2pp2_inter2"],
    ["families/qwen3_dp2mp4_opt_ws4", "families/qwen3_dp2mp2pp2_zbv", "families/qwen3_dp4mp2_opt_thr20"],
    ["families/mixtral_dp4mp2_ep4_opt", "families/mixtral_dp2mp2cp2_ep4_opt"],
    ["families/qwen3moe_dp4mp2ep4_opt", "families/qwen3moe_dp2mp2pp2ep4_opt"],
]
FORMS = ["ckpt", "safetensors"]


def parameters(chain: list[str]) -> dict[str, tuple[int, ...]]:
    """Name and full shape of the weights that all strategies of a chain know and the models have alike."""
    found: dict[str, tuple[int, ...]] = {}
    for i, config in enumerate(chain):
        how = json.loads((GOLDEN / config / "how.json").read_text())
        listed = how.get("params") or how["params_seen_by_cell_before_sharding"]
        known = tensor_names(GOLDEN / config)
        shapes = {name: tuple(shape) for name, shape, *_ in listed if name in known}
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(("adam_", "moment", "accu_"))}
        found = {name: shape for name, shape in shapes.items() if i == 0 or found.get(name) == shape}
    assert len(found) > 3, "the chain is of one model"
    return found


def weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Random weights of three types. bfloat16 passes through float32 in MindSpore, so there is no NaN in it."""
    made = {}
    for i, (name, shape) in enumerate(sorted(shapes.items())):
        bits = array(shape, ("float32", "float16", "int16")[i % 3], seed + i)
        made[name] = bits.astype(np.float32).astype(array((), "bfloat16").dtype) if i % 3 == 2 else bits
    return made


def strategy_of(config: str, folder: Path) -> Path:
    """A folder that holds the strategy files of a configuration and nothing else."""
    folder.mkdir()
    for file in (GOLDEN / config).glob("ckpt_strategy_rank_*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain[0].split("/")[1])
def test_chain(chain: list[str], form: str, tmp_path: Path, ask: Any) -> None:
    write_file(tmp_path / "full" / "rank_0" / f"full.{form}", weights(parameters(chain), seed=CHAINS.index(chain)))
    folders = [strategy_of(config, tmp_path / f"strategy_{i}") for i, config in enumerate(chain)]
    merged = [str(tmp_path / f"merged_{i}{next(f.iterdir()).suffix}") for i, f in enumerate(folders)]
    merges = [("merge", {"folder": str(f), "path": m}) for f, m in zip(folders, merged, strict=True)]
    places = [tmp_path / "full", *(tmp_path / f"theirs_{i}" for i in range(len(chain))), tmp_path / "theirs_full"]
    strategies = [None, *merged, None]
    steps = [
        (
            "transform",
            {
                "src_checkpoints_dir": str(places[i]),
                "dst_checkpoints_dir": str(places[i + 1]),
                "ckpt_prefix": "checkpoint_",
                "src_strategy_file": strategies[i],
                "dst_strategy_file": strategies[i + 1],
                "output_format": form,
            },
        )
        for i in range(len(places) - 1)
    ]
    assert ask([*merges, *steps]) == [{}] * (len(merges) + len(steps))

    known: list[Path | None] = [None, *folders, None]
    for (source, target), (before, after) in zip(pairwise(places), pairwise(known), strict=True):
        out = tmp_path / f"ours_{target.name}"
        options = [w for side, p in (("src", before), ("dst", after)) if p for w in (f"--{side}-strategy", str(p))]
        command = ["convert", str(source), str(out), "--format", form, "--missing", "drop", "--no-fsync"]
        assert run_reshard([*command, *options]) == 0
        assert rank_faults(out, target) == []


def rank_faults(ours: Path, theirs: Path) -> list[str]:
    ranks = {p.name for p in theirs.glob("rank_*")}
    assert ranks == {p.name for p in ours.glob("rank_*")}
    found = []
    for name in sorted(ranks):
        ((mine,), (their,)) = (weight_files(folder / name) for folder in (ours, theirs))
        found += [f"{name}: {fault}" for fault in faults(read_weights(mine), read_weights(their))]
    return found
