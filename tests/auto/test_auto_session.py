"""Meetings of ranks in one process each of which is a thread: what is hard to time with processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from reshard.auto.records import RecordsFolder
from reshard.auto.session import Session
from reshard.errors import InputError, ReshardError, RunError
from waiting import wait_until


def run(folder: Path, rank: int, about: str, error: ReshardError | None = None) -> None:
    """A rank of two that joins, fails if it is to, and else waits for the other's word."""
    with Session(folder, rank, (0, 1), about, 20, None) as session:
        session.arrive()
        session.join()
        if error:
            raise error
        session.tell(f"here_{rank}", True)
        session.wait(lambda: session.told(f"here_{1 - rank}", bool))


def begin(
    pool: ThreadPoolExecutor, folder: Path, rank: int, about: str, error: ReshardError | None = None
) -> Future[None]:
    """Start a rank, and return when it has said that it is there."""
    before = RecordsFolder(folder).word(rank)
    future = pool.submit(run, folder, rank, about, error)
    wait_until(lambda: (word := RecordsFolder(folder).word(rank)) and word.nonce != (before.nonce if before else ""))
    return future


def test_what_a_script_left_that_failed_and_lives_is_not_taken_for_this_run(tmp_path: Path) -> None:
    """It tries again with other settings, and its rank 0 is first."""
    with ThreadPoolExecutor() as pool:
        first = begin(pool, tmp_path, 0, "settings")
        begin(pool, tmp_path, 1, "settings", InputError("wrong")).exception()
        with pytest.raises(RunError, match="rank 1 failed"):
            first.result()
        first = begin(pool, tmp_path, 0, "others")
        second = begin(pool, tmp_path, 1, "others")
        assert (first.result(), second.result()) == (None, None)


ON_ITS_WAY = """
import sys, time
from pathlib import Path
from reshard.auto.session import Session
Session(Path(sys.argv[1]), 0, (0, 1), "settings", 120, None).arrive()
time.sleep(600)
"""


@pytest.mark.parametrize("first", ["before", "after"])
def test_a_rank_killed_on_its_way_is_missed_at_once(tmp_path: Path, shorten: Callable[..., None], first: str) -> None:
    """Rank 0 looks what there is to do, says so, and never joins; rank 1 has come before it, or comes after."""
    shorten(replaced_s=0.5)
    with ThreadPoolExecutor() as pool:
        second = begin(pool, tmp_path, 1, "settings") if first == "after" else None
        process = subprocess.Popen([sys.executable, "-c", ON_ITS_WAY, tmp_path])
        wait_until(lambda: RecordsFolder(tmp_path).word(0))
        process.kill()
        process.wait()
        with pytest.raises(RunError, match=rf"rank 0 \(process {process.pid} on .*ended without a word"):
            (second or begin(pool, tmp_path, 1, "settings")).result()


def test_a_rank_on_its_way_is_not_taken_for_one_that_waits(tmp_path: Path, shorten: Callable[..., None]) -> None:
    shorten(awaited_s=0.1, beat_s=0.1)
    here, there = (Session(tmp_path, rank, (0, 1), "settings", 120, None) for rank in (0, 1))
    here.arrive()
    there.arrive()
    assert not here.awaited()
    with ThreadPoolExecutor() as pool:
        begin(pool, tmp_path, 1, "settings")
        assert here.awaited()
        here.join(refusing=InputError("nothing more is wanted"))


def test_who_withdraws_leaves_nothing(tmp_path: Path) -> None:
    session = Session(tmp_path / "output" / "meeting", 0, (0, 1), "settings", 120, None)
    session.arrive()
    assert RecordsFolder(tmp_path / "output" / "meeting").word(0)
    session.withdraw()
    assert not list(tmp_path.iterdir())
