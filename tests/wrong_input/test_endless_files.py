"""A pipe or a device where a file is expected: nobody waits for it, and no memory is filled with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from program import refused

from making import array, write_file, write_ranks, write_strategy
from reshard.layout.tensor import Sharding

DEVICE = "/dev/null"  # as endless as others, for one who looks what it is before he reads

GIVEN = {
    "a source": ("inspect", DEVICE),
    "the source's strategy": ("merge", "ranks", "out", "--src-strategy", DEVICE),
    "the target's strategy": ("convert", "full", "out", "--dst-strategy", DEVICE),
    "a strategy that is shown": ("strategy", "show", DEVICE),
    "a file of a folder of strategies": ("strategy", "show", "strategies"),
    "a configuration": ("strategy", "make", "--config", DEVICE, "-o", "made"),
    "rules": ("strategy", "make", "--rules", DEVICE, "--dp", "2", "--checkpoint", "full", "-o", "made"),
    "the configuration of a job": ("auto", "--config", DEVICE),
    "ranks of nodes": ("convert", "ranks", "out", "--src-strategy", "s", "--engine", "ray", "--nodes-local", DEVICE),
    "scaling": ("lora", "merge", "full", "out", "--config", DEVICE),
    "a model": ("names", "full", "--dst-names", "hf", "--model", "link/config.json"),
    "a file of a folder": ("inspect", "link"),
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    full, stages = {"w": array((4, 2))}, [{"w": Sharding((2, 1), ((1,), (0,)))}]
    write_file(tmp_path / "full/model.safetensors", full)
    write_ranks(tmp_path / "ranks", full, stages)
    write_strategy(tmp_path / "s", stages)
    (tmp_path / "link").mkdir()
    (tmp_path / "strategies").mkdir()
    for name in ("link/config.json", "link/model.safetensors", "strategies/ckpt_strategy_rank_0.ckpt"):
        (tmp_path / name).symlink_to(DEVICE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", GIVEN.values(), ids=GIVEN)
def test_a_device_is_refused(words: tuple[str, ...], work: Path) -> None:
    told = refused(3, *words, target=work / "out")
    assert "a pipe or a device, not a file" in told
    assert not (work / "out").exists()


def test_nobody_waits_for_a_pipe_that_is_held_open(work: Path) -> None:
    os.mkfifo("run.yaml")
    held = os.open("run.yaml", os.O_RDWR)
    try:
        assert "a pipe or a device" in refused(3, "strategy", "make", "--config", "run.yaml", "-o", "made")
    finally:
        os.close(held)
