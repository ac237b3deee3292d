"""New files that take their bytes in any order: each thread writes its own where they belong, and hashes them."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from operator import itemgetter
from typing import TYPE_CHECKING

import xxhash
from msgspec import Struct

from reshard.errors import RunError
from reshard.index import Extent
from reshard.moving.checksums import CrcSums
from reshard.moving.mover import Span, parts_of
from reshard.planning.blocks import Access, siblings
from reshard.planning.plan import Move, Run, TaskFile
from reshard.storage.storage import NewFile

if TYPE_CHECKING:
    from reshard.moving.interleaved import Gaps

_LOT_NBYTES = 64 << 20
_SMALL_NBYTES = 64 << 10
_KEPT_NBYTES = 8 << 20
_PARTS = 256  # looked at together
_MANY_PARTS = 4096  # of a task: fewer go one by one in the time that NumPy takes to come
_SOME_PARTS = 64  # of a block
_PART_NBYTES = 512  # what Python takes for each, when they are put together
_Content = bytes | memoryview


class AnyOrder:
    """The new files of a task. A header piece is written with the bytes after it, save where it states sums of others.

    ``nbytes`` that it is told of are those of tensors.
    """

    def __init__(
        self, files: Sequence[TaskFile], new: Sequence[NewFile], on_bytes: Callable[[int], None], *, checksum: bool
    ) -> None:
        self.checksum = checksum
        self.on_bytes = on_bytes
        self._files = files
        self._new = new
        self._runs: list[list[Run]] = [[] for _ in files]
        self._sums = {number: CrcSums(file.checksums) for number, file in enumerate(files) if file.checksums}
        self._heads = [{offset + len(piece): (offset, piece) for offset, piece in file.header} for file in files]
        self._lock = threading.Lock()
        self.of_many_parts = False

    def ordered(self, moves: tuple[Move, ...], block_nbytes: int) -> Iterable[tuple[Move, ...]]:
        self.of_many_parts = _parts_of(moves) >= _MANY_PARTS
        return siblings(moves, block_nbytes)

    def lot_nbytes(self, fair_nbytes: int, block_nbytes: int) -> int:
        return min(max(fair_nbytes, block_nbytes), _LOT_NBYTES)

    def carry_out(self, lot: list[Span], stopped: threading.Event) -> None:
        sink = _Sink(self)
        for span in lot:
            if stopped.is_set():
                return
            if not sink.takes_together(span):
                for number, mover in product(range(span.start, span.stop), span.movers):
                    if stopped.is_set():
                        return
                    mover.run((number,), sink)
            sink.end_runs()
        sink.close()

    def finish(self, number: int) -> list[Run]:
        """Writes the header pieces that nothing came after, and at last those that state sums of all that came."""
        sums, left = self._sums.get(number), self._heads[number].values()
        for offset, piece in sorted(left, key=lambda head: self._waits(sums, head)):
            content = sums.stated(offset, piece) if sums else piece
            self._new[number].write(offset, memoryview(content))
            run = Run(offset, len(content), xxhash.xxh3_128_hexdigest(content))
            self.record(number, run, zlib.crc32(content) if sums else 0)
        return self._runs[number]

    @staticmethod
    def _waits(sums: CrcSums | None, head: tuple[int, bytes]) -> bool:
        """Whether a header piece states the CRC-32 of what has to be written first."""
        return sums is not None and sums.awaited(head[0], len(head[1]))

    def put(self, file: int, offset: int, data: memoryview) -> None:
        self._new[file].write(offset, data)

    def held(self, file: int, start: int, stop: int) -> None:
        """Bytes that a file has from the beginning, and of which no hash is wanted."""
        self.record(file, Run(start, stop - start, ""), 0)
        self.on_bytes(stop - start)

    def sums(self, file: int) -> bool:
        """Whether the file states CRC-32 sums of what is written."""
        return file in self._sums

    def heads(self, file: int, offsets: Iterable[int]) -> list[tuple[int, bytes]]:
        """The header pieces before bytes that are written at these offsets now, with where they begin; each once, and
        none of a file that states sums of single tensors.
        """
        waiting = self._heads[file]
        if file in self._sums or not waiting:
            return []
        return [waiting.pop(offset) for offset in offsets if offset in waiting]

    def fills_gaps(self, file: int, offset: int, gaps: Gaps) -> bool:
        """Whether a header piece waits for each gap of a stretch, and the file states no sums."""
        waiting, none = self._heads[file], (-1, b"")
        return not self.sums(file) and all(waiting.get(offset + b, none)[0] == offset + a for a, b in gaps)

    def record(self, file: int, run: Run, crc: int) -> None:
        """Note what was written; its CRC-32 counts where the file states any."""
        with self._lock:
            self._runs[file].append(run)
            if file in self._sums:
                self._sums[file].add(run.offset, run.nbytes, crc)


def _parts_of(moves: Iterable[Move]) -> int:
    """In how many places their targets lie, besides one for each: of what lies in one place nothing is saved, nor of
    rows that lie together nearly all.
    """
    places = [(move, sum([len(piece.extents) for piece in move.targets])) for move in moves]
    return sum([number - len(move.targets) for move, number in places if move.step.base.shape[:1] <= (number,)])


class _Open(Struct):
    """A run under way."""

    file: int
    offset: int
    end: int
    digest: xxhash.xxh3_128
    crc: int = 0


class _Sink:
    """Writes what it is given; bytes that follow one another in a file make one run with one hash.

    Small parts are kept for a while: those that lie side by side are written at once. What is kept counts with what it
    takes to say where it goes: of parts of a few bytes that is most.
    """

    def __init__(self, writer: AnyOrder) -> None:
        self._writer = writer
        self._open: dict[tuple[int, int], _Open] = {}  # by file, and where they end
        self._small: list[tuple[int, tuple[Extent, ...], bytes]] = []
        self._small_nbytes = 0

    def __call__(self, access: Access, data: memoryview) -> None:
        file, at, together = access.file, 0, not self._writer.sums(access.file)
        for first in range(0, len(access.ranges), _PARTS):
            some = access.ranges[first : first + _PARTS]
            nbytes = sum([extent.nbytes for extent in some])
            if together and nbytes <= _SMALL_NBYTES * len(some):
                self._keep(file, some, data[at : at + nbytes])
            else:
                for offset, part in parts_of(some, data[at : at + nbytes]):
                    self._add(file, offset, part)
            at += nbytes
        if at != len(data):
            raise RunError(f"{len(data)} bytes for a place of {at}")
        self._writer.on_bytes(len(data))

    def takes_together(self, span: Span) -> bool:
        """Whether all of a span's bytes went at once, where moves take turns in their files."""
        moves = [mover.blocks.move for mover in span.movers]
        if not self._writer.of_many_parts or _parts_of(moves) < _SOME_PARTS:
            return False
        if any(len(mover.blocks) > 1 for mover in span.movers):
            return False
        from reshard.moving.interleaved import interleaved

        found = interleaved(moves, span.movers[0].block_nbytes)
        if found is None or not all(self._writer.fills_gaps(file, *gaps) for file, gaps in found.gaps.items()):
            return False
        span.movers[0].run_interleaved(found, self._put_around)
        return True

    def _put_around(self, file: int, offset: int, data: memoryview, gaps: Gaps) -> None:
        """Write a stretch that has gaps for the header pieces of its file."""
        between = 0
        for at, head in self._writer.heads(file, [offset + end for _, end in gaps]):
            data[at - offset : at - offset + len(head)] = head
            between += len(head)
        self._add(file, offset, data)
        self._writer.on_bytes(len(data) - between)

    def _keep(self, file: int, ranges: tuple[Extent, ...], data: memoryview) -> None:
        self._small.append((file, ranges, bytes(data)))
        self._small_nbytes += len(data) + _PART_NBYTES * len(ranges)
        if self._small_nbytes > _KEPT_NBYTES:
            self._write_small()

    def _add(self, file: int, offset: int, data: memoryview) -> None:
        run = self._open.pop((file, offset), None)
        if run is None:
            heads = self._writer.heads(file, (offset,))
            start = heads[0][0] if heads else offset
            run = _Open(file, start, start, xxhash.xxh3_128())
            for _, head in heads:
                self._write(run, memoryview(head))
        self._write(run, data)
        self._open[file, run.end] = run

    def _write(self, run: _Open, data: memoryview) -> None:
        self._writer.put(run.file, run.end, data)
        if self._writer.checksum:
            run.digest.update(data)
        if self._writer.sums(run.file):
            run.crc = zlib.crc32(data, run.crc)
        run.end += len(data)

    def _write_small(self) -> None:
        by_file: dict[int, list[tuple[int, _Content]]] = {}
        for file, ranges, data in self._small:
            held, at = memoryview(data), 0
            parts = by_file.setdefault(file, [])
            for extent in ranges:  # hundreds of thousands: no call for each
                nbytes = extent.nbytes
                parts.append((extent.offset, held[at : at + nbytes]))
                at += nbytes
        for file, parts in by_file.items():
            parts += self._writer.heads(file, [offset for offset, _ in parts])
            parts.sort(key=itemgetter(0))
            run: list[_Content] = []
            start = end = -1
            for offset, part in parts:
                if offset != end:
                    self._write_run(file, start, run)
                    start, run = offset, []
                run.append(part)
                end = offset + len(part)
            self._write_run(file, start, run)
        self._small, self._small_nbytes = [], 0

    def _write_run(self, file: int, start: int, parts: Sequence[_Content]) -> None:
        if parts:
            run = _Open(file, start, start, xxhash.xxh3_128())
            self._write(run, memoryview(b"".join(parts)))
            self._close(run)

    def _close(self, known: _Open) -> None:
        digest = known.digest.hexdigest() if self._writer.checksum else ""
        self._writer.record(known.file, Run(known.offset, known.end - known.offset, digest), known.crc)

    def end_runs(self) -> None:
        for known in self._open.values():
            self._close(known)
        self._open = {}
        if self._small_nbytes > _KEPT_NBYTES // 2:  # before what comes next, which may lie among itself
            self._write_small()

    def close(self) -> None:
        self._write_small()
