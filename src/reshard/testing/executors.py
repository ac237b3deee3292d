"""What every executor must do: make whole files or none, and say what it wrote."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import xxhash
from msgspec.structs import replace

from reshard.errors import CheckpointError, RunError, StorageError
from reshard.index import Checksum, Extent
from reshard.layout.box import Box
from reshard.moving.local import Executor
from reshard.moving.task import Settings
from reshard.planning.misfits import Misfits, ShardMisfits
from reshard.planning.plan import FileResult, Move, SourceFile, Task, TaskFile, check_runs
from reshard.planning.steps import Assembly, Piece
from reshard.testing.sealed import Sealed

SHAPE = (24, 16)
FULL = np.arange(24 * 16, dtype=np.uint32).reshape(SHAPE)
HEAD = b"header"


class Work:
    """A source file of rows, and tasks that cut it by columns."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        self.source.write_bytes(HEAD + FULL.tobytes())
        self.out = folder / "out"

    def settings(self, block_nbytes: int = 100, *, checksum: bool = True) -> Settings:
        return Settings(str(self.out), block_nbytes, fsync=False, checksum=checksum)

    def task(self, number: int, *, summed: bool = False) -> Task:
        """Two files, each of half the columns of the rows 8 * number to 8 * number + 8; ``summed`` ones state the
        CRC-32 of all and that of the tensor.
        """
        status = self.source.stat()
        rows = (8 * number, 8 * number + 8)
        nbytes = 8 * 8 * 4
        boxes = [Box((rows[0], 8 * half), (rows[1], 8 * half + 8)) for half in range(2)]
        targets = tuple(Piece(i, box, (Extent(len(HEAD), nbytes),)) for i, box in enumerate(boxes))
        whole = Piece(0, Box.whole(SHAPE), (Extent(len(HEAD), FULL.nbytes),))
        end = len(HEAD) + nbytes
        header = ((0, HEAD), (end, b"sum" + bytes(10)), (end + 13, bytes(8)))[: 3 if summed else 1]
        checksums = (
            Checksum(Extent(0, end), (end + 3,), 10, big_endian=True),
            Checksum(Extent(len(HEAD), nbytes), (end + 13, end + 17)),
        )[: 2 * summed]
        size = sum(len(piece) for _, piece in header) + nbytes
        files = tuple(TaskFile(self.name(number, i), size, header, checksums) for i in range(2))
        move = Move("w", Assembly("uint32", SHAPE, (whole,)), "uint32", targets)
        return Task(number, (SourceFile(str(self.source), status.st_size, status.st_mtime_ns),), files, (move,))

    @staticmethod
    def name(number: int, half: int) -> str:
        return f"rank_{number}/{half}.bin"

    def wanted(self, number: int, half: int) -> bytes:
        return HEAD + FULL[8 * number : 8 * number + 8, 8 * half : 8 * half + 8].tobytes()

    def files(self) -> list[str]:
        """Every file in the target, also unfinished ones."""
        return sorted(str(p.relative_to(self.out)) for p in self.out.rglob("*") if p.is_file())


