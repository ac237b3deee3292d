"""Meetings of ranks in one process each of which is a thread: what is hard to time with processes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from reshard.auto.records import Folder
from reshard.auto.session import Session
from reshard.errors import InputError, ReshardError, RunError
from waiting import wait_until


def run(folder: Path, rank: int, about: str, error: ReshardError | None = None) -> None:
    """A rank of two that joins, fails if it is to, and else waits for the other's word."""
    with Session(folder, rank, (0, 1), about, 20, None) as session:
        session.join()
        if error:
            raise error
        session.tell(f"here_{rank}", True)
        session.wait(lambda: session.told(f"here_{1 - rank}", bool))


def begin(
    pool: ThreadPoolExecutor, folder: Path, rank: int, about: str, error: ReshardError | None = None
) -> Future[None]:
    """Start a rank, and return when it has said that it is there."""
    before = Folder(folder).word(rank)
    future = pool.submit(run, folder, rank, about, error)
    wait_until(lambda: (word := Folder(folder).word(rank)) and word.nonce != (before.nonce if before else ""))
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
