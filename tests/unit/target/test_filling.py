"""What may be written where, and what an interrupted run leaves for the next."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import reshard
from making import array, read_rank, same, tree, write_file, write_strategy
from reshard.errors import CheckpointError, StorageError, UsageError
from reshard.layout.tensor import Sharding
from reshard.moving.local import LocalExecutor
from reshard.moving.task import Settings
from reshard.ops.convert import plan
from reshard.ops.options import Options
from reshard.planning.plan import FileResult, Plan, Task
from reshard.planning.tasks import tasks
from reshard.target.filling import BEGUN, DONE, Filling
from reshard.target.manifest import MANIFEST, encode_manifest, read_manifest
from reshard.target.preflight import check_room
from reshard.target.target_paths import META, Place

CUT = Sharding((4,), ((0,),))
W = array((8,))


class Job:
    """One tensor cut for four ranks."""

    def __init__(self, folder: Path) -> None:
        self.src = write_file(folder / "full.ckpt", {"w": W})
        self.out = folder / "out"
        self.options = Options(dst_strategy=str(write_strategy(folder / "new", [{"w": CUT}])), fsync=False)

    def run(self, **changed: object) -> reshard.Conversion:
        return reshard.convert(self.src, self.out, replace(self.options, **changed))  # type: ignore[arg-type]

    def filling(self, *ranks: int, join: bool = True) -> Filling:
        options = replace(self.options, ranks=frozenset(ranks) if ranks else None)
        return Filling(Place.of(self.out, single=False), plan(self.src, self.out, options), join=join)

    def notes(self) -> list[str]:
        """Our own files that are there."""
        return sorted(str(p.relative_to(self.out / META)) for p in (self.out / META).rglob("*") if p.is_file())

    def assert_whole(self) -> None:
        for rank in range(4):
            assert same(read_rank(self.out, rank)["w"], W[2 * rank : 2 * rank + 2])
        reshard.verify(self.out)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


class Interrupted(Exception):
    pass


@pytest.fixture
def stop_after_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first file is made and named; then the program is stopped."""
    run = LocalExecutor.run

    def stopping(self: LocalExecutor, tasks: Iterable[Task]) -> Iterator[list[FileResult]]:
        for task in tasks:
            yield from run(self, [replace(task, files=task.files[:1], moves=tuple(_first(m) for m in task.moves))])
            raise Interrupted

    def _first(move):  # type: ignore[no-untyped-def]
        return replace(move, targets=tuple(t for t in move.targets if t.file == 0))

    monkeypatch.setattr(LocalExecutor, "run", stopping)


# --- refused


