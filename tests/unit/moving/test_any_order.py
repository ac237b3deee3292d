"""Small parts of files that take their bytes in any order: few are kept, and those side by side are one write."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest

from reshard.index import Extent
from reshard.layout.box import Box
from reshard.moving.any_order import AnyOrder, _Sink
from reshard.moving.task import Settings, TaskRun
from reshard.planning.blocks import Access
from reshard.planning.plan import Move, SourceFile, Task, TaskFile
from reshard.planning.steps import Assembly, Piece
from reshard.storage.disk import Disk, DiskFile, DiskNewFile

COUNT = 48


class Counted:
    """A new file that counts what is written to it."""

    shared: Sequence[tuple[int, int]] = ()

    def __init__(self) -> None:
        self.writes: list[int] = []

    def write(self, offset: int, data: memoryview) -> None:
        self.writes.append(len(data))

    def commit(self) -> None:
        raise AssertionError

    def abandon(self) -> None:
        raise AssertionError


def test_of_parts_of_two_bytes_few_are_kept() -> None:
    """What Python takes for each part is a hundred times what it holds."""
    count, new = 40_000, Counted()
    sink = _Sink(AnyOrder([TaskFile("a", 4 * count, ())], [new], lambda _: None, checksum=True))
    ranges = tuple(Extent(4 * number, 2) for number in range(count))
    sink(Access(0, 0, Box((0,), (count,)), ranges), memoryview(bytes(2 * count)))
    assert count - len(new.writes) < 20_000
    sink.close()
    assert new.writes == [2] * count


def large_and_small(tmp_path: Path) -> tuple[Task, bytes]:
    """Two kinds of tensors that take turns in the source and in the target: 300 and 100 bytes."""
    content = bytes(range(200)) * (2 * COUNT)
    source = tmp_path / "in"
    source.write_bytes(content)

    def moved(first: int, nbytes: int) -> Move:
        box = Box((0, 0), (COUNT, nbytes))
        extents = tuple(Extent(first + 400 * number, nbytes) for number in range(COUNT))
        return Move("w", Assembly("uint8", box.shape, (Piece(0, box, extents),)), "uint8", (Piece(0, box, extents),))

    sources = (SourceFile(str(source), len(content), source.stat().st_mtime_ns),)
    return Task(0, sources, (TaskFile("out", len(content), ()),), (moved(0, 300), moved(300, 100))), content


def counted(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, sizes: list[int]) -> None:
    """Note how many bytes each call of a method moves."""
    plain = getattr(kind, name)

    def counting(self: object, offset: int, data: memoryview) -> None:
        sizes.append(len(data))
        plain(self, offset, data)

    monkeypatch.setattr(kind, name, counting)


@pytest.mark.parametrize(
    ("block_nbytes", "many", "reads_and_writes"),
    [
        (1 << 20, 2 * COUNT, (1, 1)),
        (400 * COUNT, 2 * COUNT, (1, 1)),
        (300 * COUNT, 2 * COUNT, (2, 1)),
        (200 * COUNT, 2 * COUNT, (3, 2 * COUNT)),
        (1 << 20, 2 * COUNT + 1, (2, 1)),
    ],
    ids=["large blocks", "blocks of both", "blocks of the larger kind", "smaller blocks", "few parts"],
)
def test_many_kinds_that_take_turns_in_a_file_are_read_and_written_at_once(
    block_nbytes: int,
    many: int,
    reads_and_writes: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However lots end; where blocks are smaller than what is moved each kind reads and writes its own."""
    monkeypatch.setattr("reshard.moving.any_order._MANY_PARTS", many)
    task, content = large_and_small(tmp_path)
    reads: list[int] = []
    writes: list[int] = []
    counted(monkeypatch, DiskFile, "read_into", reads)
    counted(monkeypatch, DiskNewFile, "write", writes)
    monkeypatch.setattr("reshard.moving.any_order._LOT_NBYTES", 1)
    run = TaskRun(task, Disk(), Settings(str(tmp_path), block_nbytes), lambda _: None)
    for lot in chain(*run.lots()):
        run.carry_out(lot, threading.Event())
    run.commit()
    assert (tmp_path / "out").read_bytes() == content
    assert (len(reads), len(writes)) == reads_and_writes
