from __future__ import annotations

import errno
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reshard.errors import CheckpointError, StorageError
from reshard.storage import disk
from reshard.storage.clones import block_shared_by
from reshard.storage.disk import Disk
from reshard.storage.storage import NewFile, SharedBytes


def test_a_new_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "f"
    new = Disk().create(str(path), 4, fsync=True)
    new.write(2, memoryview(b"cd"))
    new.write(0, memoryview(b"ab"))
    assert not path.exists()
    new.commit()
    assert path.read_bytes() == b"abcd"
    assert [p.name for p in path.parent.iterdir()] == ["f"]


@pytest.mark.parametrize(("fsync", "begun"), [(True, [4, 8]), (False, [])])
def test_what_must_be_on_the_disk_goes_there_while_it_is_written(
    fsync: bool, begun: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    written = 0
    monkeypatch.setattr(disk, "start_writing", lambda fd: seen.append(written))
    new = Disk().create(str(tmp_path / "f"), 9 << 20, fsync=fsync)
    for written in range(1, 10):
        new.write((9 - written) << 20, memoryview(bytes(1 << 20)))
    new.commit()
    assert seen == begun


def test_an_abandoned_file_leaves_nothing(tmp_path: Path) -> None:
    new = Disk().create(str(tmp_path / "f"), 4, fsync=False)
    new.abandon()
    new.abandon()
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_of_an_earlier_run_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(b"old and longer")
    new = Disk().create(str(tmp_path / "f"), 2, fsync=False)
    new.write(0, memoryview(b"ab"))
    new.commit()
    assert (tmp_path / "f").read_bytes() == b"ab"


def test_one_that_takes_another_s_place_opens_to_no_more_people(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f").chmod(0o600)
    new = Disk().create(str(tmp_path / "f"), 3, fsync=False)
    assert (tmp_path / "f.part").stat().st_mode & 0o777 == 0o600  # from the beginning
    new.write(0, memoryview(b"new"))
    new.commit()
    assert ((tmp_path / "f").read_bytes(), (tmp_path / "f").stat().st_mode & 0o777) == (b"new", 0o600)


def test_access_lists_go_along_and_nothing_else(tmp_path: Path) -> None:
    """What a file system notes beside a file is its own affair: Lustre, where it lies."""
    old, new = tmp_path / "old", tmp_path / "new"
    entries = ((1, 6, -1), (2, 4, 1234), (4, 0, -1), (16, 4, -1), (32, 0, -1))  # the owner rw, user 1234 r
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    old.touch()
    new.touch()
    try:
        os.setxattr(old, "system.posix_acl_access", acl)
        os.setxattr(old, "user.other", b"x")
    except OSError:
        pytest.skip("no access lists here")
    disk.keep_access(str(new), str(old))
    assert (os.listxattr(new), new.stat().st_mode & 0o777) == (["system.posix_acl_access"], 0o640)
    assert os.getxattr(new, "system.posix_acl_access") == acl


def test_of_two_that_write_one_file_the_first_never_names_the_other_s_bytes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    first = Disk().create(str(path), 2, fsync=False)
    second = Disk().create(str(path), 2, fsync=False)
    with pytest.raises(StorageError, match="another process writes it too"):
        first.commit()
    first.abandon()
    assert not path.exists()
    second.write(0, memoryview(b"ab"))
    second.commit()
    assert path.read_bytes() == b"ab"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


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


def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    with pytest.raises(CheckpointError, match="a pipe or a device"):
        Disk().open(str(tmp_path / "f"))


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises((CheckpointError, StorageError)):
        Disk().create(str(tmp_path / "f" / "g"), 4, fsync=False)


def test_a_folder_where_a_file_should_be_stays_alone(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(CheckpointError, match="a folder, expected a file"):
        Disk().write_whole(str(tmp_path / "f"), b"new", fsync=False)
    assert os.listdir(tmp_path) == ["f"]


def test_write_whole_replaces(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    Disk().write_whole(str(tmp_path / "f"), b"new!", fsync=True)
    assert (tmp_path / "f").read_bytes() == b"new!"


def test_of_several_that_make_a_file_one_wins(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "f")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: Disk().create_whole(path, b"%d" % i * 1000, fsync=False), range(32)))
    assert made.count(True) == 1
    assert Path(path).read_bytes() == b"%d" % made.index(True) * 1000
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["f"]


def test_where_a_file_system_has_no_links_one_wins_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*args: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    path = str(tmp_path / "f")
    assert [Disk().create_whole(path, text, fsync=True) for text in (b"a", b"b")] == [True, False]
    assert (tmp_path / "f").read_bytes() == b"a"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_what_a_folder_holds(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    disk = Disk()
    found = [(e.name, e.nbytes, e.dangling) for e in disk.entries(str(tmp_path)) if not e.folder]
    assert found == [("a", 3, False), ("gone", 0, True)]
    assert [e.name for e in disk.entries(str(tmp_path)) if e.folder] == ["b"]
    assert disk.entry(str(tmp_path / "gone")) is None
    (tmp_path / "gone").unlink()
    assert disk.entry(str(tmp_path / "b")) is not None
    assert disk.entry(str(tmp_path / "c")) is None
    assert disk.entries(str(tmp_path / "c")) == disk.entries(str(tmp_path / "a" / "b")) == []
    disk.remove(str(tmp_path / "a"))
    disk.remove(str(tmp_path / "a"))
    assert [e.name for e in disk.entries(str(tmp_path))] == ["b"]


# --- blocks that files share


BLOCK = 4096


class Shares:
    """Clones by copying, as a file system that can; of what lies at ``refused`` it cannot."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refused: int = -1) -> None:
        self.refused = refused
        monkeypatch.setattr("reshard.storage.disk.clone_range", self._clone)

    def _clone(self, fd: int, offset: int, source_fd: int, source_offset: int, nbytes: int) -> bool:
        if offset == self.refused:
            return False
        os.pwrite(fd, os.pread(source_fd, nbytes, source_offset), offset)
        return True


def begun(tmp_path: Path, *share: tuple[int, int, int]) -> tuple[NewFile, bytes]:
    content = os.urandom(8 * BLOCK)
    (tmp_path / "source").write_bytes(content)
    source = Disk().open(str(tmp_path / "source"))
    wanted = [SharedBytes(offset, nbytes, source, at, copied=False) for offset, nbytes, at in share]
    new = Disk().create(str(tmp_path / "f"), len(content) + 100, fsync=False, share=wanted)
    source.close()
    return new, content


def test_what_is_shared_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Shares(monkeypatch)
    new, content = begun(tmp_path, (4 * BLOCK, BLOCK, 4 * BLOCK), (BLOCK, 2 * BLOCK, BLOCK))
    assert list(new.shared) == [(BLOCK, 3 * BLOCK), (4 * BLOCK, 5 * BLOCK)]
    new.write(0, memoryview(b"x" * (len(content) + 100)))
    new.commit()
    made = (tmp_path / "f").read_bytes()
    held = content[BLOCK : 3 * BLOCK], content[4 * BLOCK : 5 * BLOCK]
    assert made == b"x" * BLOCK + held[0] + b"x" * BLOCK + held[1] + b"x" * (3 * BLOCK + 100)


def test_what_cannot_be_shared_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Shares(monkeypatch, refused=BLOCK)
    new, content = begun(tmp_path, (BLOCK, BLOCK, 0), (4 * BLOCK, BLOCK, 0))
    new.write(0, memoryview(b"x" * 5 * BLOCK))
    new.commit()
    assert list(new.shared) == [(4 * BLOCK, 5 * BLOCK)]
    assert (tmp_path / "f").read_bytes()[: 5 * BLOCK] == b"x" * 4 * BLOCK + content[:BLOCK]


def test_a_file_system_without_clones_says_so(tmp_path: Path) -> None:
    """Whatever it is that the tests run on, memory has none."""
    (tmp_path / "f").write_bytes(bytes(BLOCK))
    assert block_shared_by(str(tmp_path / "f"), "/dev/shm/not/there") == 0
    assert block_shared_by("/dev/null", str(tmp_path)) == 0
