"""A lock's folder may go while it is opened: one who found himself alone removes what a killed process left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from reshard.errors import CheckpointError
from reshard.target.locks import Locks


def test_a_folder_that_is_removed_between_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removals = [tmp_path / "made", tmp_path / "made"]
    make = os.makedirs

    def made_and_removed(path: str, **how: Any) -> None:
        make(path, **how)
        if removals:
            removals.pop().rmdir()

    monkeypatch.setattr(os, "makedirs", made_and_removed)
    locks = Locks(str(tmp_path / "made" / "lock"))
    assert not removals
    assert locks.alone()
    locks.close()


def test_a_lock_that_links_to_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "gone" / "lock")
    with pytest.raises(CheckpointError, match="no such file"):
        Locks(str(tmp_path / "lock"))
