"""Tensors that are parts of one: its bytes are read once for all of them."""

from __future__ import annotations

import threading
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from making import array
from reshard.index import Extent
from reshard.layout.box import Box, ordered
from reshard.moving.task import Settings, TaskRun
from reshard.planning.plan import Move, SourceFile, Task, TaskFile
from reshard.planning.steps import Assembly, Piece
from reshard.storage.disk import Disk, DiskFile

ROWS, PARTS, WIDTH = 32, 2, 8
NBYTES = ROWS * PARTS * WIDTH * 4
PART_NBYTES = NBYTES // PARTS


def part(number: int, order: tuple[int, ...]) -> Move:
    """One of the parts, in a file of its own, its dims as in ``order`` of [row, part, column]."""
    back = tuple(order.index(dim) for dim in range(3))
    outer = ordered(Box((0, -number, 0), (ROWS, PARTS - number, WIDTH)), order)
    whole = ordered(Box((0, 0, 0), (ROWS, 1, WIDTH)), order)
    turned = back if order != (0, 1, 2) else ()
    piece = Piece(0, whole, (Extent(0, NBYTES),), outer, turned)
    target = Piece(number, whole, (Extent(0, PART_NBYTES),))
    return Move(f"part.{number}", Assembly("float32", whole.shape, (piece,)), "float32", (target,))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (1, 0, 2)])
@pytest.mark.parametrize("block_nbytes", [256, 1000, NBYTES, 1 << 20])
@pytest.mark.parametrize("strip_nbytes", [60, 1 << 20])
def test_parts_of_one_tensor(
    order: tuple[int, ...], block_nbytes: int, strip_nbytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However what is turned is read in strips."""
    monkeypatch.setattr("reshard.planning.blocks._STRIP_NBYTES", strip_nbytes)
    full = array((ROWS, PARTS, WIDTH), "float32")
    source = tmp_path / "in"
    source.write_bytes(full.tobytes())
    (tmp_path / "out").mkdir()
    files = tuple(TaskFile(f"{n}", PART_NBYTES, (), ()) for n in range(PARTS))
    sources = (SourceFile(str(source), NBYTES, source.stat().st_mtime_ns),)
    task = Task(0, sources, files, tuple(part(n, order) for n in range(PARTS)))
    read: list[int] = []
    plain = DiskFile.read_into

    def counting(self: DiskFile, offset: int, buffer: memoryview) -> None:
        read.append(len(buffer))
        plain(self, offset, buffer)

    with patch.object(DiskFile, "read_into", counting):
        run = TaskRun(task, Disk(), Settings(str(tmp_path / "out"), block_nbytes), lambda _: None)
        for lot in run.lots():
            run.carry_out(lot, threading.Event())
        results = run.commit()
    for number in range(PARTS):
        wanted = np.ascontiguousarray(full[:, number : number + 1].transpose(order))
        assert (tmp_path / "out" / str(number)).read_bytes() == wanted.tobytes()
    assert sum(result.read_nbytes for result in results) == NBYTES
    if order == (0, 1, 2) or block_nbytes >= NBYTES:  # a strip of what is turned lies apart
        assert sum(read) == NBYTES
