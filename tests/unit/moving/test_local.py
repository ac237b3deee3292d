from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from reshard.errors import RunError
from reshard.moving.local import LocalExecutor
from reshard.planning.plan import Task
from reshard.storage.disk import Disk
from reshard.storage.storage import NewFile, SharedBytes
from reshard.testing.executors import HEAD, Work


class Meeting(Disk):
    """Data of one of two files is written when data of the other is, too."""

    def __init__(self) -> None:
        self._begun = {"rank_0": threading.Event(), "rank_1": threading.Event()}

    def create(
        self, path: str, nbytes: int, *, fsync: bool, buffer_nbytes: int = 0, share: Sequence[SharedBytes] = ()
    ) -> NewFile:
        file = super().create(path, nbytes, fsync=fsync)
        mine = Path(path).parent.name
        (other,) = self._begun.keys() - {mine}
        write = file.write

        def when_both(offset: int, data: memoryview) -> None:
            if offset >= len(HEAD):
                self._begun[mine].set()
                if not self._begun[other].wait(10):
                    raise RunError("the other file was not begun", path)
            write(offset, data)

        file.write = when_both  # type: ignore[method-assign]
        return file


def of_one_file(task: Task) -> Task:
    (move,) = task.moves
    return replace(task, files=task.files[:1], moves=(replace(move, targets=move.targets[:1]),))


def test_threads_do_not_wait_for_one_file_while_there_is_another(tmp_path: Path) -> None:
    work = Work(tmp_path)
    executor = LocalExecutor(work.settings(), workers=2, storage=Meeting())
    done = [r.path for results in executor.run(of_one_file(work.task(n)) for n in range(2)) for r in results]
    assert done == [work.name(0, 0), work.name(1, 0)]
    assert [(work.out / name).read_bytes() for name in done] == [work.wanted(n, 0) for n in range(2)]
