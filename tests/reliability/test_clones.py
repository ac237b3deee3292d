"""File systems where files share blocks: XFS and Btrfs, each in a file that is mounted."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from job import INPUT, STORAGE, USAGE, Run, one_error

import reshard
from making import array, read_file, read_rank, same, shard_of, write_file, write_strategy
from mounts import image, mounted, tmpfs
from reshard.cli.main import main
from reshard.layout.tensor import Sharding
from reshard.ops.options import Options
from reshard.storage import clones
from reshard.target.manifest import read_manifest
from reshard.target.target_paths import Place
from waiting import wait_until

WHOLE_OF = {1: Sharding((2,), ((),)), 2: Sharding((2,), ((), ()))}
ROWS, COLUMNS, WHOLE = Sharding((2,), ((0,), ())), Sharding((2,), ((), (0,))), Sharding((2,), ((),))
FULL = {f"layers.{i}.w": array((1024, 512), seed=i) for i in range(12)}
FULL |= {f"layers.{i}.norm": array((512,), seed=50 + i) for i in range(12)}
COLUMN = {"layers.0.o": array((256, 512), seed=99)}
NBYTES = sum(a.nbytes for a in FULL.values())
IMAGES = {"xfs": (320 << 20, ("-m", "reflink=1")), "btrfs": (192 << 20, ())}


@pytest.fixture(params=IMAGES)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    nbytes, how = IMAGES[request.param]
    with mounted(tmp_path / "disk", "-o", "loop", image(tmp_path / "image", nbytes, request.param, *how)) as folder:
        yield folder


def cuts(full: dict[str, np.ndarray]) -> dict[str, Sharding]:
    return {n: COLUMNS if n in COLUMN else ROWS if a.ndim == 2 else WHOLE for n, a in full.items()}


def command(disk: Path, *more: str | Path, full: dict[str, np.ndarray] = FULL) -> tuple[str | Path, ...]:
    """Full → two ranks, on this disk."""
    write_file(disk / "full.safetensors", full)
    strategy = write_strategy(disk / "new", [cuts(full)])
    return ("split", disk / "full.safetensors", disk / "out", "--dst-strategy", strategy, *more)


def assert_right(out: Path, full: dict[str, np.ndarray] = FULL) -> None:
    for rank in range(2):
        found = read_rank(out, rank)
        assert found.keys() == full.keys()
        assert all(same(found[n], shard_of(a, cuts(full)[n], rank)) for n, a in full.items())


def used(folder: Path) -> int:
    os.sync()
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def test_what_lies_alike_takes_no_space(disk: Path, run: Run) -> None:
    words = command(disk)
    before = used(disk)
    plan = reshard.plan(words[1], words[2], Options(dst_strategy=str(words[4])))
    assert run(*words, "--verify") == (0, "")
    assert used(disk) - before < NBYTES / 10
    assert_right(disk / "out")
    files = read_manifest(Place.of(disk / "out", single=False)).files
    shared = sum(file.shared_nbytes for file in files)
    assert NBYTES * 0.9 < shared < NBYTES
    assert all(run.xxh3 for file in files for run in file.runs)
    shutil.rmtree(disk / "out")
    done = reshard.convert(words[1], words[2], Options(dst_strategy=str(words[4])))
    assert (done.shared_nbytes, done.bill.shared_nbytes, plan.shared_block_nbytes) == (shared, shared, 4096)


def test_it_is_said_before_and_after(disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [str(word) for word in command(disk)]
    with pytest.raises(SystemExit):
        main([*words, "--dry-run"])
    assert "of them with the source: they take no space" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        main(words)
    assert "of them shared with the source" in capfd.readouterr().out


def test_columns_are_copied_between(disk: Path, run: Run) -> None:
    full = {**FULL, **COLUMN}
    assert run(*command(disk, full=full), "--verify") == (0, "")
    assert_right(disk / "out", full)


def test_without_checksums_what_is_shared_is_not_read(disk: Path) -> None:
    words = command(disk)
    done = reshard.convert(words[1], words[2], Options(dst_strategy=str(words[4]), checksum=False))
    assert done.read_nbytes == done.bill.read_nbytes < NBYTES / 4
    assert_right(disk / "out")


def test_merged_again_it_is_the_same(disk: Path, run: Run) -> None:
    assert run(*command(disk)) == (0, "")
    before = used(disk)
    assert run("merge", disk / "out", disk / "back.safetensors") == (0, "")
    assert used(disk) - before < NBYTES / 10
    found = read_file(disk / "back.safetensors")
    assert all(same(found[n], a) for n, a in FULL.items())


def test_replicas_and_stages_are_cloned_whole(disk: Path) -> None:
    """Two stages of two replicas each, back and forth."""
    full = write_file(disk / "full.safetensors", FULL)
    stages = [{name: WHOLE_OF[a.ndim] for name, a in FULL.items() if int(name.split(".")[1]) % 2 == s} for s in (0, 1)]
    strategy = write_strategy(disk / "new", stages)
    before = used(disk)
    done = reshard.convert(full, disk / "out", Options(dst_strategy=str(strategy)))
    assert done.shared_nbytes > 2 * NBYTES * 0.95
    for rank in range(4):
        found = read_rank(disk / "out", rank)
        assert found.keys() == stages[rank // 2].keys()
        assert all(same(found[name], FULL[name]) for name in found)
    assert reshard.convert(disk / "out", disk / "back.safetensors").shared_nbytes > NBYTES * 0.95
    assert all(same(a, FULL[name]) for name, a in read_file(disk / "back.safetensors").items())
    assert used(disk) - before < NBYTES / 10


def test_the_functions_of_mindspore_clone(disk: Path) -> None:
    from reshard.compat import mindspore

    words = command(disk)
    before = used(disk)
    (disk / "src/rank_0").mkdir(parents=True)
    (disk / "full.safetensors").rename(disk / "src/rank_0/full.safetensors")
    mindspore.transform_checkpoints(
        str(disk / "src"), str(disk / "out"), "checkpoint_", None, str(words[4]), output_format="safetensors"
    )
    assert used(disk) - before < NBYTES / 10
    for rank in range(2):
        found = read_file(disk / f"out/rank_{rank}/checkpoint_{rank}.safetensors")
        assert all(same(found[n], shard_of(a, cuts(FULL)[n], rank)) for n, a in FULL.items())


def test_from_another_disk_all_is_copied(disk: Path, run: Run, tmp_path: Path) -> None:
    words = list(command(disk))
    words[1] = write_file(tmp_path / "full.safetensors", FULL)
    assert run(*words, "--verify") == (0, "")
    assert_right(disk / "out")
    code, said = run(*words, "--overwrite", "--reflink", "always")
    assert code == USAGE
    assert "--reflink auto" in one_error(said)


def test_never_means_the_bytes_of_any_disk(disk: Path, run: Run, tmp_path: Path) -> None:
    words = command(disk, "--reflink", "never")
    before = used(disk)
    assert run(*words) == (0, "")
    assert used(disk) - before > NBYTES * 0.9
    with tmpfs(tmp_path / "memory", "size=64m") as memory:
        assert run(*words[:2], memory / "out", *words[3:5]) == (0, "")
        for rank in range(2):
            name = f"rank_{rank}/checkpoint_{rank}.safetensors"
            assert (disk / "out" / name).read_bytes() == (memory / "out" / name).read_bytes()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP])
def test_a_clone_that_fails_is_copied(disk: Path, run: Run, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Of those that were planned every second one fails."""
    words, calls, real = command(disk), [0], clones.fcntl.ioctl

    def ioctl(fd: int, call: int, argument: object) -> object:
        calls[0] += 1
        if calls[0] > 1 and calls[0] % 2:
            raise OSError(number, os.strerror(number))
        return real(fd, call, argument)  # type: ignore[call-overload]

    monkeypatch.setattr(clones.fcntl, "ioctl", ioctl)
    assert run(*words, "--verify") == (0, "")
    assert_right(disk / "out")
    manifest = json.loads((disk / "out/.reshard/manifest.json").read_bytes())
    assert 0 < sum(file.get("shared_nbytes", 0) for file in manifest["files"]) < NBYTES * 0.8


