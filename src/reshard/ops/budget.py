"""How many workers a conversion gets, and the memory of their blocks and of what is on its way to a store."""

from __future__ import annotations

from msgspec import Struct

from reshard.errors import UsageError
from reshard.moving.local import TASKS_AT_ONCE
from reshard.ops.options import Means
from reshard.planning.bill import BUFFERS_A_WORKER
from reshard.planning.blocks import turns
from reshard.planning.plan import Plan
from reshard.planning.tasks import MAX_FILES
from reshard.storage.machine import auto_workers
from reshard.storage.storages import storage_of

_UPLOAD_NBYTES = 512 << 20
_WORTH_A_REQUEST_NBYTES = 2 << 20
_RAY_THREADS = 2  # of a task; a node has one on each core
_RAY_REMOTE_THREADS = 8

_CONNECTION_NBYTES = 4 << 20
"""What a request that is being answered takes beside its block, as measured."""


class Budget(Struct, frozen=True):
    """What the carrying out of a plan may take: threads, and bytes.

    ``upload_nbytes`` are those of one task; ``others_nbytes`` all that is taken beside blocks; ``shared_nbytes`` of the
    target need no room on the disk.
    """

    workers: int
    block_nbytes: int
    max_files: int = MAX_FILES
    upload_nbytes: int = 0
    others_nbytes: int = 0
    shared_nbytes: int = 0


def budget_of(plan: Plan, dst: str, means: Means) -> Budget:
    """Half of what ``--max-memory`` leaves goes to parts. Raises UsageError where not one file could be uploaded."""
    paths = [dst, *(s.path for s in plan.sources[:1])]
    remote = any(storage_of(path).remote for path in paths)
    workers = _workers(paths, means, remote=remote)
    uploading = storage_of(dst).front_to_back
    if not remote:
        return Budget(workers, means.block_nbytes(workers, turned=turns(plan)))
    connections = workers * _CONNECTION_NBYTES
    if not uploading:
        return Budget(workers, _far_block(means, workers, connections), others_nbytes=connections)
    from reshard.storage.object_store import most_files, part_nbytes

    spare = means.spare_nbytes - connections
    uploads = min(_UPLOAD_NBYTES, spare // 2)
    largest = max((plan.forms[f.form].nbytes for f in plan.files), default=0)
    files = min(most_files(largest, uploads // TASKS_AT_ONCE), MAX_FILES)
    if files < 1:
        least = 2 * TASKS_AT_ONCE * part_nbytes(largest, 0)
        raise UsageError(
            f"--max-memory leaves {max(uploads, 0):,} bytes for uploads, which need {least:,}",
            dst,
            "give --max-memory more, or fewer --workers",
        )
    block = _far_block(means, workers, connections + uploads)
    return Budget(workers, block, files, uploads // TASKS_AT_ONCE, connections + uploads)


def _far_block(means: Means, workers: int, others_nbytes: int) -> int:
    """All workers share a line, and what is read first goes on only when it is whole: small blocks fill it sooner."""
    return min(means.block_nbytes(workers, others_nbytes), _WORTH_A_REQUEST_NBYTES)


def _workers(paths: list[str], means: Means, *, remote: bool) -> int:
    """The workers asked for, or what suits where source and target lie."""
    if means.workers:
        return means.workers
    suited = auto_workers(paths)
    if means.engine == "ray" and not means.nodes_local:
        suited = min(suited, _RAY_REMOTE_THREADS if remote else _RAY_THREADS)
    if remote:  # few large requests rather than many small ones, which cost as long
        each = BUFFERS_A_WORKER * _WORTH_A_REQUEST_NBYTES + _CONNECTION_NBYTES
        suited = max(2, min(suited, means.spare_nbytes // 2 // each))
    return suited
