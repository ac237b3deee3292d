"""A server that copies by itself, as NFS from 4.2 on. Here the kernel copies; what is mounted is said by us."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from job import STORAGE, USAGE, Run, one_error

import reshard
from making import array, read_rank, same, shard_of, tree, write_file, write_strategy
from reshard.layout.tensor import Sharding
from reshard.ops.options import Options

ROWS, COLUMNS, WHOLE = Sharding((2,), ((0,), ())), Sharding((2,), ((), (0,))), Sharding((2,), ((),))
FULL = {f"layers.{i}.w": array((512, 257), seed=i) for i in range(8)}
FULL |= {"o": array((256, 512), seed=90), "norm": array((515,), seed=91)}
NBYTES = sum(a.nbytes for a in FULL.values())
CUTS = {n: COLUMNS if n == "o" else WHOLE if n == "norm" else ROWS for n in FULL}
Copy = Callable[[int, int, int, int, int], int]


class Server:
    """Counts what is copied; ``copy`` may be changed."""

    def __init__(self) -> None:
        self.copied: list[int] = []
        self.real: Copy = os.copy_file_range
        self.copy = self.real

    def __call__(self, source: int, target: int, count: int, at: int, to: int) -> int:
        done = self.copy(source, target, count, at, to)
        self.copied.append(done)
        return done


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(os, "copy_file_range", made)
    mounted(monkeypatch, tmp_path, "4.2")
    return made


def mounted(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str) -> None:
    mounts = {"/": ("ext4", "rw"), str(folder): ("nfs4", f"rw,vers={version},hard")}
    monkeypatch.setattr("reshard.storage.machine._mounts", lambda: mounts)


@pytest.fixture
def words(tmp_path: Path) -> tuple[str | Path, ...]:
    full, strategy = write_file(tmp_path / "full.safetensors", FULL), write_strategy(tmp_path / "new", [CUTS])
    return ("split", full, tmp_path / "out", "--dst-strategy", strategy)


def assert_right(out: Path) -> None:
    for rank in range(2):
        found = read_rank(out, rank)
        assert found.keys() == FULL.keys()
        assert all(same(found[n], shard_of(a, CUTS[n], rank)) for n, a in FULL.items())


def test_it_copies_what_lies_together(server: Server, words: tuple[str | Path, ...], tmp_path: Path, run: Run) -> None:
    assert run(*words, "--verify") == (0, "")
    assert NBYTES * 0.8 < sum(server.copied) < NBYTES
    assert_right(tmp_path / "out")
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


def test_what_it_copies_is_neither_read_nor_free(server: Server, words: tuple[str | Path, ...], tmp_path: Path) -> None:
    done = reshard.convert(words[1], words[2], Options(dst_strategy=str(words[4]), checksum=False))
    assert done.read_nbytes == done.bill.read_nbytes < NBYTES * 0.2
    assert (done.shared_nbytes, done.bill.shared_nbytes) == (0, 0)
    assert_right(tmp_path / "out")


def test_the_layout_is_that_of_any_disk(
    server: Server, words: tuple[str | Path, ...], tmp_path: Path, run: Run
) -> None:
    assert run(*words) == (0, "")
    assert run(*words[:2], tmp_path / "other", *words[3:], "--reflink", "never") == (0, "")
    made, other = tree(tmp_path / "out"), tree(tmp_path / "other")
    assert {n: made[n] for n in made if ".reshard" not in n} == {n: other[n] for n in other if ".reshard" not in n}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS])
def test_what_it_refuses_is_copied_here(
    server: Server, words: tuple[str | Path, ...], tmp_path: Path, run: Run, number: int
) -> None:
    """Every second time, and after a half."""

    def copy(source: int, target: int, count: int, at: int, to: int) -> int:
        if len(server.copied) % 4 > 1:
            server.copied.append(0)
            raise OSError(number, os.strerror(number))
        return server.real(source, target, max(count // 2, 1), at, to)

    server.copy = copy
    assert run(*words, "--verify") == (0, "")
    assert_right(tmp_path / "out")


def test_it_may_copy_little_at_a_time_or_nothing(
    server: Server, words: tuple[str | Path, ...], tmp_path: Path, run: Run
) -> None:
    server.copy = lambda source, target, count, at, to: server.real(source, target, min(count, 40_001), at, to)
    assert run(*words) == (0, "")
    assert max(server.copied) == 40_001
    assert_right(tmp_path / "out")
    server.copy = lambda *_: 0
    assert run(*words, "--overwrite") == (0, "")
    assert_right(tmp_path / "out")


def test_a_full_disk_is_told_and_resumed(
    server: Server, words: tuple[str | Path, ...], tmp_path: Path, run: Run
) -> None:
    def copy(*_: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    server.copy = copy
    code, said = run(*words)
    assert code == STORAGE
    assert "free some space" in one_error(said)
    assert not list((tmp_path / "out").rglob("*.safetensors*"))
    server.copy = server.real
    assert run(*words, "--resume") == (0, "")
    assert_right(tmp_path / "out")


def test_older_servers_are_not_asked(
    server: Server, words: tuple[str | Path, ...], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch, tmp_path, "4.1")
    assert run(*words) == (0, "")
    mounted(monkeypatch, tmp_path, "4.2")
    assert run(*words, "--overwrite", "--reflink", "never") == (0, "")
    assert not server.copied


def test_its_copies_are_no_clones(server: Server, words: tuple[str | Path, ...], run: Run) -> None:
    code, said = run(*words, "--reflink", "always")
    assert code == USAGE
    assert "can share blocks" in one_error(said)
