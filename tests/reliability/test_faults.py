"""Faults of disks, files and workers: the right exit code, one message, and nothing of the user's harmed."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
from job import INPUT, OLD, STAGES, STORAGE, USAGE, WORKER, Run, Work, one_error

import reshard
from forks import DONE, forks
from making import array, tree, write_file, write_strategy
from reshard import waits
from reshard.moving.mover import Mover
from reshard.ops.options import Options
from reshard.storage import clones
from reshard.target.filling import Filling
from thorough import TIMES
from waiting import wait_until

# --- a system call fails


class Failing:
    """Fails the ``at``-th call of a function, or counts calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, at: int = -1, number: int = errno.EIO) -> None:
        self.calls = 0
        self.only_tried = False  # whether it was to find out what the system can do
        self._real = getattr(os, name)
        self._at, self._number = at, number
        monkeypatch.setattr(os, name, self)

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls - 1 == self._at:
            self.only_tried = sys._getframe(1).f_code.co_filename == clones.__file__
            raise OSError(self._number, os.strerror(self._number))
        return self._real(*args, **options)


CALLS = ("open", "preadv", "pwrite", "posix_fallocate", "fsync", "rename", "unlink", "makedirs", "statvfs")
PLACES = 6 * TIMES
ALL = TIMES > 4
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
injected: list[int] = []


@pytest.fixture(scope="module", autouse=True)
def total() -> Iterator[None]:
    yield
    print(f"\n{len(injected)} failing system calls injected")


