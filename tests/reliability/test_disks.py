"""Real file systems that say no: full, without room for another name, read-only, closed midway."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from job import STORAGE, Run, Work, one_error

from mounts import image, mounted, remount, tmpfs
from waiting import wait_until

PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")
PAGES = 24  # more than a conversion takes, its notes included
NAMES = 32


def converted_in_the_end(work: Work, run: Run, out: Path, full: str, roomy: str) -> bool:
    """Whether the first attempt failed; if so it is resumed with more room."""
    remount(out.parent, full)
    work.out = out
    code, said = run(*work.command())
    if code:
        assert code == STORAGE
        one_error(said)
        assert "free some space" in said
        work.assert_only_whole_files()
        remount(out.parent, roomy)
        assert run(*work.command("--resume")) == (0, "")
    work.assert_whole()
    return bool(code)


def test_a_disk_that_is_full_at_any_point(work: Work, run: Run) -> None:
    failed = []
    with tmpfs(work.folder / "disk", f"size={PAGES * PAGE_NBYTES}") as disk:
        for pages in range(1, PAGES + 1):
            full, roomy = f"size={pages * PAGE_NBYTES}", f"size={PAGES * PAGE_NBYTES}"
            failed.append(converted_in_the_end(work, run, disk / "out", full, roomy))
            shutil.rmtree(disk / "out")
    assert failed.count(True) > 8
    assert failed == sorted(failed, reverse=True)


def test_a_disk_without_room_for_another_name(work: Work, run: Run) -> None:
    failed = []
    with tmpfs(work.folder / "disk", f"nr_inodes={NAMES}") as disk:
        for names in range(2, NAMES + 1):
            failed.append(converted_in_the_end(work, run, disk / "out", f"nr_inodes={names}", f"nr_inodes={NAMES}"))
            shutil.rmtree(disk / "out")
    assert failed.count(True) > 8
    assert failed == sorted(failed, reverse=True)


def test_a_quota(work: Work, run: Run) -> None:
    made = image(work.folder / "btrfs", 192 << 20, "btrfs")
    with mounted(work.folder / "disk", "-o", "loop", made) as disk:
        if shutil.which("btrfs") is None or subprocess.run(["btrfs", "quota", "enable", disk]).returncode:
            pytest.skip("no quotas here")
        limit(disk, "1M")  # its own notes take less
        (disk / "filling").write_bytes(os.urandom(900 << 10))
        work.out = disk / "out"
        code, said = run(*work.command())
        assert code == STORAGE
        assert "no space: Disk quota exceeded" in one_error(said)
        work.assert_only_whole_files()
        limit(disk, "none")
        assert run(*work.command("--resume")) == (0, "")
        work.assert_whole()


def limit(disk: Path, most: str) -> None:
    subprocess.run(["btrfs", "qgroup", "limit", most, disk], check=True)


def test_a_disk_that_is_read_only(work: Work, run: Run) -> None:
    with tmpfs(work.folder / "disk", "ro") as disk:
        work.out = disk / "out"
        code, said = run(*work.command())
        assert code == STORAGE
        assert "not allowed" in one_error(said)
        remount(disk, "rw")
        assert run(*work.command("--ranks", "0")) == (0, "")
        remount(disk, "ro")
        before = sorted(disk.rglob("*"))
        code, said = run(*work.command("--resume"))
        assert code == STORAGE
        assert "not allowed" in one_error(said)
        assert sorted(disk.rglob("*")) == before


def test_permission_lost_midway(work: Work, run: Run) -> None:
    """By a process that modes of files bind, also where root runs the tests."""
    bound = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] * (os.geteuid() == 0)
    if bound and subprocess.run([*bound, "true"], capture_output=True).returncode:
        pytest.skip("root is above the modes of files, and there is no setpriv to give that up")
    command = [*bound, str(Path(sys.executable).with_name("reshard")), *work.command("--max-rate", "500B/s", "--quiet")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: list(work.out.glob(".reshard/done/*.json")))
        folders = [work.out, *work.out.glob("rank_*")]
        for folder in folders:
            folder.chmod(0o555)
        _, said = process.communicate(timeout=60)
    assert process.returncode == STORAGE
    assert "not allowed" in one_error(said)
    for folder in folders:
        folder.chmod(0o755)
    for part in work.out.rglob("*.part"):  # it was not allowed to remove them either
        part.unlink()
    work.assert_only_whole_files()
    assert run(*work.command("--resume")) == (0, "")
    work.assert_whole()