def test_a_folder_that_holds_anything(job: Job) -> None:
    job.out.mkdir()
    (job.out / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        job.run()
    assert tree(job.out) == {"mine.txt": b"x"}


def test_an_empty_folder_is_no_obstacle(job: Job) -> None:
    job.out.mkdir()
    job.run()
    job.assert_whole()


def test_a_file_where_the_folder_goes(job: Job) -> None:
    job.out.write_text("x")
    with pytest.raises(UsageError, match="a file stands where a folder should go"):
        job.run()


def test_a_second_run_meanwhile(job: Job) -> None:
    first = job.filling()
    with pytest.raises(UsageError, match="another conversion is writing here"):
        job.filling()
    first.close()
    job.filling().close()
    assert not job.out.exists()


def test_more_bytes_than_are_free(job: Job) -> None:
    with pytest.raises(StorageError, match="are free"):
        check_room(Place.of(job.out, single=False), 1 << 60)


def test_a_refused_run_leaves_nothing(job: Job) -> None:
    before = set(job.src.parent.rglob("*"))
    with pytest.raises(reshard.ReshardError):
        job.run(prefix="a/b")
    assert set(job.src.parent.rglob("*")) == before


# --- resume


def test_resume_makes_what_lacks_and_only_that(
    job: Job, stop_after_first: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        job.run()
    assert list(tree(job.out)) == ["rank_0/checkpoint_0.ckpt"]
    assert job.notes() == [BEGUN, f"{DONE}/0.json", "lock"]
    with pytest.raises(CheckpointError, match="no manifest"):
        reshard.verify(job.out)
    kept = (job.out / "rank_0" / "checkpoint_0.ckpt").stat().st_ino
    monkeypatch.undo()
    done = job.run(resume=True)
    assert done.skipped_files == 1
    assert (job.out / "rank_0" / "checkpoint_0.ckpt").stat().st_ino == kept
    assert job.notes() == ["lock", MANIFEST]
    job.assert_whole()


def test_a_file_that_is_not_as_long_as_noted_is_made_again(
    job: Job, stop_after_first: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        job.run()
    (job.out / "rank_0" / "checkpoint_0.ckpt").write_bytes(b"short")
    monkeypatch.undo()
    assert job.run(resume=True).skipped_files == 0
    job.assert_whole()


def test_a_record_cut_short_by_a_crash(job: Job, stop_after_first: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted):
        job.run()
    record = job.out / META / DONE / "0.json"
    record.write_bytes(record.read_bytes()[:-10])
    monkeypatch.undo()
    assert job.run(resume=True).skipped_files == 0
    job.assert_whole()


@pytest.mark.parametrize("changed", [{"prefix": "x_"}, {"dtype": "float16"}, {"format": "safetensors"}, {"crc": True}])
def test_resume_with_other_options_is_refused(
    job: Job, changed: dict[str, object], stop_after_first: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        job.run()
    monkeypatch.undo()
    with pytest.raises(UsageError, match="begun from other sources, strategies or options"):
        job.run(resume=True, **changed)
    job.run(resume=True)
    job.assert_whole()


def test_resume_after_the_source_changed_is_refused(
    job: Job, stop_after_first: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        job.run()
    os.utime(job.src, (5, 5))
    monkeypatch.undo()
    with pytest.raises(UsageError, match="begun from other sources"):
        job.run(resume=True)


def test_resume_of_a_whole_target_does_nothing(job: Job) -> None:
    job.run()
    before = tree(job.out)
    done = job.run(resume=True)
    assert (done.skipped_files, done.written_nbytes) == (4, 0)
    assert tree(job.out) == before
    job.assert_whole()


def test_resume_of_a_whole_target_with_other_options_is_refused(job: Job) -> None:
    job.run()
    with pytest.raises(UsageError, match="begun from other"):
        job.run(resume=True, dtype="float16")
    job.assert_whole()


def test_resume_in_a_folder_that_is_not_ours_is_refused_and_leaves_it_alone(job: Job) -> None:
    job.out.mkdir()
    (job.out / "mine.txt").write_text("x")
    with pytest.raises(UsageError):
        job.run(resume=True)
    assert [p.name for p in job.out.iterdir()] == ["mine.txt"]


# --- ranks made apart


def test_runs_of_other_ranks_fill_one_target_and_the_last_completes_it(job: Job) -> None:
    job.run(ranks=frozenset({1, 2}))
    place = Place.of(job.out, single=False)
    assert not read_manifest(place).complete
    assert (reshard.verify(job.out).ranks, reshard.verify(job.out).world) == (2, 4)
    job.run(ranks=frozenset({0, 3}))
    assert read_manifest(place).complete
    job.assert_whole()


@pytest.mark.parametrize("spoilt", ["gone", "cut short"])
def test_what_another_run_made_and_is_no_more_completes_nothing(job: Job, spoilt: str) -> None:
    job.run(ranks=frozenset({0, 1, 2}))
    made = job.out / "rank_1" / "checkpoint_1.ckpt"
    made.write_bytes(made.read_bytes()[:-1]) if spoilt == "cut short" else made.unlink()
    assert job.run(ranks=frozenset({3})).missing_files == 1
    assert not read_manifest(Place.of(job.out, single=False)).complete
    assert job.run(ranks=frozenset({1, 2})).missing_files == 0
    job.assert_whole()


def test_runs_that_fill_one_target_at_once_know_of_each_other(job: Job) -> None:
    first, second = job.filling(0, 1), job.filling(2, 3)
    with pytest.raises(UsageError, match=r"another conversion is writing here: rank_1/checkpoint_1\.ckpt"):
        job.filling(1)
    with pytest.raises(UsageError, match="another conversion is writing here"):
        job.filling(join=False)
    first.close()
    assert job.notes() == [BEGUN, "lock"]  # the second goes on
    second.close()
    assert list(job.out.iterdir()) == []


def test_of_two_that_end_at_once_one_writes_the_whole_manifest(job: Job) -> None:
    """Each made its ranks and noted them; whoever publishes last sees all, whatever came between."""
    for order in ((0, 1), (1, 0)):
        runs = [job.filling(0, 1), job.filling(2, 3)]
        for number, run in enumerate(runs):
            results = LocalExecutor(Settings(str(job.out), fsync=False)).run(tasks(_part(job, 2 * number)))
            run.record(r for made in results for r in made)
        assert [runs[i].publish(partial=False, fsync=False) for i in order] == [0, 0]
        for run in runs:
            run.close()
        assert job.notes() == ["lock", MANIFEST]
        job.assert_whole()
        shutil.rmtree(job.out)


def test_what_another_notes_while_a_part_is_published_is_kept(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the records are read, and before those that were read are removed; also the beginning of a note."""
    first, second = job.filling(0, 1), job.filling(2, 3)
    made = [
        [r for each in LocalExecutor(Settings(str(job.out), fsync=False)).run(tasks(_part(job, n))) for r in each]
        for n in (0, 2)
    ]
    first.record(made[0])
    encode = encode_manifest

    def meanwhile(*args: Any, **more: Any) -> bytes:
        second.record(made[1])
        (job.out / META / DONE / "3.json.0.part").write_bytes(b"")
        return encode(*args, **more)

    with monkeypatch.context() as during:
        during.setattr("reshard.target.filling.encode_manifest", meanwhile)
        assert first.publish(partial=True, fsync=False) == 2
    assert job.notes() == [BEGUN, f"{DONE}/2.json", f"{DONE}/3.json", f"{DONE}/3.json.0.part", "lock", MANIFEST]
    assert second.publish(partial=True, fsync=False) == 0
    assert job.notes() == ["lock", MANIFEST]
    job.assert_whole()


def _part(job: Job, first: int) -> Plan:
    return plan(job.src, job.out, replace(job.options, ranks=frozenset({first, first + 1})))


def test_a_run_of_all_does_not_publish_what_lacks_a_file(job: Job) -> None:
    filling = job.filling(0, 1)
    for results in LocalExecutor(Settings(str(job.out), fsync=False)).run(tasks(_part(job, 0))):
        filling.record(results)
    assert filling.publish(partial=False, fsync=False) == 2
    filling.close()
    assert job.notes() == [BEGUN, f"{DONE}/0.json", f"{DONE}/1.json", "lock"]


def test_ranks_into_a_folder_of_others_are_refused(job: Job) -> None:
    job.out.mkdir()
    (job.out / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="not empty, and this conversion did not begin it"):
        job.run(ranks=frozenset({0}))
    assert [p.name for p in job.out.iterdir()] == ["mine.txt"]


def test_copies_of_the_source_fill_one_target_together(job: Job, tmp_path: Path) -> None:
    job.run(ranks=frozenset({0, 1}))
    copied = tmp_path / "elsewhere" / job.src.name
    copied.parent.mkdir()
    shutil.copy2(job.src, copied)
    reshard.convert(copied, job.out, replace(job.options, ranks=frozenset({2, 3})))
    job.assert_whole()
    os.utime(copied, (5, 5))
    with pytest.raises(UsageError, match="what differs: sources") as caught:
        reshard.convert(copied, job.out, replace(job.options, ranks=frozenset({2, 3})))
    assert "cp -p" in caught.value.hint


def test_folders_of_an_earlier_run_are_made_durable_too(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that made them may have been killed before it came to that."""
    job.run(ranks=frozenset({0}))
    synced: list[str] = []
    monkeypatch.setattr("reshard.target.filling.sync_folder", synced.append)
    job.run(resume=True, fsync=True)
    assert {str(job.out), str(job.out.parent)} <= set(synced)


def test_a_file_system_without_locks_is_no_obstacle(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    job.run(ranks=frozenset({0, 1}))
    job.run(ranks=frozenset({2, 3}))
    job.assert_whole()


# --- overwrite


def test_overwrite_takes_the_old_one_s_place_whole(job: Job) -> None:
    (job.out / "rank_7").mkdir(parents=True)
    (job.out / "rank_7" / "stale.ckpt").write_bytes(b"old")
    job.run(overwrite=True)
    assert sorted(p.name for p in job.out.iterdir()) == [META, *(f"rank_{r}" for r in range(4))]
    assert sorted(p.name for p in job.out.parent.iterdir()) == ["full.ckpt", "new", "out"]
    job.assert_whole()


def test_overwrite_opens_the_target_to_those_whom_the_old_one_did(job: Job) -> None:
    job.out.mkdir()
    job.run()
    job.out.chmod(0o2770)
    before = job.out.stat()
    job.run(overwrite=True)
    after = job.out.stat()
    assert (after.st_mode, after.st_gid, after.st_ino != before.st_ino) == (before.st_mode, before.st_gid, True)
    assert (job.out / "rank_0").stat().st_mode & 0o2000, "folders in it are not of its group"


def test_overwrite_that_fails_leaves_the_old_one(
    job: Job, stop_after_first: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job.out / "rank_7").mkdir(parents=True)
    (job.out / "rank_7" / "old.ckpt").write_bytes(b"old")
    with pytest.raises(Interrupted):
        job.run(overwrite=True)
    assert tree(job.out) == {"rank_7/old.ckpt": b"old"}
    assert sorted(p.name for p in job.out.parent.iterdir()) == ["full.ckpt", "new", "out"]


def test_some_ranks_do_not_take_the_place_of_others_of_the_same_conversion(job: Job) -> None:
    """As where one file shall be made again, or each machine of several begins anew."""
    job.run()
    with pytest.raises(UsageError, match="3 files of other ranks") as refused:
        job.run(overwrite=True, ranks=frozenset({2}))
    assert "leave --overwrite out" in refused.value.hint
    job.assert_whole()
    job.run(overwrite=True, ranks=frozenset({2}), prefix="new_")
    job.run(overwrite=True, ranks=frozenset({2}), prefix="new_")
    assert list(tree(job.out)) == ["rank_2/new_2.ckpt"]
    (job.out / META / MANIFEST).write_bytes(b"damaged")
    job.run(overwrite=True, ranks=frozenset({1}), prefix="new_")


def test_overwrite_of_what_holds_the_source_is_refused(job: Job) -> None:
    with pytest.raises(UsageError, match="the source lies inside the target"):
        reshard.convert(job.src, job.src.parent, replace(job.options, overwrite=True))
    assert job.src.exists()


@pytest.mark.parametrize("below", ["", "rank_0"])
def test_overwrite_of_the_current_folder_is_refused(job: Job, below: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be gone, for all that comes after."""
    job.run()
    monkeypatch.chdir(job.out / below)
    with pytest.raises(UsageError, match="the current folder lies in the target"):
        reshard.convert(job.src, Path(os.path.relpath(job.out)), replace(job.options, overwrite=True))
    job.assert_whole()


def test_overwrite_from_a_current_folder_that_is_gone(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.run()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    reshard.convert(job.src, job.out, replace(job.options, overwrite=True))
    job.assert_whole()


def test_resume_makes_what_an_interrupted_overwrite_of_one_file_had_not(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old file has the right length and a manifest of the same conversion; that it is damaged made it replaced."""

    def stopped(self: LocalExecutor, tasks: Iterable[Task]) -> Iterator[list[FileResult]]:
        raise Interrupted

    out = tmp_path / "one" / "full.safetensors"
    reshard.convert(job.src, out, Options(fsync=False))
    good = out.read_bytes()
    out.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with monkeypatch.context() as patched:
        patched.setattr(LocalExecutor, "run", stopped)
        with pytest.raises(Interrupted):
            reshard.convert(job.src, out, Options(fsync=False, overwrite=True))
    assert reshard.convert(job.src, out, Options(fsync=False, resume=True)).skipped_files == 0
    assert out.read_bytes() == good
    assert reshard.convert(job.src, out, Options(fsync=False, resume=True)).skipped_files == 1


@pytest.mark.parametrize("way", ["full.ckpt", "not-yet/../full.ckpt"])
def test_overwrite_of_the_source_file_is_refused(job: Job, way: str) -> None:
    before = job.src.read_bytes()
    for overwrite in (True, False):
        with pytest.raises(UsageError):
            reshard.convert(job.src, f"{job.src.parent}/{way}", Options(dtype="float16", overwrite=overwrite))
    assert job.src.read_bytes() == before


def test_a_file_whose_name_no_manifest_holds_is_refused(job: Job) -> None:
    with pytest.raises(UsageError, match="is not Unicode"):
        reshard.convert(job.src, job.src.parent / "\udcff.ckpt", Options())


# --- one file


def test_one_file_has_its_manifest_beside_it(job: Job, tmp_path: Path) -> None:
    target = tmp_path / "x" / "full.safetensors"
    reshard.convert(job.src, target, Options(fsync=False))
    assert list(tree(target.parent)) == ["full.safetensors"]
    assert reshard.verify(target).files == 1
    with pytest.raises(UsageError, match="not empty"):
        reshard.convert(job.src, target, Options(fsync=False))


def test_two_single_files_in_one_folder(job: Job, tmp_path: Path) -> None:
    for name in ("a.ckpt", "b.safetensors"):
        reshard.convert(job.src, tmp_path / "x" / name, Options(fsync=False))
    for name in ("a.ckpt", "b.safetensors"):
        assert reshard.verify(tmp_path / "x" / name).files == 1
