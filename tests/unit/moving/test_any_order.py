"""Small parts of files that take their bytes in any order: few are kept, and those side by side are one write."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest

from reshard.index import Checksum, Extent
from reshard.layout.box import Box
from reshard.moving.any_order import AnyOrder, _Sink
from reshard.moving.task import Settings, TaskRun
from reshard.planning.blocks import Access
from reshard.planning.plan import Move, SourceFile, Task, TaskFile
from reshard.planning.steps import Assembly, Piece
from reshard.storage.disk import Disk, DiskFile, DiskNewFile

COUNT = 48
PLACES = 2 * (COUNT - 1)
"""Of two kinds, besides one for each."""


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
    ("block_nbytes", "many", "some", "reads_and_writes"),
    [
        (1 << 20, PLACES, PLACES, (1, 1)),
        (400 * COUNT, PLACES, 0, (1, 1)),
        (300 * COUNT, PLACES, 0, (2, 1)),
        (200 * COUNT, PLACES, 0, (3, 2 * COUNT)),
        (1 << 20, PLACES + 1, 0, (2, 1)),
        (1 << 20, PLACES, PLACES + 1, (2, 1)),
    ],
    ids=[
        "large blocks",
        "blocks of both",
        "blocks of the larger kind",
        "smaller blocks",
        "few parts",
        "few of a block",
    ],
)
def test_many_kinds_that_take_turns_in_a_file_are_read_and_written_at_once(
    block_nbytes: int,
    many: int,
    some: int,
    reads_and_writes: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However lots end; where blocks are smaller than what is moved each kind reads and writes its own."""
    monkeypatch.setattr("reshard.moving.any_order._MANY_PARTS", many)
    monkeypatch.setattr("reshard.moving.any_order._SOME_PARTS", some)
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


@pytest.mark.parametrize("together", [False, True], ids=["moves of one place", "one move of many"])
def test_bytes_of_many_places_go_one_by_one(together: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the ends of what files share do, by the thousand: there is nothing that one copy could take together."""
    monkeypatch.setattr("reshard.moving.any_order._MANY_PARTS", 1)
    monkeypatch.setattr("reshard.moving.any_order._SOME_PARTS", 1)
    monkeypatch.setattr("reshard.moving.interleaved.interleaved", None)
    (tmp_path / "in").write_bytes(bytes(range(COUNT)))
    there = (tmp_path / "in").stat()
    pieces = [Piece(0, Box((0,), (1,)), (Extent(number, 1),)) for number in range(COUNT)]
    moves = tuple(Move("w", Assembly("uint8", (1,), (piece,)), "uint8", (piece,)) for piece in pieces)
    sources = tuple(Piece(0, Box((2 * n,), (2 * n + 2,)), (Extent(2 * n, 2),)) for n in range(COUNT // 2))
    targets = Piece(0, Box((0,), (COUNT,)), tuple(piece.extents[0] for piece in sources))
    if together:
        moves = (Move("w", Assembly("uint8", (COUNT,), sources), "uint8", (targets,)),)
    source = SourceFile(str(tmp_path / "in"), there.st_size, there.st_mtime_ns)
    run = TaskRun(Task(0, (source,), (TaskFile("out", COUNT, ()),), moves), Disk(), Settings(str(tmp_path)), int)
    for lot in chain(*run.lots()):
        run.carry_out(lot, threading.Event())
    run.commit()
    assert (tmp_path / "out").read_bytes() == bytes(range(COUNT))


@pytest.mark.parametrize("block_nbytes", [1 << 20, 100 * COUNT, 100 * COUNT - 1])
@pytest.mark.parametrize("stated", [False, True], ids=["heads", "heads that state sums"])
def test_header_pieces_between_parts(
    block_nbytes: int, stated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written with what lies around them, where they state no sums; also of a move of several blocks."""
    monkeypatch.setattr("reshard.moving.any_order._MANY_PARTS", COUNT - 1)
    monkeypatch.setattr("reshard.moving.any_order._SOME_PARTS", 0)
    parts = [bytes([number]) * 100 for number in range(COUNT)]
    (tmp_path / "in").write_bytes(b"".join(b"%10d" % n + held for n, held in enumerate(parts)))
    heads = [(110 * number, b"head%6d" % number) for number in range(COUNT)]
    box, extents = Box((0, 0), (COUNT, 100)), tuple(Extent(110 * number + 10, 100) for number in range(COUNT))
    move = Move("w", Assembly("uint8", box.shape, (Piece(0, box, extents),)), "uint8", (Piece(0, box, extents),))
    sums = tuple(Checksum(each, (each.offset - 4,)) for each in extents) if stated else ()
    there = (tmp_path / "in").stat()
    source = SourceFile(str(tmp_path / "in"), there.st_size, there.st_mtime_ns)
    task = Task(0, (source,), (TaskFile("out", 110 * COUNT, tuple(heads), sums),), (move,))
    told: list[int] = []
    writes: list[int] = []
    counted(monkeypatch, DiskNewFile, "write", writes)
    run = TaskRun(task, Disk(), Settings(str(tmp_path), block_nbytes), told.append)
    for lot in chain(*run.lots()):
        run.carry_out(lot, threading.Event())
    run.commit()
    written = [
        (head[:6] + zlib.crc32(held).to_bytes(4, "little") if stated else head) + held
        for (_, head), held in zip(heads, parts, strict=True)
    ]
    assert (tmp_path / "out").read_bytes() == b"".join(written)
    assert sum(told) == 100 * COUNT
    if not stated and block_nbytes >= 100 * COUNT:
        assert writes == [10, 110 * COUNT - 10]


def test_a_gap_that_a_header_piece_does_not_fill() -> None:
    writer = AnyOrder([TaskFile("a", 100, ((10, b"12345"),))], [Counted()], lambda _: None, checksum=True)
    assert writer.fills_gaps(0, 2, [(8, 13)])
    assert not writer.fills_gaps(0, 2, [(7, 13)])
    assert not writer.fills_gaps(0, 2, [(8, 12)])
    assert not writer.fills_gaps(0, 2, [(8, 13), (20, 25)])


def test_what_is_stopped_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reshard.moving.any_order._MANY_PARTS", 0)
    writes: list[int] = []
    counted(monkeypatch, DiskNewFile, "write", writes)
    run = TaskRun(large_and_small(tmp_path)[0], Disk(), Settings(str(tmp_path)), lambda _: None)
    stopped = threading.Event()
    stopped.set()
    for lot in chain(*run.lots()):
        run.carry_out(lot, stopped)
    run.abandon()
    assert writes == []
