"""Places where nothing can be, and where nobody can stand."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from program import refused

from families.rows import FAMILIES
from making import array, write_file, write_strategy
from reshard.cli.main import main
from reshard.errors import CheckpointError, StrategyError
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.layout.tensor import Sharding
from reshard.strategy.folder import read_strategy


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


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a file system, as one who is not root sees it."""
    (tmp_path / "disk/lost+found").mkdir(parents=True)
    listed, iterdir = os.listdir, Path.iterdir

    def refuse(folder: object) -> None:
        if str(folder).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "listdir", lambda folder: refuse(folder) or listed(folder))
    monkeypatch.setattr(Path, "iterdir", lambda folder: refuse(folder) or iterdir(folder))
    return tmp_path / "disk"


def test_lost_and_found_hides_no_hint(disk: Path) -> None:
    write_file(disk / "model/w.safetensors", {"w": array((2, 2))})
    with pytest.raises(CheckpointError, match="no weight files") as caught:
        open_source(Source(str(disk)))
    assert caught.value.hint == f"give one of what lies below: {disk / 'model'}"
    write_strategy(disk / "strategy", [{"w": Sharding((2,), ((0,),))}])
    with pytest.raises(StrategyError, match="no strategy file") as of_strategy:
        read_strategy(str(disk))
    assert str(disk / "strategy") in of_strategy.value.hint


def test_lost_and_found_is_no_role(disk: Path) -> None:
    actor = FAMILIES["FSDP1, moments in pieces"](disk.parent / "made").path
    shutil.copytree(actor, disk / "global_step_100/actor")
    assert open_source(Source(str(disk))).kind == "fsdp"
