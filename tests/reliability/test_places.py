"""Places that are not what their paths say: links to nothing, mount points, one folder under two paths, pipes."""

from __future__ import annotations

import os
import socket

import pytest
from job import INPUT, USAGE, Run, Work, one_error

from golden.cases import run_reshard
from making import tree
from mounts import mounted, tmpfs


@pytest.mark.parametrize("more", [(), ("--overwrite",), ("--resume",)], ids=["", "overwrite", "resume"])
@pytest.mark.parametrize("leads_to", ["nowhere", "no/such/place", "out"])
def test_a_target_that_is_a_link_to_nothing_is_refused(
    work: Work, run: Run, leads_to: str, more: tuple[str, ...]
) -> None:
    for out in (work.out, work.folder / "out.safetensors"):
        out.symlink_to(leads_to if leads_to != "out" else out.name)
    before = sorted(work.folder.iterdir())
    for command in (work.command(*more), ("convert", work.folder / "src", "out.safetensors", *more)):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(work.folder)
            code, said = run(*command, *(("--src-strategy", work.old) if "out.safetensors" in command else ()))
        assert code == USAGE
        assert "a link that leads nowhere" in one_error(said)
        assert "hint: remove the link, or make what it leads to" in said
    assert sorted(work.folder.iterdir()) == before
    assert work.out.is_symlink()


@pytest.mark.parametrize("leads_to", ["nowhere", "out"])
def test_a_source_that_is_a_link_to_nothing_is_told_as_one(work: Work, run: Run, leads_to: str) -> None:
    work.out.symlink_to(leads_to)
    for path in (work.out, work.out / "deeper"):
        code, said = run("inspect", path)
        assert code == INPUT
        assert f"{path}: no such file or folder" in one_error(said)
        assert f"hint: {work.out} is a link to {leads_to}, which is not there" in said


def test_a_socket_is_no_file(work: Work, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work.folder)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s.safetensors")
        code, said = run("inspect", "s.safetensors")
    assert code == INPUT
    assert "a socket or a device, not a file" in one_error(said)


@pytest.mark.parametrize("more", [(), ("--overwrite",)], ids=["", "overwrite"])
def test_a_pipe_in_place_of_a_folder(work: Work, run: Run, more: tuple[str, ...]) -> None:
    os.mkfifo(work.out)
    code, said = run(*work.command(*more))
    assert code == USAGE
    assert "a file stands where a folder should go" in one_error(said)


def test_a_strategy_in_the_target_is_not_lost(work: Work, run: Run) -> None:
    """What a command reads must not go with what it replaces."""
    work.out.mkdir()
    work.new.rename(work.out / "strategy")
    work.new = work.out / "strategy"
    before = tree(work.out)
    code, said = run(*work.command("--overwrite"))
    assert code == USAGE
    assert f"{work.new} lies inside the target" in one_error(said)
    assert tree(work.out) == before


def test_a_folder_under_two_paths_is_one(work: Work, run: Run) -> None:
    """As containers have them: a volume that is mounted twice."""
    (work.folder / "again").mkdir()
    work.out = work.folder / "again/src"
    with mounted(work.folder / "again", "--bind", work.folder):
        code, said = run(*work.command("--overwrite"))
        assert code == USAGE
        assert "the source lies inside the target" in one_error(said)
        work.out = work.folder / "again/src/within"
        code, said = run(*work.command())
        assert code == USAGE
        assert "the target lies inside the source" in one_error(said)
    assert tree(work.src) == work.before


def test_a_file_under_two_paths_is_one_and_its_hard_link_another(work: Work, run: Run) -> None:
    (work.folder / "again").mkdir()
    full = work.folder / "full.safetensors"
    assert run("merge", work.src, full, "--src-strategy", work.old)[0] == 0
    content = full.read_bytes()
    with mounted(work.folder / "again", "--bind", work.folder):
        code, said = run("convert", full, work.folder / "again/full.safetensors", "--overwrite", "--dtype", "float16")
    assert code == USAGE
    assert "the source lies inside the target" in one_error(said)
    os.link(full, work.folder / "second.safetensors")
    assert run("convert", full, work.folder / "second.safetensors", "--overwrite", "--dtype", "float16")[0] == 0
    assert full.read_bytes() == content


def test_a_mount_point_is_not_replaced(work: Work, run: Run) -> None:
    """Its name cannot go to another folder; that is told before hours of work."""
    with tmpfs(work.out, "size=8m"):
        (work.out / "mine").write_text("mine")
        code, said = run(*work.command("--overwrite"))
        assert code == USAGE
        assert "a file system is mounted here" in one_error(said)
        assert tree(work.out) == {"mine": b"mine"}
    (work.folder / "real").mkdir()
    with mounted(work.out, "--bind", work.folder / "real"):
        (work.out / "mine").write_text("mine")
        code, said = run(*work.command("--overwrite"))
        assert code == USAGE
        assert "a file system is mounted here" in one_error(said)
    assert sorted(p.name for p in work.folder.iterdir() if p.name[0] == ".") == []


def test_a_conversion_removes_what_a_killed_overwrite_left(work: Work, run: Run) -> None:
    left = work.folder / ".out.reshard-new-0a1b2c3d"
    left.mkdir()
    (left / "f").write_text("x")
    assert run("doctor", work.out)[0] == 0
    assert run(*work.command()) == (0, "")
    work.assert_whole()
    assert not left.exists()
    left.mkdir()
    assert run(*work.command("--resume")) == (0, "")
    assert not left.exists()


def test_doctor_tells_what_a_killed_overwrite_left(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_reshard([str(word) for word in work.command()]) == 0
    left = work.folder / ".out.reshard-old-0a1b2c3d"
    left.mkdir()
    capsys.readouterr()
    assert run_reshard(["doctor", str(work.out)]) == 0
    said = capsys.readouterr().out
    assert f"beside it lies {left}, which an --overwrite left" in " ".join(said.split())
