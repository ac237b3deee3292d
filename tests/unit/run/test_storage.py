from __future__ import annotations

from pathlib import Path

import pytest

from reshard.errors import CheckpointError, StorageError
from reshard.run.storage import Disk, write_whole


def test_a_new_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "f"
    new = Disk().create(str(path), 4)
    new.write(2, memoryview(b"cd"))
    new.write(0, memoryview(b"ab"))
    assert not path.exists()
    new.commit(fsync=True)
    assert path.read_bytes() == b"abcd"
    assert [p.name for p in path.parent.iterdir()] == ["f"]


def test_an_abandoned_file_leaves_nothing(tmp_path: Path) -> None:
    new = Disk().create(str(tmp_path / "f"), 4)
    new.abandon()
    new.abandon()
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_of_an_earlier_run_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(b"old and longer")
    new = Disk().create(str(tmp_path / "f"), 2)
    new.write(0, memoryview(b"ab"))
    new.commit(fsync=False)
    assert (tmp_path / "f").read_bytes() == b"ab"


def test_a_short_read_is_an_error_and_never_padding(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abcd")
    file = Disk().open(str(tmp_path / "f"))
    assert file.read(1, 3) == b"bcd"
    with pytest.raises(StorageError, match="the file ends at byte 4, 1 more were expected"):
        file.read(1, 4)
    file.close()


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        Disk().open(str(tmp_path / "f"))
    assert caught.value.where == str(tmp_path / "f")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises((CheckpointError, StorageError)):
        Disk().create(str(tmp_path / "f" / "g"), 4)


def test_write_whole_replaces(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    write_whole(tmp_path / "f", b"new!")
    assert (tmp_path / "f").read_bytes() == b"new!"
