"""Jobs of a small Llama whose strategies MindSpore compiled: their YAML, and their golden answers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from golden.cases import Case, unpack
from making import array, write_file
from reshard.ops.make_strategy import StrategyWish, made_stages

SIZES = {
    "dp2mp4": {"data_parallel": 2, "model_parallel": 4},
    "dp1mp4pp2": {"data_parallel": 1, "model_parallel": 4, "pipeline_stage": 2},
    "dp2mp2pp2": {"data_parallel": 2, "model_parallel": 2, "pipeline_stage": 2},
    "dp8": {"data_parallel": 8},
}


GOLDEN = {"hidden_size": 16, "vocab_size": 64, "intermediate_size": 48}
"""The model of the golden answers."""
LARGE = {"hidden_size": 64, "vocab_size": 512, "multiple_of": 32}
"""One whose copying can be slowed down."""


def write_yaml(path: Path, layout: str, sizes: Mapping[str, int] = GOLDEN, **keys: Any) -> Path:
    """A training job as a user writes it. ``layout`` is a key of SIZES, or "" to leave parallel_config out."""
    content: dict[str, Any] = {
        "run_mode": "train",
        "use_parallel": True,
        "output_dir": "./output",
        "auto_trans_ckpt": True,
        **keys,
        "model": {
            "arch": {"type": "LlamaForCausalLM"},
            "model_config": {
                "type": "LlamaConfig",
                "num_layers": 4,
                "num_heads": 8,
                "n_kv_heads": 4,
                **sizes,
                "param_init_type": "float32",
            },
        },
        "optimizer": {"type": "AdamW"},
        "parallel": {"parallel_mode": 1, "enable_parallel_optimizer": False},
    }
    if layout:
        content["parallel_config"] = {**SIZES[layout], "vocab_emb_dp": False}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def golden(name: str, folder: Path) -> Case:
    """A golden case, unpacked."""
    folder.mkdir()
    return unpack(name, folder)


def source_of(case: Case) -> Path:
    """What load_checkpoint would name: the folder of ``rank_x``, or the one full file."""
    files = [p for p in (case.folder / "src").rglob("*") if p.suffix in (".ckpt", ".safetensors")]
    return files[0] if len(files) == 1 else case.folder / "src"


def written_by_job(case: Case, output: Path) -> None:
    """The job's compiled strategy, where the job leaves it."""
    strategy = case.strategy("dst")
    assert strategy
    shutil.copytree(strategy, output / "strategy")


def handed_over(folder: Path) -> Mapping[str, Any]:
    """The settings that the framework starts with."""
    content: dict[str, Any] = yaml.safe_load((folder / "output/reshard_run.yaml").read_text())
    return content


def write_model(path: Path, config: Path) -> Path:
    """A full checkpoint of random bits for the model of a YAML."""
    _, _, stages = made_stages(StrategyWish(config=str(config), optimizer="none"))
    shapes = {name: layout.shape for stage in stages for name, layout in stage.items()}
    return write_file(path, {name: array(shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())})
