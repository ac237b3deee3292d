"""New files that take their bytes front to back only, as uploads do, while many threads make them."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import xxhash

from reshard.errors import RunError
from reshard.moving.checksums import CrcSums
from reshard.moving.mover import Span, parts_of
from reshard.planning.blocks import Access
from reshard.planning.plan import Move, Run, TaskFile
from reshard.storage.storage import NewFile

_RUN_NBYTES = 64 << 20
_LOOK_S = 0.2


def in_file_order(moves: tuple[Move, ...]) -> tuple[Move, ...]:
    """The moves in such an order that one after the other would write every file front to back."""
    places: dict[int, list[tuple[int, int]]] = {}
    for number, move in enumerate(moves):
        for piece in move.targets:
            if piece.box.size:
                places.setdefault(piece.file, []).append((piece.extents[0].offset, number))
    order: TopologicalSorter[int] = TopologicalSorter(dict.fromkeys(range(len(moves)), ()))
    for found in places.values():
        found.sort()
        for (_, before), (_, after) in pairwise(found):
            order.add(after, before)
    try:
        return tuple(moves[number] for number in order.static_order())
    except CycleError as error:
        raise RunError(f"files of one group hold their tensors in contrary orders: {error}") from None


class Turns:
    """Lets bytes into a new file in their order: who comes early waits. Hashes what passes.

    Nobody waits for ever: of work that is handed out in file order, what is furthest behind never waits. Header
    pieces are written when those before them are.
    """

    def __init__(self, file: TaskFile, new: NewFile, *, checksum: bool) -> None:
        self._path = file.path
        self._new = new
        self._header = sorted(file.header, reverse=True)
        self._checksum = checksum
        self._sums = CrcSums(file.checksums) if file.checksums else None
        self._at = 0
        self._began = 0
        self._digest = xxhash.xxh3_128()
        self._turn = threading.Condition()
        self.runs: list[Run] = []
        with self._turn:
            self._write_header()

    def put(self, offset: int, data: memoryview, stopped: threading.Event) -> None:
        """Write the bytes when it is their turn. Raises RunError when ``stopped`` is set before."""
        with self._turn:
            while self._at != offset:
                if stopped.is_set():
                    raise RunError("stopped", self._path)
                self._turn.wait(_LOOK_S)
            self._write(data)
            if self._at - self._began >= _RUN_NBYTES:
                self._end_run()
            self._write_header()
            self._turn.notify_all()

    def finish(self) -> None:
        """Note the last run."""
        with self._turn:
            self._end_run()

    def _write(self, data: memoryview) -> None:
        self._new.write(self._at, data)
        if self._checksum:
            self._digest.update(data)
        if self._sums:
            self._sums.add(self._at, len(data), zlib.crc32(data))
        self._at += len(data)

    def _write_header(self) -> None:
        while self._header and self._header[-1][0] == self._at:
            self._end_run()
            offset, piece = self._header.pop()
            self._write(memoryview(self._sums.stated(offset, piece) if self._sums else piece))
            self._end_run()

    def _end_run(self) -> None:
        if self._at > self._began:
            digest = self._digest.hexdigest() if self._checksum else ""
            self.runs.append(Run(self._began, self._at - self._began, digest))
            self._began = self._at
            self._digest.reset()


class InOrder:
    """The new files of a task, as uploads are: a lot is a block, so that many threads read for what is written next."""

    def __init__(
        self, files: Sequence[TaskFile], new: Sequence[NewFile], on_bytes: Callable[[int], None], *, checksum: bool
    ) -> None:
        self._turns = [Turns(file, one, checksum=checksum) for file, one in zip(files, new, strict=True)]
        self._on_bytes = on_bytes

    def ordered(self, moves: tuple[Move, ...], block_nbytes: int) -> Iterable[tuple[Move, ...]]:
        return ((move,) for move in in_file_order(moves))

    def lot_nbytes(self, fair_nbytes: int, block_nbytes: int) -> int:
        return block_nbytes

    def carry_out(self, lot: list[Span], stopped: threading.Event) -> None:
        """Several blocks are all read before the first waits for its turn: else each would be read in its turn only."""
        blocks = [(mover, n) for span in lot for mover in span.movers for n in range(span.start, span.stop)]
        if len(blocks) == 1:
            mover, number = blocks[0]
            mover.run((number,), lambda access, data: self._put(access, data, stopped))
            return
        held: list[tuple[Access, bytes]] = []
        for mover, number in blocks:
            if stopped.is_set():
                return
            mover.run((number,), lambda access, data: held.append((access, bytes(data))))
        for access, data in held:
            self._put(access, memoryview(data), stopped)

    def _put(self, access: Access, data: memoryview, stopped: threading.Event) -> None:
        for offset, part in parts_of(access.ranges, data):
            self._turns[access.file].put(offset, part, stopped)
        self._on_bytes(len(data))

    def finish(self, number: int) -> list[Run]:
        self._turns[number].finish()
        return self._turns[number].runs
