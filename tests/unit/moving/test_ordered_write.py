from __future__ import annotations

import threading
import zlib
from random import Random

import pytest
import xxhash

from reshard.errors import RunError
from reshard.index import Checksum, Extent
from reshard.layout.box import Box
from reshard.moving.ordered_write import Turns, in_file_order
from reshard.planning.plan import FileResult, Move, TaskFile, check_runs
from reshard.planning.steps import Assembly, Piece


class Kept:
    """A new file in memory that takes bytes front to back only."""

    def __init__(self) -> None:
        self.content = b""

    def write(self, offset: int, data: memoryview) -> None:
        assert offset == len(self.content)
        self.content += bytes(data)

    def commit(self) -> None:
        raise AssertionError

    def abandon(self) -> None:
        raise AssertionError


def move(name: str, *places: tuple[int, int, int]) -> Move:
    """A tensor of bytes at (file, offset, size)."""
    targets = tuple(Piece(file, Box((0,), (size,)), (Extent(offset, size),)) for file, offset, size in places)
    return Move(name, Assembly("uint8", (10,), ()), "uint8", targets)


def names(*moves: Move) -> list[str]:
    return [m.name for m in in_file_order(moves)]


def test_a_tensor_that_only_the_second_file_has_comes_where_that_file_needs_it() -> None:
    a, c, b = move("a", (0, 0, 10), (1, 0, 10)), move("c", (0, 10, 10), (1, 20, 10)), move("b", (1, 10, 10))
    assert names(a, c, b) == ["a", "b", "c"]


def test_empty_pieces_have_no_place() -> None:
    a, b = move("a", (0, 0, 0), (1, 5, 5)), move("b", (0, 0, 5), (1, 0, 5))
    assert names(a, b) == ["b", "a"]


def test_files_of_contrary_orders_are_refused() -> None:
    with pytest.raises(RunError, match="contrary orders"):
        in_file_order((move("a", (0, 0, 5), (1, 5, 5)), move("b", (0, 5, 5), (1, 0, 5))))


@pytest.mark.parametrize("checksum", [True, False])
def test_bytes_from_many_threads_come_in_order_and_are_hashed(checksum: bool) -> None:
    content = Random(3).randbytes(3000)
    header = ((0, content[:10]), (1000, content[1000:1030]), (1030, content[1030:1040]), (2990, bytes(17)))
    pieces = [(10, 500), (500, 1000), (1040, 1041), (1041, 2500), (2500, 2990)]
    places = (Checksum(Extent(0, 1040), (2990,)), Checksum(Extent(0, 2990), (2994, 3003), big_endian=True))
    content = content[:2990] + zlib.crc32(content[:1040]).to_bytes(4, "little") + bytes(13)
    sums = zlib.crc32(content[:2990]).to_bytes(4, "big")
    wanted = content[:2994] + sums + content[2998:3003] + sums
    kept, stopped = Kept(), threading.Event()
    turns = Turns(TaskFile("f", 3007, header, places), kept, checksum=checksum)
    threads = [
        threading.Thread(target=turns.put, args=(start, memoryview(content)[start:stop], stopped))
        for start, stop in reversed(pieces)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    turns.finish()
    assert kept.content == wanted
    check_runs(FileResult("f", 3007, tuple(turns.runs)))
    for run in turns.runs:
        digest = xxhash.xxh3_128_hexdigest(kept.content[run.offset : run.offset + run.nbytes])
        assert run.xxh3 == (digest if checksum else "")
    assert any(run.offset == 1030 and run.nbytes == 10 for run in turns.runs)  # header pieces have runs of their own


def test_who_waits_for_bytes_that_never_come_hears_that_all_is_over() -> None:
    turns = Turns(TaskFile("f", 20, ()), Kept(), checksum=True)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(RunError, match="stopped"):
        turns.put(10, memoryview(bytes(10)), stopped)
