"""New files that take their bytes in any order: each thread writes its own where they belong, and hashes them."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Sequence

import xxhash
from msgspec import Struct

from reshard.moving.checksums import Sums
from reshard.moving.mover import Span, parts_of
from reshard.planning.blocks import Access
from reshard.planning.plan import Move, Run, TaskFile
from reshard.storage.storage import NewFile

_LOT_NBYTES = 64 << 20


class AnyOrder:
    """The new files of a task."""

    def __init__(
        self, files: Sequence[TaskFile], new: Sequence[NewFile], on_bytes: Callable[[int], None], *, checksum: bool
    ) -> None:
        self.checksum = checksum
        self._files = files
        self._new = new
        self._on_bytes = on_bytes
        self._runs: list[list[Run]] = [[] for _ in files]
        self._sums = {number: Sums(file.checksums) for number, file in enumerate(files) if file.checksums}
        self._lock = threading.Lock()

    def ordered(self, moves: tuple[Move, ...]) -> tuple[Move, ...]:
        return moves

    def lot_nbytes(self, fair_nbytes: int, block_nbytes: int) -> int:
        return min(max(fair_nbytes, block_nbytes), _LOT_NBYTES)

    def write_headers(self) -> None:
        for number, file in enumerate(self._files):
            self._write(number, [piece for piece in file.header if not self._waits(number, piece)])

    def carry_out(self, lot: list[Span], stopped: threading.Event) -> None:
        for span in lot:
            sink = _Sink(self)
            for number in range(span.start, span.stop):
                if stopped.is_set():
                    return
                span.mover.run((number,), sink)
            sink.close()

    def finish(self, number: int) -> list[Run]:
        """Writes the header pieces that state sums of all that came."""
        self._write(number, [piece for piece in self._files[number].header if self._waits(number, piece)])
        return self._runs[number]

    def put(self, file: int, offset: int, data: memoryview) -> None:
        self._new[file].write(offset, data)
        self._on_bytes(len(data))

    def held(self, file: int, start: int, stop: int) -> None:
        """Bytes that a file has from the beginning, and of which no hash is wanted."""
        self.record(file, Run(start, stop - start, ""), 0)
        self._on_bytes(stop - start)

    def sums(self, file: int) -> bool:
        """Whether the file states CRC-32 sums of what is written."""
        return file in self._sums

    def record(self, file: int, run: Run, crc: int) -> None:
        """Note what was written; its CRC-32 counts where the file states any."""
        with self._lock:
            self._runs[file].append(run)
            if file in self._sums:
                self._sums[file].add(run.offset, run.nbytes, crc)

    def _waits(self, file: int, piece: tuple[int, bytes]) -> bool:
        """Whether a header piece states the CRC-32 of what has to be written first."""
        return file in self._sums and self._sums[file].awaited(piece[0], len(piece[1]))

    def _write(self, file: int, pieces: Iterable[tuple[int, bytes]]) -> None:
        """What is no tensor's."""
        sums = self._sums.get(file)
        for offset, piece in pieces:
            content = sums.stated(offset, piece) if sums else piece
            self._new[file].write(offset, memoryview(content))
            run = Run(offset, len(content), xxhash.xxh3_128_hexdigest(content))
            self.record(file, run, zlib.crc32(content) if sums else 0)


class _Open(Struct):
    """A run under way."""

    file: int
    offset: int
    end: int
    digest: xxhash.xxh3_128
    crc: int = 0


class _Sink:
    """Writes what it is given; bytes that follow one another in a file make one run with one hash."""

    def __init__(self, writer: AnyOrder) -> None:
        self._writer = writer
        self._open: dict[int, _Open] = {}

    def __call__(self, access: Access, data: memoryview) -> None:
        for offset, part in parts_of(access, data):
            self._writer.put(access.file, offset, part)
            self._add(access.piece, access.file, offset, part)

    def _add(self, piece: int, file: int, offset: int, data: memoryview) -> None:
        known = self._open.get(piece)
        if known is not None and known.end != offset:
            self._close(known)
            known = None
        if known is None:
            known = self._open[piece] = _Open(file, offset, offset, xxhash.xxh3_128())
        if self._writer.checksum:
            known.digest.update(data)
        if self._writer.sums(file):
            known.crc = zlib.crc32(data, known.crc)
        known.end += len(data)

    def _close(self, known: _Open) -> None:
        digest = known.digest.hexdigest() if self._writer.checksum else ""
        self._writer.record(known.file, Run(known.offset, known.end - known.offset, digest), known.crc)

    def close(self) -> None:
        for known in self._open.values():
            self._close(known)
