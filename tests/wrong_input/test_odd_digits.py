"""Numbers in digits that Python's own tests of digits take and its ``int`` does not: ², and thousands of nines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from program import run

import reshard
from making import write_file
from reshard.auto.launch import launch_of
from reshard.cli.sharing import parse_share
from reshard.errors import CheckpointError, UsageError

MANY = "9" * 5000


@pytest.fixture
def full(tmp_path: Path) -> str:
    return str(write_file(tmp_path / "full.safetensors", {"w": np.zeros(2, np.float32)}))


@pytest.mark.parametrize("workers", ["²", MANY])
def test_workers(full: str, tmp_path: Path, workers: str) -> None:
    done = run("convert", full, str(tmp_path / "out"), "--workers", workers)
    assert done.code == 2
    assert "a number from 1 to 1024, or auto" in done.err


@pytest.mark.parametrize("said", ["²", MANY])
@pytest.mark.parametrize("folder", ["iter_0000010/mp_rank_00", "iteration_00000010"])
def test_a_tracker_of_iterations(tmp_path: Path, folder: str, said: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    for name in ("model_optim_rng.pt", "metadata.json"):
        (tmp_path / folder / name).write_bytes(b'{"state_dict_metadata": {}, "storage_data": {}}')
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(said)
    with pytest.raises(CheckpointError, match=r"is no (number of an )?iteration"):
        reshard.open(tmp_path)


def test_the_tracker_above_an_iteration(tmp_path: Path) -> None:
    from reshard.families.checkpoint2_folders import _beyond_tracker
    from reshard.families.registry import listing

    (tmp_path / "iteration_00000010").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(MANY)
    assert _beyond_tracker(listing(str(tmp_path / "iteration_00000010"))) == []


@pytest.mark.parametrize("rank", ["²", MANY])
def test_the_environment_of_a_launcher(rank: str) -> None:
    with pytest.raises(UsageError, match="is not a number"):
        launch_of({"RANK": rank, "WORLD_SIZE": "2"})


@pytest.mark.parametrize("odd", [{"ID": "²"}, {"STEP": "²"}, {"COUNT": "²"}, {"ID": MANY}])
def test_an_array_of_jobs(odd: Mapping[str, str]) -> None:
    said = {"ID": "1", "MIN": "0", "MAX": "3", **odd}
    environment = {f"SLURM_ARRAY_TASK_{what}": text for what, text in said.items()}
    launched = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    assert parse_share("auto", {**environment, **launched}).count == (2 if "ID" in odd else 8)


def test_the_notes_of_a_target(full: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = out / ".reshard" / "done"
    reshard.convert(full, out)
    done.mkdir(exist_ok=True)
    (done / "².json").write_text("{}")
    reshard.convert(full, out, reshard.Options(resume=True))
    assert os.listdir(done) in ([], ["².json"])
