from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from reshard.errors import RunError, StorageError
from reshard.index import Extent
from reshard.layout.box import Box
from reshard.moving.local import LocalExecutor
from reshard.moving.task import TaskRun
from reshard.planning.plan import Move, Task, TaskFile
from reshard.planning.steps import Assembly, Piece
from reshard.storage.disk import Disk
from reshard.storage.storage import NewFile, SharedBytes
from reshard.testing.executors import FULL, HEAD, Work


class Meeting(Disk):
    """Data of each of two kinds is written when data of the other is, too."""

    def __init__(self, kinds: tuple[str, str], kind_of: Callable[[str, int], str]) -> None:
        self._begun = {kind: threading.Event() for kind in kinds}
        self._kind_of = kind_of

    def create(
        self, path: str, nbytes: int, *, fsync: bool, buffer_nbytes: int = 0, share: Sequence[SharedBytes] = ()
    ) -> NewFile:
        file = super().create(path, nbytes, fsync=fsync)
        write = file.write

        def when_both(offset: int, data: memoryview) -> None:
            if offset >= len(HEAD):
                mine = self._kind_of(path, offset)
                self._begun[mine].set()
                if not all(begun.wait(10) for begun in self._begun.values()):
                    raise RunError("the other was not begun", path)
            write(offset, data)

        file.write = when_both  # type: ignore[method-assign]
        return file


def of_one_file(task: Task) -> Task:
    (move,) = task.moves
    return replace(task, files=task.files[:1], moves=(replace(move, targets=move.targets[:1]),))


def test_one_file_is_begun_and_named_without_more_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are a task each may be thousands: to start threads took longer than to write them."""
    work = Work(tmp_path)
    monkeypatch.setattr("reshard.moving.task.ThreadPoolExecutor", None)
    (results,) = LocalExecutor(work.settings()).run([of_one_file(work.task(0))])
    assert [(work.out / each.path).read_bytes() for each in results] == [work.wanted(0, 0)]


def test_threads_do_not_wait_for_one_file_while_there_is_another(tmp_path: Path) -> None:
    work = Work(tmp_path)
    meeting = Meeting(("rank_0", "rank_1"), lambda path, _: Path(path).parent.name)
    executor = LocalExecutor(work.settings(), workers=2, storage=meeting)
    done = [r.path for results in executor.run(of_one_file(work.task(n)) for n in range(2)) for r in results]
    assert done == [work.name(0, 0), work.name(1, 0)]
    assert [(work.out / name).read_bytes() for name in done] == [work.wanted(n, 0) for n in range(2)]


class Halting(Disk):
    """Files of some name are not created; nothing is written before ``go``."""

    def __init__(self, refused: str = "none") -> None:
        self.go = threading.Event()
        self._refused = refused

    def create(
        self, path: str, nbytes: int, *, fsync: bool, buffer_nbytes: int = 0, share: Sequence[SharedBytes] = ()
    ) -> NewFile:
        if self._refused in path:
            raise StorageError("no space", path)
        file = super().create(path, nbytes, fsync=fsync)
        write = file.write

        def when_told(offset: int, data: memoryview) -> None:
            if not self.go.wait(10):
                raise RunError("nobody asked for more", path)
            write(offset, data)

        file.write = when_told  # type: ignore[method-assign]
        return file


def test_a_task_is_made_while_others_are_under_way(tmp_path: Path) -> None:
    work, storage = Work(tmp_path), Halting()

    def made() -> Iterator[Task]:
        yield from (of_one_file(work.task(n)) for n in range(2))
        storage.go.set()
        yield of_one_file(work.task(2))

    assert len(list(LocalExecutor(work.settings(), workers=2, storage=storage).run(made()))) == 3


def test_what_is_whole_is_told_though_the_next_cannot_begin(tmp_path: Path) -> None:
    """Else it would be made again when the job is resumed."""
    work, storage = Work(tmp_path), Halting("rank_2")
    storage.go.set()
    told = LocalExecutor(work.settings(), storage=storage).run(of_one_file(work.task(n)) for n in range(3))
    assert [result.path for result in next(told)] == [work.name(0, 0)]
    with pytest.raises(StorageError, match="no space"):
        next(told)


class InOrderDisk(Disk):
    front_to_back = True


def copied_and_computed(work: Work) -> Task:
    """One file: the numbers as they are, and after them the same as larger ones."""
    numbers = Assembly("float32", FULL.shape, (Piece(0, Box.whole(FULL.shape), (Extent(len(HEAD), FULL.nbytes),)),))
    moves, at = [], len(HEAD)
    for name, dtype, nbytes in (("copied", "float32", FULL.nbytes), ("computed", "float64", 2 * FULL.nbytes)):
        target = Piece(0, Box.whole(FULL.shape), (Extent(at, nbytes),))
        moves.append(Move(name, numbers, dtype, (target,)))
        at += nbytes
    return replace(work.task(0), files=(TaskFile("out", at, ((0, HEAD),)),), moves=tuple(moves))


def test_one_thread_computes_while_another_copies(tmp_path: Path) -> None:
    """Two that did the same would wait for the file that they write to, which the kernel gives one at a time."""
    work = Work(tmp_path)
    copied_end = len(HEAD) + FULL.nbytes
    meeting = Meeting(("copied", "computed"), lambda _, offset: "copied" if offset < copied_end else "computed")
    list(LocalExecutor(work.settings(), workers=2, storage=meeting).run([copied_and_computed(work)]))
    numbers = FULL.view("float32")
    wanted = HEAD + numbers.tobytes() + numbers.astype("float64").tobytes()
    assert (work.out / "out").read_bytes() == wanted


def test_what_has_to_come_in_order_is_not_parted(tmp_path: Path) -> None:
    work = Work(tmp_path)
    (lots,) = TaskRun(copied_and_computed(work), InOrderDisk(), work.settings(), lambda _: None).lots()
    names = [mover.blocks.move.name for lot in lots for span in lot for mover in span.movers]
    assert names == ["copied"] * names.count("copied") + ["computed"] * names.count("computed")