class ExecutorTests(Sealed):
    """Subclass and say in ``executor`` how one is made from settings."""

    def executor(self, settings: Settings) -> Executor:
        raise NotImplementedError

    @pytest.fixture
    def work(self, tmp_path: Path) -> Work:
        return Work(tmp_path)

    @pytest.mark.parametrize("block_nbytes", [4, 100, 1 << 20])
    def test_files_hold_what_was_asked(self, work: Work, block_nbytes: int) -> None:
        tasks = [work.task(n) for n in range(3)]
        results = list(self.executor(work.settings(block_nbytes)).run(iter(tasks)))
        assert sorted([f.path for f in r] for r in results) == [[f.path for f in t.files] for t in tasks]
        assert work.files() == sorted(f.path for t in tasks for f in t.files)
        for n in range(3):
            for half in range(2):
                assert (work.out / work.name(n, half)).read_bytes() == work.wanted(n, half)

    def test_results_tell_every_byte_and_its_hash(self, work: Work) -> None:
        for results in self.executor(work.settings()).run([work.task(n) for n in range(3)]):
            for result in results:
                check_runs(result)
                content = (work.out / result.path).read_bytes()
                assert result.nbytes == len(content)
                for run in result.runs:
                    assert xxhash.xxh3_128_hexdigest(content[run.offset : run.offset + run.nbytes]) == run.xxh3

    def test_bytes_are_read_once_for_all_files_of_a_task(self, work: Work) -> None:
        (results,) = self.executor(work.settings()).run([work.task(1)])
        assert sum(r.read_nbytes for r in results) == 8 * SHAPE[1] * 4

    @pytest.mark.parametrize("block_nbytes", [4, 1 << 20])
    def test_values_that_did_not_fit_are_told_with_their_file(self, work: Work, block_nbytes: int) -> None:
        values = np.ones(SHAPE, np.float32)
        values[[1, 3, 20], 9] = 1e6  # the last is in rows of another task
        work.source.write_bytes(HEAD + values.tobytes())
        task = work.task(0)
        nbytes = 8 * 8 * 2
        targets = tuple(replace(p, extents=(Extent(len(HEAD), nbytes),)) for p in task.moves[0].targets)
        move = Move("w", replace(task.moves[0].step.base, dtype="float32"), "float16", targets)
        files = tuple(replace(f, nbytes=len(HEAD) + nbytes) for f in task.files)
        (results,) = self.executor(work.settings(block_nbytes)).run([replace(task, files=files, moves=(move,))])
        told = {r.path: r.misfits for r in results}
        assert told[files[0].path] == ()
        assert told[files[1].path] == (ShardMisfits(targets[1].box, Misfits("w", "float16", infinite=2)),)

    def test_without_hashes(self, work: Work) -> None:
        (results,) = self.executor(work.settings(checksum=False)).run([work.task(0)])
        for result in results:
            check_runs(result)
        assert (work.out / work.name(0, 1)).read_bytes() == work.wanted(0, 1)

    @pytest.mark.parametrize("block_nbytes", [4, 100, 1 << 20])
    @pytest.mark.parametrize("checksum", [True, False])
    def test_stated_sums_are_those_of_the_bytes(self, work: Work, block_nbytes: int, checksum: bool) -> None:
        (results,) = self.executor(work.settings(block_nbytes, checksum=checksum)).run([work.task(0, summed=True)])
        for half, result in enumerate(sorted(results, key=lambda r: r.path)):
            check_runs(result)
            content, wanted = (work.out / work.name(0, half)).read_bytes(), work.wanted(0, half)
            tensor = zlib.crc32(wanted[len(HEAD) :]).to_bytes(4, "little")
            assert content == wanted + b"sum" + zlib.crc32(wanted).to_bytes(10, "big") + 2 * tensor
            for run in result.runs if checksum else ():
                assert xxhash.xxh3_128_hexdigest(content[run.offset : run.offset + run.nbytes]) == run.xxh3

    def test_twins_get_the_content_of_their_file(self, work: Work) -> None:
        task = work.task(0)
        twins = ("rank_5/a.bin", "rank_6/b.bin")
        first = replace(task.files[0], twins=twins)
        (results,) = self.executor(work.settings()).run([replace(task, files=(first, task.files[1]))])
        assert {r.path for r in results} == {first.path, task.files[1].path, *twins}
        for twin in twins:
            assert (work.out / twin).read_bytes() == work.wanted(0, 0)
        assert {r.path for r in results if r.link} == set(twins)
        assert sum(r.read_nbytes for r in results) == 8 * SHAPE[1] * 4

    def test_a_task_s_files_are_there_when_its_result_is(self, work: Work) -> None:
        for results in self.executor(work.settings()).run([work.task(n) for n in range(3)]):
            assert all((work.out / r.path).is_file() for r in results)

    def test_no_task(self, work: Work) -> None:
        assert list(self.executor(work.settings()).run([])) == []

    def test_a_task_that_writes_a_byte_twice_is_refused(self, work: Work) -> None:
        good = work.task(0)
        move = good.moves[0]
        twice = Task(0, good.sources, good.files, (move, move))
        with pytest.raises(RunError):
            self._run(work, [twice])
        assert work.files() == []

    def test_a_task_that_leaves_a_byte_out_is_refused(self, work: Work) -> None:
        good = work.task(0)
        with pytest.raises(RunError):
            self._run(work, [Task(0, good.sources, good.files, ())])
        assert work.files() == []

    def test_a_source_that_is_gone_leaves_nothing_half_done(self, work: Work) -> None:
        tasks = [work.task(n) for n in range(3)]
        work.source.unlink()
        with pytest.raises(CheckpointError) as caught:
            self._run(work, tasks)
        assert str(work.source) in str(caught.value)
        assert work.files() == []

    def test_a_source_that_changed_leaves_nothing_half_done(self, work: Work) -> None:
        tasks = [work.task(n) for n in range(3)]
        work.source.write_bytes(work.source.read_bytes() + b"x")
        with pytest.raises(CheckpointError, match="changed after it was planned"):
            self._run(work, tasks)
        assert work.files() == []

    def test_a_source_cut_short_is_never_padded(self, work: Work) -> None:
        task = work.task(2)
        cut = work.source.read_bytes()[:-10]
        work.source.write_bytes(cut)
        status = work.source.stat()
        short = Task(2, (SourceFile(str(work.source), status.st_size, status.st_mtime_ns),), task.files, task.moves)
        with pytest.raises(StorageError, match="ends at byte"):
            self._run(work, [short])
        assert work.files() == []

    def test_a_failure_keeps_whole_files_and_leaves_no_part(self, work: Work) -> None:
        bad = work.task(2)
        gone = Task(2, (SourceFile(str(work.source) + "x", 0, 0),), bad.files, bad.moves)
        whole: list[FileResult] = []
        running = self.executor(work.settings()).run([work.task(0), work.task(1), gone])
        with pytest.raises(CheckpointError):
            whole.extend(result for results in running for result in results)
        assert not [name for name in work.files() if name.endswith(".part")]
        assert {r.path for r in whole} <= set(work.files()) <= {work.name(n, half) for n in (0, 1) for half in (0, 1)}
        for name in work.files():
            n, half = int(name[5]), int(name[7])
            assert (work.out / name).read_bytes() == work.wanted(n, half)

    def test_one_who_stops_listening_leaves_no_part(self, work: Work) -> None:
        running = iter(self.executor(work.settings()).run([work.task(n) for n in range(3)]))
        next(running)
        close = getattr(running, "close", None)
        if close is None:
            pytest.skip("the results are no generator")
        close()
        assert not [name for name in work.files() if name.endswith(".part")]

    def _run(self, work: Work, tasks: list[Task]) -> None:
        list(self.executor(work.settings()).run(tasks))
