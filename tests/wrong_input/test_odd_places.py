"""Places where nothing can be, and where nobody can stand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from program import refused

from making import write_strategy
from reshard.cli.main import main
from reshard.layout.tensor import Sharding


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
@pytest.mark.parametrize(
    ("out", "said"),
    [("folder.ckpt", "a folder, where a file should go"), ("m.json", "the strategies are .ckpt")],
)
def test_a_merged_strategy_has_no_place_there(out: str, said: str, more: tuple[str, ...], tmp_path: Path) -> None:
    strategy = write_strategy(tmp_path / "s", [{"w": Sharding((2,), ((0,),))}])
    (tmp_path / "folder.ckpt").mkdir()
    told = refused(2, "strategy", "merge", strategy, tmp_path / out, *more)
    assert said in told
    assert told.count("hint: ") == 1
    assert sorted(os.listdir(tmp_path)) == ["folder.ckpt", "s"]


def test_what_is_not_there_is_told_in_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", "nowhere"])
    assert (stopped.value.code, "nowhere: no such file or folder" in capsys.readouterr().err) == (3, True)