@pytest.mark.parametrize("name", CALLS)
def test_a_system_call_that_fails(work: Work, run: Run, name: str) -> None:
    """The first, the last and some between of the calls of a conversion, each with one error after the other: which one
    it is matters to nobody but for what is told. With RESHARD_THOROUGH=14 all of them, with every error.
    """
    with pytest.MonkeyPatch.context() as patch:
        counting = Failing(patch, name)
        assert run(*work.command("--workers", "1"))[0] == 0
    places = sorted({*range(0, counting.calls, max(counting.calls // PLACES, 1)), counting.calls - 1})
    for at, number in product(places, ERRORS) if ALL else zip(places, cycle(ERRORS), strict=False):
        shutil.rmtree(work.out)
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, name, at, number)
            injected.append(at)
            code, said = run(*work.command("--workers", "1"))
        if failing.only_tried:
            assert (code, said) == (0, ""), at
        else:
            assert (code, bool(one_error(said))) == (STORAGE, True), (at, said)
        work.assert_only_whole_files()
        if (work.out / ".reshard" / "manifest.json").exists():
            work.assert_whole()  # all was named, and then a folder could not be synced
        assert run(*work.command(*["--resume"] * work.out.exists())) == (0, "")
        work.assert_whole()
    assert places


@pytest.mark.parametrize("name", ["preadv", "pwrite"])
def test_short_reads_and_writes_are_gone_on_with(
    work: Work, run: Run, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(os, name)

    def short(fd: int, data: Any, offset: int) -> int:
        if name == "preadv":
            return int(real(fd, [data[0][: max(len(data[0]) // 2, 1)]], offset))
        return int(real(fd, data[: max(len(data) // 2, 1)], offset))

    monkeypatch.setattr(os, name, short)
    assert run(*work.command()) == (0, "")
    work.assert_whole()


def test_files_larger_than_a_quota_allows(tmp_path: Path, run: Run) -> None:
    full = write_file(tmp_path / "full.ckpt", {"w": array((50_000,))})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        code, said = run("convert", full, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == STORAGE
    assert "File too large" in one_error(said)
    assert [p.name for p in tmp_path.iterdir()] == ["full.ckpt"]


# --- the source changes while it is read


def while_reading(patch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    """Do something to the source when the first tensor's bytes are read."""
    real, done = Mover.run, []

    def run(self: Mover, *args: Any) -> None:
        real(self, *args)
        if not done:
            done.append(change())

    patch.setattr(Mover, "run", run)


def test_a_source_cut_short_while_it_is_read(work: Work, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    last = work.src / "rank_5" / "model_5.ckpt"
    while_reading(monkeypatch, lambda: os.truncate(last, 30))
    code, said = run(*work.command("--workers", "1"))
    assert code == INPUT
    assert f"{last}: the file changed after it was planned" in one_error(said)
    assert set(tree(work.out)) == {f"rank_{r}/checkpoint_{r}.ckpt" for r in range(4)}


def test_a_source_that_ends_while_it_is_read(work: Work, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = work.src / "rank_0" / "model_0.ckpt"
    monkeypatch.setattr("reshard.planning.neighbours._TOGETHER_NBYTES", 0)  # else one read is all
    while_reading(monkeypatch, lambda: os.truncate(path, 30))
    code, said = run(*work.command("--workers", "1"))
    assert code == STORAGE
    assert f"{path}: the file ends at byte" in one_error(said)
    assert not work.out.exists() or tree(work.out) == {}


def test_a_source_written_to_while_it_is_read(work: Work, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = work.src / "rank_0" / "model_0.ckpt"
    while_reading(monkeypatch, lambda: path.write_bytes(bytes(path.stat().st_size)))
    code, said = run(*work.command("--workers", "1"))
    assert code == INPUT
    assert f"{path}: the file changed while it was read" in one_error(said)
    assert tree(work.out) == {} if work.out.exists() else True


def test_a_source_replaced_while_it_is_read(work: Work, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that was opened is read to its end; one that was not yet is another file than was planned."""

    def replace() -> None:
        for rank in (0, 4):
            path = work.src / f"rank_{rank}" / f"model_{rank}.ckpt"
            path.with_suffix(".new").write_bytes(bytes(path.stat().st_size))
            path.with_suffix(".new").rename(path)

    while_reading(monkeypatch, replace)
    code, said = run(*work.command("--workers", "1"))
    assert code == INPUT
    assert "rank_4/model_4.ckpt: the file changed after it was planned" in one_error(said)
    for rank in range(2):
        work.assert_rank(rank)


# --- a worker dies, two at once


@pytest.mark.parametrize("error", [RuntimeError("boom"), MemoryError(), ZeroDivisionError("boom")], ids=repr)
def test_a_worker_that_dies(work: Work, run: Run, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: Mover, *args: Any) -> None:
        raise error

    monkeypatch.setattr(Mover, "run", die)
    code, said = run(*work.command())
    assert code == WORKER
    assert type(error).__name__ in one_error(said)
    work.assert_only_whole_files()
    assert not (work.out / ".reshard").exists()


def test_two_conversions_into_one_target(work: Work, run: Run) -> None:
    first = forks().start(*work.command("--max-rate", "1KiB/s", "--quiet"))
    wait_until((work.out / ".reshard" / "begun.json").exists)
    for more, said in [
        ("--resume", "another conversion is writing here: rank_"),
        ("--quiet", "the target is not empty"),
    ]:
        code, error = run(*work.command(more))
        assert code == USAGE
        assert said in one_error(error)
    first.kill(signal.SIGINT)
    assert first.ended().code == 130
    assert run(*work.command(*["--resume"] * work.out.exists())) == (0, "")
    work.assert_whole()


@pytest.mark.parametrize("old", [(), ("rank_0",), ("rank_0", ".reshard")], ids=["nothing", "theirs", "ours"])
def test_an_overwrite_meanwhile(work: Work, run: Run, old: tuple[str, ...]) -> None:
    """Neither of what another fills just now nor of what another replaces just now."""
    first = ("--overwrite",) * bool(old)
    for name in old:
        (work.out / name).mkdir(parents=True)
    under_way = forks().start(*work.command("--max-rate", "1KiB/s", "--quiet", *first))
    wait_until(lambda: list(work.folder.glob("*out*/.reshard/begun.json")))
    before = tree(work.out)
    code, error = run(*work.command("--overwrite", "--dtype", "float16"))
    assert code == USAGE
    assert "another conversion is writing here" in one_error(error)
    assert tree(work.out).keys() >= before.keys()
    assert under_way.ended() == DONE
    work.assert_whole()
    assert sorted(p.name for p in work.folder.iterdir()) == ["new", "old", "out", "src"]


def test_a_refused_or_failed_overwrite_leaves_what_was_there(work: Work, run: Run) -> None:
    work.out.mkdir()
    (work.out / "mine.txt").write_text("mine")
    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, "pwrite", 3)
        assert run(*work.command("--overwrite"))[0] == STORAGE
    assert [p.name for p in work.out.iterdir()] == ["mine.txt"]
    assert sorted(p.name for p in work.folder.iterdir()) == ["new", "old", "out", "src"]


def test_the_next_overwrite_removes_what_a_killed_one_left(work: Work, run: Run) -> None:
    for name in ("out", ".out.reshard-new-0a1b2c3d", ".out.reshard-old-0a1b2c3d", ".output.reshard-new-x"):
        (work.folder / name).mkdir()
        (work.folder / name / "f").write_text("x")
    assert run(*work.command("--overwrite")) == (0, "warning: 1 file of others went with the old target:\nf\n")
    work.assert_whole()
    assert sorted(p.name for p in work.folder.iterdir()) == [".output.reshard-new-x", "new", "old", "out", "src"]


def test_an_interruption_between_naming_a_file_and_noting_it(
    work: Work, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Filling, *args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Filling, "record", interrupted)
    code, said = run(*work.command())
    assert (code, said) == (130, "interrupted: no file under its final name is partial; --resume goes on\n")
    work.assert_only_whole_files()
    monkeypatch.undo()
    assert run(*work.command("--resume")) == (0, "")
    work.assert_whole()


def test_an_interrupted_overwrite_is_given_the_time_to_clear_up(
    work: Work, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.out.mkdir()
    (work.out / "mine.txt").write_text("mine")
    remove, move = shutil.rmtree, Mover.run

    def slow(*args: Any, **options: Any) -> None:
        time.sleep(1.5 * waits.now.idle_s)
        remove(*args, **options)

    def interrupted(self: Mover, *args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        move(self, *args)

    monkeypatch.setattr(shutil, "rmtree", slow)
    monkeypatch.setattr(Mover, "run", interrupted)
    code, said = run(*work.command("--overwrite", "--max-rate", "10KiB/s"))
    assert code == 130
    assert said.endswith("the old target stays, or the new one is whole in its place\n")
    assert sorted(p.name for p in work.folder.iterdir()) == ["new", "old", "out", "src"]
    assert [p.name for p in work.out.iterdir()] == ["mine.txt"]


# --- resume refuses another job and says what changed


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--prefix", "x_"), "prefix ('checkpoint_' then, 'x_' now)"),
        (("--dtype", "float16"), "dtype ('' then, 'float16' now)"),
        (("--format", "safetensors"), "format ('ckpt' then, 'safetensors' now)"),
        (("--crc",), "--crc"),
        (("--exclude", "b$"), "tensors taken"),
    ],
)
def test_resume_says_which_option_changed(work: Work, run: Run, more: tuple[str, ...], said: str) -> None:
    assert run(*work.command("--ranks", "0-2"))[0] == 0
    before = tree(work.out)
    code, error = run(*work.command("--resume", "--missing", "drop", *more))
    assert code == USAGE
    assert f"strategies or options; what differs: {said}\n" in one_error(error).replace(", --crc\n", "\n")
    assert tree(work.out) == before


def test_resume_says_that_the_source_or_strategy_changed(work: Work, run: Run) -> None:
    assert run(*work.command("--ranks", "0-2"))[0] == 0
    other = write_strategy(work.folder / "other", [{f"layers.{i}.{w}": OLD for w in "wb"} for i in range(STAGES)])
    command = [other if a == work.new else a for a in work.command("--resume")]
    assert "what differs: strategies\n" in one_error(run(*command)[1])
    os.utime(work.src / "rank_3" / "model_3.ckpt", (5, 5))
    assert "what differs: sources\n" in one_error(run(*work.command("--resume"))[1])


# --- odd but right


def test_sources_that_nobody_may_write(work: Work, run: Run) -> None:
    for path in work.src.rglob("*.ckpt"):
        path.chmod(0o400)
    assert run(*work.command()) == (0, "")
    work.assert_whole()
    assert {p.stat().st_mode & 0o777 for p in work.src.rglob("*.ckpt")} == {0o400}
    assert all(p.stat().st_mode & 0o200 for p in work.out.rglob("*.ckpt"))


def test_names_with_spaces_and_other_scripts(tmp_path: Path, run: Run) -> None:
    work = Work(tmp_path / "权重 und ähnliches\n")
    assert run(*work.command("--prefix", "检查 点_")) == (0, "")
    work.assert_whole()
    assert (work.out / "rank_0" / "检查 点_0.ckpt").exists()


def test_names_that_are_not_unicode(tmp_path: Path, run: Run) -> None:
    work = Work(tmp_path / os.fsdecode("\u6743\u91cd".encode("gbk")))
    assert run(*work.command()) == (0, "")
    work.assert_whole()


def test_links_are_followed_and_stay(work: Work, run: Run) -> None:
    real = work.folder / "elsewhere"
    real.mkdir()
    work.src.rename(real / "src")
    work.src.symlink_to(real / "src")
    (real / "out").mkdir()
    work.out.symlink_to(real / "out")
    assert run(*work.command()) == (0, "")
    work.assert_whole()
    assert run(*work.command("--overwrite")) == (0, "")
    work.assert_whole()
    assert work.out.is_symlink()
    assert sorted(p.name for p in real.iterdir()) == ["out", "src"]


def test_a_target_link_that_leads_into_the_source(work: Work, run: Run) -> None:
    work.out.symlink_to(work.src)
    code, said = run(*work.command("--overwrite"))
    assert code == USAGE
    assert "the source lies inside the target" in one_error(said)
    assert tree(work.src) == work.before


@pytest.mark.parametrize("prefix", ["../", "a/b", "/etc/x", "../../out_"])
def test_a_prefix_that_leaves_its_folder(work: Work, run: Run, prefix: str) -> None:
    code, said = run(*work.command("--prefix", prefix))
    assert code == USAGE
    assert "would leave its folder" in one_error(said)
    assert not work.out.exists()


@pytest.mark.parametrize(
    ("prefix", "code", "says"),
    [("..", 0, ""), ("", 0, ""), ("x" * 250, STORAGE, "File name too long"), ("a\udce4", USAGE, "is not Unicode")],
)
def test_prefixes_that_are_odd(work: Work, run: Run, prefix: str, code: int, says: str) -> None:
    found, said = run(*work.command("--prefix", prefix))
    assert found == code
    if code:
        assert says in one_error(said)
        assert not work.out.exists()
    else:
        work.assert_whole()


@pytest.mark.parametrize("when", [0, 1, 4_000_000_000, 10_000_000_000])
def test_clocks_that_were_wrong(work: Work, run: Run, when: int) -> None:
    for path in work.src.rglob("*.ckpt"):
        os.utime(path, (when, when))
    assert run(*work.command("--ranks", "0"))[0] == 0
    for path in (work.out, *work.out.rglob("*")):
        os.utime(path, (when, when))
    kept = (work.out / "rank_0" / "checkpoint_0.ckpt").stat().st_ino
    assert run(*work.command("--resume")) == (0, "")
    assert (work.out / "rank_0" / "checkpoint_0.ckpt").stat().st_ino == kept
    work.assert_whole()


def test_without_atomic_exchange_names_change_in_two_steps(
    work: Work, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reshard.target.overwrite.exchange", lambda a, b: False)
    reshard.convert(work.src, work.out, Options(src_strategy=str(work.old), dst_strategy=str(work.old)))
    assert run(*work.command("--overwrite")) == (0, "")
    work.assert_whole()
    assert sorted(p.name for p in work.folder.iterdir()) == ["new", "old", "out", "src"]