def test_a_full_disk_is_told_and_resumed(disk: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words, real = command(disk, full={**FULL, **COLUMN}), clones.fcntl.ioctl

    def ioctl(fd: int, call: int, argument: object) -> object:
        if os.fstat(fd).st_nlink:  # not the one that is tried with
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, call, argument)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(clones.fcntl, "ioctl", ioctl)
        code, said = run(*words)
    assert code == STORAGE
    assert "free some space" in one_error(said)
    assert not list((disk / "out").rglob("*.safetensors*"))
    assert run(*words, "--resume", "--verify") == (0, "")
    assert_right(disk / "out", {**FULL, **COLUMN})


@pytest.mark.parametrize("disk", ["xfs"], indirect=True)
def test_only_what_is_copied_needs_room(disk: Path, run: Run) -> None:
    """How much is free on Btrfs, it does not know itself."""
    words = command(disk)
    status = os.statvfs(disk)
    filler = status.f_bavail * status.f_frsize - NBYTES * 2 // 3
    with open(disk / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, filler)
    os.sync()
    code, said = run(*words, "--reflink", "never")
    assert code == STORAGE
    assert "are free" in one_error(said)
    assert run(*words, "--verify") == (0, "")
    assert_right(disk / "out")


def test_a_source_that_is_written_to_meanwhile_is_noticed(
    disk: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, real = command(disk), clones.fcntl.ioctl

    def ioctl(fd: int, call: int, argument: object) -> object:
        done = real(fd, call, argument)  # type: ignore[call-overload]
        if os.fstat(fd).st_nlink:
            with open(words[1], "r+b") as source:
                source.seek(-1, os.SEEK_END)
                source.write(b"\xff")
        return done

    monkeypatch.setattr(clones.fcntl, "ioctl", ioctl)
    code, said = run(*words)
    assert code == INPUT
    assert "the file changed while it was read" in one_error(said)
    assert not list((disk / "out").rglob("*.safetensors"))


def test_another_layout_is_another_job(disk: Path, run: Run) -> None:
    words = command(disk)
    assert run(*words) == (0, "")
    code, said = run(*words, "--resume", "--reflink", "never")
    assert code == USAGE
    assert "shared blocks of" in one_error(said)
    assert run(*words, "--resume") == (0, "")
    assert_right(disk / "out")


def test_killed_and_resumed(disk: Path, run: Run) -> None:
    words = command(disk, full={**FULL, **COLUMN})
    slow = [str(Path(sys.executable).with_name("reshard")), *words, "--max-rate", "1MiB/s", "--quiet"]
    with subprocess.Popen(slow) as process:
        wait_until(lambda: list((disk / "out").rglob("*.safetensors.part")))
        process.kill()
    assert not list((disk / "out").rglob("*.safetensors"))
    assert run(*words, "--resume", "--verify") == (0, "")
    assert_right(disk / "out", {**FULL, **COLUMN})
    assert not list((disk / "out").rglob("*.safetensors.part"))
