"""Tensors that are parts of one: its bytes are read once for all of them."""

from __future__ import annotations

import threading
from itertools import chain
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from making import array
from reshard.index import Extent
from reshard.layout.box import Box, ordered
from reshard.moving.task import Settings, TaskRun
from reshard.planning.bill import reads
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


class FrontToBack(Disk):
    """A disk whose files take their bytes as uploads do."""

    front_to_back = True


def carried_out(tmp_path: Path, order: tuple[int, ...], block_nbytes: int, storage: Disk) -> tuple[int, int]:
    """Make the parts; gives the bytes that were read, and those that are told."""
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
        run = TaskRun(task, storage, Settings(str(tmp_path / "out"), block_nbytes), lambda _: None)
        for lot in chain(*run.lots()):
            run.carry_out(lot, threading.Event())
        results = run.commit()
    for number in range(PARTS):
        wanted = np.ascontiguousarray(full[:, number : number + 1].transpose(order))
        assert (tmp_path / "out" / str(number)).read_bytes() == wanted.tobytes()
    return sum(read), sum(result.read_nbytes for result in results)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (1, 0, 2)])
@pytest.mark.parametrize("block_nbytes", [256, 1000, NBYTES, 1 << 20])
@pytest.mark.parametrize("strip_nbytes", [60, 1 << 20])
def test_parts_of_one_tensor(
    order: tuple[int, ...], block_nbytes: int, strip_nbytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However what is turned is read in strips."""
    monkeypatch.setattr("reshard.planning.blocks._STRIP_NBYTES", strip_nbytes)
    assert carried_out(tmp_path, order, block_nbytes, Disk())[1] == NBYTES


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (1, 0, 2)])
@pytest.mark.parametrize("block_nbytes", [256, 1000, NBYTES])
def test_where_each_part_is_read_for_the_bill_says_so(
    order: tuple[int, ...], block_nbytes: int, tmp_path: Path
) -> None:
    read, told = carried_out(tmp_path, order, block_nbytes, FrontToBack())
    parts = [part(number, order) for number in range(PARTS)]
    assert read == told <= sum(sum(reads(move, block_nbytes, front_to_back=True)) for move in parts)
    assert sum(sum(reads(move, block_nbytes)) for move in parts) == NBYTES
    if block_nbytes == 256 and order == (0, 1, 2):
        assert told == PARTS * NBYTES
