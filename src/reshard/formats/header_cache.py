"""Files whose headers are the same bytes at the same places: what was understood of one holds for the next."""

from __future__ import annotations

import threading
from collections import OrderedDict

from msgspec import Struct

from reshard.formats.base import ByteRanges
from reshard.index import Contents

Pieces = tuple[tuple[int, bytes], ...]
_TOGETHER_NBYTES = 16384  # what lies closer is read in one go


class _FileKind(Struct, frozen=True):
    """Ranges to read, and what has to lie in each."""

    spans: tuple[tuple[int, int, Pieces], ...]
    contents: Contents

    def fits(self, source: ByteRanges) -> bool:
        for start, stop, pieces in self.spans:
            there = source.read(start, stop - start)
            if any(not there.startswith(piece, at - start) for at, piece in pieces):
                return False
        return True


class Kinds:
    """The last few kinds of files, by length. The ranks of a pipeline stage are of one kind, and there are hundreds."""

    def __init__(self, most: int = 32) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[int, Pieces], _FileKind] = OrderedDict()

    def find(self, source: ByteRanges) -> Contents | None:
        """What a file holds that is like a known one; a file unlike them costs a read for each of its length."""
        with self._lock:
            of_length = [kind for (nbytes, _), kind in reversed(self._known.items()) if nbytes == source.nbytes]
        return next((kind.contents for kind in of_length if kind.fits(source)), None)

    def add(self, nbytes: int, pieces: Pieces, contents: Contents) -> None:
        """Remember a file of so many bytes: all of it but the tensors' own, in order of offsets, is in ``pieces``."""
        near: list[list[tuple[int, bytes]]] = []
        for at, piece in pieces:
            if near and at - _end(near[-1]) < _TOGETHER_NBYTES:
                near[-1].append((at, piece))
            else:
                near.append([(at, piece)])
        kind = _FileKind(tuple([(held[0][0], _end(held), tuple(held)) for held in near]), contents)
        with self._lock:
            self._known[nbytes, pieces[:1]] = kind
            while len(self._known) > self._most:
                self._known.popitem(last=False)


def _end(held: list[tuple[int, bytes]]) -> int:
    at, piece = held[-1]
    return at + len(piece)
