"""A conversion is killed at random moments: nothing half-done looks finished, and --resume ends with the same bytes."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from random import Random

import pytest

import reshard
from forks import forks
from making import array, tree, write_ranks, write_strategy
from reshard.layout.tensor import Sharding
from reshard.ops.options import Options
from thorough import TIMES

KILLS = 30 * TIMES
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STAGES = 8
OLD, NEW = Sharding((4,), ((), (0,))), Sharding((2,), ((0,), ()))


class Work:
    """Eight stages, so eight read groups of two files each; a conversion of about a tenth of a second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        full = {f"layers.{i}.{w}": array((16, 24), seed=10 * i + j) for i in range(STAGES) for j, w in enumerate("ab")}
        stages = [[name for name in full if name.startswith(f"layers.{i}.")] for i in range(STAGES)]
        old = [dict.fromkeys(names, OLD) for names in stages]
        self.src = write_ranks(folder / "src", full, old)
        self.strategies = ("--src-strategy", write_strategy(folder / "old", old), "--dst-strategy",
                           write_strategy(folder / "new", [dict.fromkeys(n, NEW) for n in stages]))  # fmt: skip
        self.wanted = self._made(folder / "wanted")
        self.out = folder / "out"

    def _made(self, out: Path) -> dict[str, bytes]:
        reshard.convert(
            self.src, out, Options(src_strategy=str(self.strategies[1]), dst_strategy=str(self.strategies[3]))
        )
        return tree(out)

    def command(self, *more: str) -> tuple[str | Path, ...]:
        return ("convert", self.src, self.out, *self.strategies, "--quiet", "--max-rate", "400KiB/s", *more)

    def noted(self) -> dict[str, int]:
        """The inode of every file that is noted as whole."""
        records = (self.out / ".reshard" / "done").glob("[0-9].json")
        paths = [json.loads(record.read_bytes())["file"]["path"] for record in records]
        return {path: (self.out / path).stat().st_ino for path in paths}

    def finished(self) -> bool:
        return (self.out / ".reshard" / "manifest.json").exists()

    def assert_nothing_half_done_looks_finished(self) -> None:
        there = tree(self.out) if self.out.exists() else {}
        for path, content in there.items():
            assert path.endswith(".part") or content == self.wanted[path], path
        if self.finished():
            assert there == self.wanted


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("kill"))


def run(work: Work, *more: str, kill: tuple[signal.Signals, float] | None = None) -> tuple[int, str]:
    """Exit code, negative for a signal that ended it, and what it said. ``kill``: which signal after how long."""
    running = forks().start(*work.command(*more))
    if kill:
        time.sleep(kill[1])
        running.kill(kill[0])
    ended = running.ended()
    return ended.code, ended.said


def duration(work: Work, *more: str) -> float:
    """Seconds that a conversion takes here: the fewest of three, for on a busy machine kills would come too late."""
    found = []
    for _ in range(3):
        began = time.monotonic()
        assert run(work, *more) == (0, "")
        found.append(time.monotonic() - began)
        assert tree(work.out) == work.wanted
        shutil.rmtree(work.out)
    return min(found)


def test_killed_at_any_moment_it_resumes_to_the_same_bytes(work: Work) -> None:
    random = Random(20)
    whole = duration(work, "--no-fsync")
    landed = resumed = 0
    while landed < KILLS:
        shutil.rmtree(work.out, ignore_errors=True)
        begun = False
        while True:  # killed, resumed, perhaps killed again
            kind, after = SIGNALS[landed % len(SIGNALS)], random.uniform(0, whole)
            code, said = run(work, "--no-fsync", *["--resume"] * begun, kill=(kind, after))
            work.assert_nothing_half_done_looks_finished()
            if work.finished():
                break
            landed += 1
            assert code in (-kind, 130), (code, said)
            assert code < 0 or said == "interrupted: no file under its final name is partial; --resume goes on\n"
            begun = work.out.exists()
            if random.random() < 0.5:
                noted = work.noted()
                assert run(work, "--no-fsync", *["--resume"] * begun) == (0, "")
                assert {path: (work.out / path).stat().st_ino for path in noted} == noted  # not made again
                resumed += bool(noted)
                break
        assert tree(work.out) == work.wanted
        reshard.verify(work.out)
    assert resumed >= KILLS // 24  # those that had something done to go on from


def test_a_killed_overwrite_leaves_the_old_tree_or_the_new_one(work: Work) -> None:
    random = Random(21)
    shutil.rmtree(work.out, ignore_errors=True)
    whole = duration(work)
    old = {"rank_0/mine.ckpt": b"mine", "notes.txt": b"more"}
    for number in range(KILLS // 2):
        shutil.rmtree(work.out, ignore_errors=True)
        (work.out / "rank_0").mkdir(parents=True)
        for name, content in old.items():
            (work.out / name).write_bytes(content)
        after = whole * random.choice([random.uniform(0, 1), random.uniform(0.9, 1.1)])
        run(work, "--overwrite", kill=(SIGNALS[number % len(SIGNALS)], after))
        assert tree(work.out) == (work.wanted if work.finished() else old)
    told = "" if work.finished() else "warning: 1 file of others went with the old target:\nnotes.txt\n"
    assert run(work, "--overwrite") == (0, told)
    assert tree(work.out) == work.wanted
    assert list(work.folder.glob(".out.reshard-*")) == []
