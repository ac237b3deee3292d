"""Where a page goes: over an older one, over nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from golden.cases import run_reshard
from making import array, write_file


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_file(tmp_path / "m.safetensors", {"w": array((4,))})


def test_what_is_no_report_is_not_overwritten(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = model.with_name("mine.html")
    mine.write_text("<title>mine</title>")
    os.mkfifo("pipe.html")
    for page in ("mine.html", "pipe.html"):
        for words in (["inspect", "m.safetensors", "--html"], ["convert", "m.safetensors", "out.ckpt", "--report"]):
            assert run_reshard([*words, page]) == 2
            assert "no report of reshard's" in capsys.readouterr().err
    assert mine.read_text() == "<title>mine</title>"
    assert not Path("out.ckpt").exists()


def test_a_report_takes_the_place_of_an_older_one(model: Path) -> None:
    for _ in range(2):
        assert run_reshard(["inspect", "m.safetensors", "--html", "page.html"]) == 0
    assert run_reshard(["convert", "m.safetensors", "out.ckpt", "--report", "page.html"]) == 0
