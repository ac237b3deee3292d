"""Saves are named by their folders: one that is given as ``.`` or ``..`` is the same save."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

import reshard
from families.rows import FAMILIES
from reshard.auto.results import Results
from reshard.auto.settings import AutoSettings
from reshard.ops.options import Options


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and ".reshard" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("src", [".", ".."])
@pytest.mark.parametrize(
    ("kind", "save", "to", "iteration"),
    [
        ("Megatron, torch_dist of experts", "iter_*", "torch_dist", None),
        ("DeepSpeed, stage 2", "global_step*", "universal", None),
        ("Checkpoint 2.0", "iteration_*", "checkpoint2", 7),
    ],
)
def test_it_becomes_the_same(
    kind: str, save: str, to: str, iteration: int | None, src: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = FAMILIES[kind](tmp_path / "made").path.glob(save)
    options = Options(to=to, iteration=iteration)
    reshard.convert(folder, tmp_path / "named" / "out", options)
    (folder / "below").mkdir()
    monkeypatch.chdir(folder if src == "." else folder / "below")
    reshard.convert(src, tmp_path / "dots" / "out", options)
    assert files(tmp_path / "dots") == files(tmp_path / "named")


@pytest.mark.parametrize(
    ("given", "name"), [(".", "job"), ("..", "ckpt"), ("../.", "ckpt"), ("../llama.ckpt", "llama")]
)
def test_results_of_auto_have_its_name(given: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would lie in the folder of all results, or above it."""
    (tmp_path / "ckpt/job").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "ckpt/job")
    settings = cast(AutoSettings, SimpleNamespace(output_dir="output", load_checkpoint=given))
    assert Results.of(settings, "ckpt").name == name
