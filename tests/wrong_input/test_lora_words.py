"""reshard lora merge: what is said of wrong words, and whether it leads on."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from program import refused, run
from safetensors.numpy import load_file, save_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"l.q.weight": np.zeros((2, 2), np.float32)}, tmp_path / "base.safetensors")
    for name in ("a", "b"):
        factors = {"text.l.q.lora_A": np.eye(2, dtype=np.float32), "text.l.q.lora_B": np.ones((2, 2), np.float32)}
        save_file(factors, tmp_path / f"{name}.safetensors")
    return tmp_path


def words(folder: Path) -> tuple[str | Path, ...]:
    out = folder / "out.safetensors"
    return "lora", "merge", folder / "base.safetensors", out, "--scaling", "2", "--adapter", folder / "a.safetensors"


WRONG_WEIGHTS = ["0.7", "1,2,3", "a,b", "1,inf", "1,"]


@pytest.mark.parametrize("weights", WRONG_WEIGHTS)
def test_weights_that_are_not_one_for_each_adapter(folder: Path, weights: str) -> None:
    said = refused(2, *words(folder), "--adapter", folder / "b.safetensors", "--weights", weights)
    assert "--weights" in said
    assert not (folder / "out.safetensors").exists()


def test_combinations_that_there_are_not(folder: Path) -> None:
    assert "cat or linear" in refused(2, *words(folder), "--combination", "ties")


def test_an_initial_adapter_is_of_one(folder: Path) -> None:
    other = folder / "b.safetensors"
    assert "--initial is of one" in refused(2, *words(folder), "--adapter", other, "--initial", other)


def test_the_hint_of_another_name_leads_on(folder: Path) -> None:
    said = run(*words(folder))
    assert said.code == 3
    assert "the base has l.q.weight" in said.err
    assert r"--adapter-rename '^text\.=>'" in said.err
    assert run(*words(folder), "--adapter-rename", r"^text\.=>").code == 0
    assert load_file(folder / "out.safetensors")["l.q.weight"].tolist() == [[2, 2], [2, 2]]


def test_the_hint_of_names_of_two_kinds_leads_on_at_once(tmp_path: Path) -> None:
    """As of a model that sees: what turns the one kind leaves what the other was turned to."""
    square = np.zeros((2, 2), np.float32)
    save_file({"model.l.0.q.weight": square, "visual.l.0.q.weight": square}, tmp_path / "base.safetensors")
    names = ("model.text.l.0.q", "model.visual.l.0.q")
    factors = {f"{n}.lora_{ab}": np.full((2, 2), i + 1, np.float32) for i, n in enumerate(names) for ab in "AB"}
    save_file(factors, tmp_path / "a.safetensors")
    said = run(*words(tmp_path))
    assert said.code == 3
    options = re.findall(r"--adapter-rename '([^']*)'", said.err)
    assert len(options) == 2
    assert run(*words(tmp_path), *(word for each in options for word in ("--adapter-rename", each))).code == 0
    found = load_file(tmp_path / "out.safetensors")
    assert [found[name][0, 0] for name in ("model.l.0.q.weight", "visual.l.0.q.weight")] == [4, 16]
