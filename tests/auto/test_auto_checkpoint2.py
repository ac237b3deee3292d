"""Jobs that load Checkpoint 2.0, and jobs that are given one: each gets what its loader reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jobs import LARGE, handed_over, write_yaml
from ranks import Ranks

from checkpoint2 import faults_of, write_checkpoint2
from making import Stages, array, read_file, same, shard_of, write_file, write_ranks, write_strategy
from reshard.auto import load
from reshard.errors import UsageError
from reshard.layout.tensor import Sharding
from reshard.ops.make_strategy import StrategyWish, made_stages

TWO = {"data_parallel": 1, "model_parallel": 2}


class Model:
    """The weights of a job's YAML, random bits, and how the job cuts them."""

    def __init__(self, folder: Path) -> None:
        config = write_yaml(folder / "any.yaml", "", sizes=LARGE, parallel_config=TWO)
        _, _, stages = made_stages(StrategyWish(config=str(config), optimizer="none"))
        self.full = {
            name: array(layout.shape, seed=seed)
            for seed, (name, layout) in enumerate((n, lay) for stage in stages for n, lay in stage.items())
        }
        self.stages: Stages = [{name: layout.sharding for name, layout in stage.items()} for stage in stages]

    def whole(self, devices: int) -> Stages:
        """Every one of so many ranks holds all of it."""
        return [{name: Sharding((devices,), ((),) * a.ndim) for name, a in self.full.items()}]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


def run(tmp_path: Path, ranks: Ranks, **keys: Any) -> list[Any]:
    config = write_yaml(tmp_path / "run.yaml", "", sizes=LARGE, parallel_config=TWO, **keys)
    return ranks.run(2, "--config", config, cwd=tmp_path)


@pytest.mark.parametrize("block", [False, True])
def test_rank_folders_become_what_the_newer_loader_reads(
    tmp_path: Path, ranks: Ranks, model: Model, block: bool
) -> None:
    cut = model.whole(4)
    source = str(write_ranks(tmp_path / "old", model.full, cut))
    strategy = str(write_strategy(tmp_path / "s", cut))
    newer: Mapping[str, Any] = {"checkpoint": {"load_path": source, "load_balanced": True}}
    keys = newer if block else {"load_checkpoint": source, "use_legacy_format": False, "auto_trans_ckpt": False}
    ended = run(tmp_path, ranks, src_strategy_path_or_dir=strategy, **keys)
    assert [e.code for e in ended] == [0, 0], ended[0].said
    made = tmp_path / "output" / "unified_checkpoint" / "old"
    assert faults_of(made, model.full, model.stages) == []
    told = handed_over(tmp_path)
    assert (told["checkpoint"]["load_path"] if block else told["load_checkpoint"]) == str(made)
    assert not block or told["checkpoint"]["load_balanced"] is True


def test_a_full_file_that_it_does_not_read(tmp_path: Path, ranks: Ranks, model: Model) -> None:
    source = write_file(tmp_path / "model.ckpt", model.full)
    ended = run(tmp_path, ranks, load_checkpoint=str(source), use_legacy_format=False, transform_process_num="auto")
    assert [e.code for e in ended] == [0, 0], ended[0].said
    assert faults_of(Path(handed_over(tmp_path)["load_checkpoint"]), model.full, model.stages) == []


def test_one_of_any_layout_is_left_to_it(tmp_path: Path, ranks: Ranks, model: Model) -> None:
    write_checkpoint2(tmp_path / "ckpt", model.full, model.whole(4))
    ended = run(tmp_path, ranks, load_checkpoint=str(tmp_path / "ckpt"), use_legacy_format=False)
    assert [e.code for e in ended] == [0, 0], ended[0].said
    assert handed_over(tmp_path) == yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert [p.name for p in (tmp_path / "output").iterdir()] == ["reshard_run.yaml"]


def test_a_job_of_the_older_format_is_fed_from_one(tmp_path: Path, ranks: Ranks, model: Model) -> None:
    write_checkpoint2(tmp_path / "ckpt", model.full, model.whole(4))
    ended = run(tmp_path, ranks, load_checkpoint=str(tmp_path / "ckpt"), load_ckpt_format="safetensors")
    assert [e.code for e in ended] == [0, 0], ended[0].said
    made = Path(handed_over(tmp_path)["load_checkpoint"])
    for rank in (0, 1):
        (path,) = (made / f"rank_{rank}").iterdir()
        held = read_file(path)
        wanted = {name: shard_of(model.full[name], s, rank) for name, s in model.stages[0].items()}
        assert [name for name, a in wanted.items() if not same(held[name], a)] == []


def test_its_weights_are_loaded_without_writing(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint2(tmp_path / "ckpt", model.full, model.whole(4))
    keys = {"load_checkpoint": str(tmp_path / "ckpt"), "parallel_config": TWO}
    config = write_yaml(tmp_path / "run.yaml", "", sizes=LARGE, **keys)
    ours = load(config, rank=1, world_size=2)
    assert [n for n, s in model.stages[0].items() if not same(np.asarray(ours[n]), shard_of(model.full[n], s, 1))] == []


def test_a_strategy_of_what_describes_itself_is_refused(tmp_path: Path, model: Model) -> None:
    write_checkpoint2(tmp_path / "ckpt", model.full, model.whole(2))
    keys = {"load_checkpoint": str(tmp_path / "ckpt"), "src_strategy_path_or_dir": str(tmp_path / "s")}
    config = write_yaml(tmp_path / "run.yaml", "", sizes=LARGE, parallel_config=TWO, **keys)
    with pytest.raises(UsageError, match="leave it empty"):
        load(config, rank=0, world_size=2)
