"""The bill of a plan: what it will read, write and need, before anything is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from reshard.dtypes import ITEMSIZE
from reshard.planning.blocks import Blocks
from reshard.planning.plan import Move, Plan, Task
from reshard.planning.tasks import tasks

_BASE_MEMORY_NBYTES = 96 << 20
BUFFERS_A_WORKER = 3
"""A block being put together, a read that is wider or strided, and a write that is strided or cast."""


@dataclass(frozen=True, slots=True)
class Bill:
    """Numbers of a plan; bytes are of tensors where not said otherwise.

    Attributes:
        needed_nbytes: bytes of source tensors that the target depends on, each counted once.
        read_nbytes: bytes that will be read; more than needed where a group of files takes a narrow part of long rows.
        written_nbytes: bytes that will be written, headers included; the disk space that the target takes.
        linked_files: files that share the bytes of an equal one (``--replicas link``).
        largest_file_nbytes, smallest_file_nbytes: the balance of the target.
        memory_nbytes: an upper bound of the buffers and the program.
    """

    source_files: int
    source_nbytes: int
    target_files: int
    tensors: int
    needed_nbytes: int
    read_nbytes: int
    written_nbytes: int
    linked_files: int
    largest_file_nbytes: int
    smallest_file_nbytes: int
    tasks: int
    workers: int
    memory_nbytes: int
    dropped: dict[str, int]
    absent: dict[str, int]
    warnings: tuple[str, ...]


def make_bill(plan: Plan, workers: int, block_nbytes: int, *, link_replicas: bool = False) -> Bill:
    sizes = [plan.forms[f.form].nbytes for f in plan.files]
    groups = 0
    read = 0
    linked = linked_nbytes = 0
    for task in tasks(plan, link_replicas=link_replicas):
        groups += 1
        linked += sum(len(f.twins) for f in task.files)
        linked_nbytes += sum(len(f.twins) * f.nbytes for f in task.files)
        read += task_read_nbytes(task, block_nbytes)
    left: dict[str, dict[str, int]] = {"dropped": {}, "absent": {}}
    for out in plan.left_out:
        left[out.fate][out.reason] = len(out.names)
    return Bill(
        source_files=len(plan.sources),
        source_nbytes=sum(s.nbytes for s in plan.sources),
        target_files=len(plan.files),
        tensors=len(plan.tensors),
        needed_nbytes=sum(prod(t.spec.shape) * ITEMSIZE[t.source_dtype] for t in plan.tensors),
        read_nbytes=read,
        written_nbytes=plan.nbytes - linked_nbytes,
        linked_files=linked,
        largest_file_nbytes=max(sizes, default=0),
        smallest_file_nbytes=min(sizes, default=0),
        tasks=groups,
        workers=workers,
        memory_nbytes=_BASE_MEMORY_NBYTES + workers * BUFFERS_A_WORKER * block_nbytes,
        dropped=left["dropped"],
        absent=left["absent"],
        warnings=plan.warnings,
    )


def task_read_nbytes(task: Task, block_nbytes: int) -> int:
    return sum(n for move in task.moves for n in _reads(move, block_nbytes))


def _reads(move: Move, block_nbytes: int) -> Iterator[int]:
    """Bytes read from each source piece: its rows within the hull of the targets, as wide as they lie together in
    the file.
    """
    blocks = Blocks(move, block_nbytes)
    for piece in move.sources:
        part = (piece.box & blocks.hull).shape
        wide = (*part[: blocks.split + 1], *piece.box.shape[blocks.split + 1 :])
        yield prod(wide) * ITEMSIZE[move.source_dtype]
