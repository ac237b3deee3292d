"""What the compat functions and command lines leave where they write: after a kill, on other disks, through links."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import reshard.compat.mindspore as ms
from making import array, differing, read_file, write_file, write_ranks, write_strategy
from mounts import tmpfs
from reshard.compat.placing import staged
from reshard.compat.transform_checkpoint import main as transform_checkpoint
from reshard.compat.transform_ckpt import main as transform_ckpt
from reshard.compat.transform_ckpt_lora import main as transform_ckpt_lora
from reshard.compat.unified_safetensors import main as unified_safetensors
from reshard.layout.tensor import Sharding

FULL = {"w": array((4, 6), seed=1)}
FOUR = "four/ckpt_strategy_rank_0.ckpt"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK_ID", raising=False)
    cut = [{"w": Sharding((4,), ((0,), ()))}]
    write_ranks(tmp_path / "ckpt", FULL, cut)
    write_ranks(tmp_path / "st", FULL, cut, suffix=".safetensors")
    write_strategy(tmp_path / "four", cut)
    write_file(tmp_path / "one/full.safetensors", FULL)
    write_file(tmp_path / "full.ckpt", FULL)


def _transform(out: str) -> None:
    ms.transform_checkpoints("ckpt", out, "p", FOUR)


def _unify(out: str) -> None:
    ms.unified_safetensors("st", FOUR, out)


def _cut(out: str) -> None:
    ms.load_distributed_checkpoint(
        None, predict_strategy=FOUR, format="safetensors", unified_safetensors_dir="one", dst_safetensors_dir=out
    )


def _by_rank(out: str) -> None:
    files = {rank: f"ckpt/rank_{rank}/model_{rank}.ckpt" for rank in range(4)}
    ms.transform_checkpoint_by_rank(0, files, f"{out}/p0.ckpt", FOUR)


def _to_safetensors(out: str) -> None:
    ms.ckpt_to_safetensors("full.ckpt", out)


def _legacy(out: str) -> None:
    assert transform_ckpt([f"--dst_ckpt_dir={out}", "--src_ckpt_dir=ckpt", "--src_ckpt_strategy=four"]) == 0


def _processes(out: str) -> None:
    """Both processes of a job."""
    words = [f"--dst_checkpoint={out}", "--src_checkpoint=full.ckpt", "--dst_strategy=four", "--world_size=4"]
    for rank in (0, 2):
        assert transform_checkpoint([*words, "--transform_process_num=2", f"--rank_id={rank}"]) == 0


WAYS = [_transform, _unify, _cut, _by_rank, _to_safetensors, _legacy, _processes]
ways = pytest.mark.parametrize("way", WAYS)
_KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
import test_placing
from reshard.compat import placing
from reshard.moving import task
def end(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
task.TaskRun.commit = end
getattr(test_placing, sys.argv[1])("out")
"""


def names(folder: Path = Path()) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if ".reshard" not in p.parts}


@ways
@pytest.mark.parametrize("there", [False, True], ids=["anew", "again"])
def test_what_a_killed_run_left_is_gone_after_the_next(way: Callable[[str], None], there: bool) -> None:
    way("out")
    wanted = names()
    if not there:
        for path in sorted(Path("out").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    assert subprocess.run([sys.executable, "-c", _KILLED, way.__name__, *paths]).returncode == -9
    assert any(p.suffix == ".part" for p in Path().rglob("*"))
    way("out")
    assert names() == wanted


@ways
def test_a_target_on_another_disk_through_a_link_or_a_mount(way: Callable[[str], None], tmp_path: Path) -> None:
    way("out")
    wanted = names(Path("out"))
    with tmpfs(tmp_path / "disk", "size=8m"):
        (tmp_path / "disk/mine").touch()
        for out in ("disk", "link"):
            Path("link").unlink(missing_ok=True)
            Path("link").symlink_to("disk")
            way(out)
            assert names(tmp_path / "disk") == wanted | {"mine"}


def _merge(out: str) -> None:
    ms.merge_pipeline_strategys("four", f"{out}/merged.ckpt")


@pytest.mark.parametrize("way", [_transform, _unify, _cut, _by_rank, _to_safetensors, _merge])
def test_functions_do_not_take_a_bucket_for_a_folder(way: Callable[[str], None]) -> None:
    before = names()
    with pytest.raises(ValueError, match=r"s3://bucket/out.*: this .* writes to a disk"):
        way("s3://bucket/out")
    assert names() == before


TOOLS = {
    transform_checkpoint: "--src_checkpoint=ckpt --src_strategy=four --dst_checkpoint_dir",
    transform_ckpt: "--src_ckpt_dir=ckpt --src_ckpt_strategy=four --dst_ckpt_dir",
    transform_ckpt_lora: "--src_ckpt_path_or_dir=full.ckpt --lora_scaling=2 --dst_ckpt_dir",
    unified_safetensors: "--mindspore_ckpt_dir=st --src_strategy_dirs=four --file_suffix=0 --output_dir",
}


@pytest.mark.parametrize("tool", TOOLS, ids=["checkpoint", "ckpt", "lora", "unified"])
def test_tools_do_not_take_a_bucket_for_a_folder(
    tool: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool(f"{TOOLS[tool]}=s3://bucket/out".split()) == 2
    assert "s3://bucket/out: this command or function writes to a disk" in capsys.readouterr().err
    assert not list(Path().glob("s3*"))


def test_what_a_running_process_holds_stays() -> None:
    with staged(Path("out")) as theirs:
        write_file(theirs / "f.safetensors", FULL)
        _transform("out")
        assert differing(read_file(theirs / "f.safetensors"), FULL) == []
        assert differing(read_file(Path("out/rank_0/p0.ckpt")), FULL) == []
    assert names(Path("out")) == {"rank_0", "rank_0/p0.ckpt"}


def test_a_failure_leaves_no_target() -> None:
    Path("ckpt/rank_2/model_2.ckpt").unlink()
    with pytest.raises(ValueError, match="missing"):
        _transform("out")
    assert not Path("out").exists()
    with pytest.raises(OSError, match="stop"), staged(Path("out")):
        raise OSError("stop")
    assert not Path("out").exists()
