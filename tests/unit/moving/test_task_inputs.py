"""What lies close together in a file is read at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from reshard.index import Coding, Extent
from reshard.layout.box import Box
from reshard.moving.task_inputs import Sources, _read_parts
from reshard.planning.blocks import Access, EvenRuns
from reshard.planning.plan import SourceFile
from reshard.storage.disk import Disk

CONTENT = bytes(n % 251 for n in range(20_000))


class Counting:
    """A file in memory that notes what is asked of it."""

    nbytes = len(CONTENT)
    mtime_ns = 0

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def read(self, offset: int, nbytes: int) -> bytes:
        self.asked.append((offset, nbytes))
        return CONTENT[offset : offset + nbytes]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read(offset, len(buffer))

    def changed(self) -> bool:
        return False

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("ranges", "asked"),
    [
        ([(0, 10), (10, 10), (20, 5)], [(0, 25)]),
        ([(20, 5), (0, 10), (10, 10)], [(0, 25)]),
        ([(0, 10), (90, 10)], [(0, 100)]),
        ([(0, 10), (111, 10)], [(0, 10), (111, 10)]),
        ([(0, 10), (5, 10)], [(0, 15)]),
        ([(0, 30), (5, 10), (60, 5)], [(0, 65)]),
        ([(7, 0), (7, 4)], [(7, 4)]),
        ([(3, 4)], [(3, 4)]),
        ([], []),
    ],
)
def test_reads(ranges: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    file = Counting()
    buffers = [bytearray(nbytes) for _, nbytes in ranges]
    parts = [(at, at + n, memoryview(b), None) for (at, n), b in zip(ranges, buffers, strict=True)]
    _read_parts(file, parts, 100)
    assert file.asked == asked
    assert buffers == [CONTENT[at : at + n] for at, n in ranges]


def test_numbers_that_lie_otherwise_are_decoded() -> None:
    out = memoryview(bytearray(8))
    _read_parts(Counting(), [(0, 4, out[:4], Coding(2)), (4, 8, out[4:], None)], 0)
    assert bytes(out) == bytes([1, 0, 3, 2, 4, 5, 6, 7])


def test_no_read_is_large() -> None:
    file = Counting()
    part = memoryview(bytearray(1))
    near = [(at << 16, (at << 16) + 1, part, None) for at in range(20)]
    file.read = lambda offset, nbytes: file.asked.append((offset, nbytes)) or bytes(nbytes)  # type: ignore[method-assign]
    _read_parts(file, near, 1 << 16)
    assert len(file.asked) == 2
    assert all(nbytes <= 1 << 20 for _, nbytes in file.asked)


@pytest.mark.parametrize("remote", [False, True])
def test_rows_are_read_wherever_the_file_is(remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    monkeypatch.setattr(Disk, "remote", remote)
    sources = Sources((SourceFile(str(path), len(CONTENT), path.stat().st_mtime_ns),))
    out = memoryview(bytearray(3 * 5 + 4 + 2 * 7))
    rows = (EvenRuns(100, 5, 9000, 3), EvenRuns(7000, 7, 8, 2))
    sources.read_into(Access(0, 0, Box((), ()), (Extent(3, 4),), rows), out)
    starts = [(3, 4), (100, 5), (9100, 5), (18_100, 5), (7000, 7), (7008, 7)]
    assert bytes(out) == b"".join(CONTENT[at : at + n] for at, n in starts)
    sources.close()
