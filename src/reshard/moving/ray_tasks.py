"""Tasks of a plan as calls in a Ray cluster: an executor."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable

from msgspec import Struct

from reshard import waits
from reshard.errors import RunError
from reshard.moving.local import LocalExecutor
from reshard.moving.ray import Cluster, RemoteCall
from reshard.moving.task import OnBytes, Settings
from reshard.planning.plan import FileResult, Task
from reshard.storage.storage import join
from reshard.storage.storages import storage_of


class _Chore(Struct, frozen=True):
    """A task and how it is carried out."""

    task: Task
    settings: Settings
    threads: int


def _carry_out_task(chore: _Chore, on_bytes: OnBytes) -> list[FileResult]:
    executor = LocalExecutor(chore.settings, chore.threads, on_bytes, storage_of(chore.settings.folder))
    (results,) = executor.run([chore.task])
    return results


class RayExecutor(Struct, frozen=True):
    """Tasks anywhere in a cluster whose nodes all see the source and the target. Results come as tasks end.

    Raises RunError for a file that is written there and not seen here: the nodes do not share the target's disk.
    """

    settings: Settings
    cluster: Cluster
    threads: int
    on_bytes: OnBytes

    def run(self, tasks: Iterable[Task]) -> Generator[list[FileResult], None, None]:
        calls = (RemoteCall(i, _Chore(task, self.settings, self.threads)) for i, task in enumerate(tasks))
        for results in self.cluster.run(_carry_out_task, calls, self.on_bytes):
            for result in results:
                self._check_seen(result)
            yield results

    def _check_seen(self, result: FileResult) -> None:
        folder = self.settings.folder
        storage = storage_of(folder)
        path, patient_until_s = join(folder, result.path), time.monotonic() + waits.now.ray_seen_s
        while not storage.remote:
            there = storage.entry(path)
            if there is not None and there.nbytes == result.nbytes:
                return
            if time.monotonic() > patient_until_s:
                raise RunError(
                    "a worker wrote it, and it is not seen here",
                    path,
                    "DST must lie where all nodes see it; where nodes share no disk: --nodes-local MAP",
                )
            self.on_bytes(0)
            time.sleep(waits.now.ray_look_s)
