"""Which rows of which stored tensors a tensor is put together of: q, k and v in one, layers in a stack."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from math import prod

from reshard.index import ZEROS, Stored
from reshard.layout.box import Box
from reshard.planning.catalog import Catalog
from reshard.planning.plan import PlannedTensor
from reshard.planning.steps import Piece
from reshard.report.fold import pattern_of, readable
from reshard.report.values import Origin

_MAX_RUNS = 4096
"""Of a tensor; what is put together of more, as rows that are turned one by one, is not told by rows."""


class Origins:
    """The headers of the source's files, by where tensors begin in them."""

    def __init__(self, source: Catalog) -> None:
        self._source = source
        self._places: dict[int, list[tuple[int, str, Stored]]] = {}

    def of(self, tensor: PlannedTensor) -> tuple[Origin, ...]:
        """In order of its rows; none for what is stored as it is called, or not by rows."""
        base = tensor.step.base
        whole, row = Box.whole(base.shape), _row(tensor.spec.shape)
        rows: list[Origin] = []
        renamed = False
        own = pattern_of(tensor.name)[1]
        for piece in base.pieces:
            stored = self._stored(piece)
            runs = list(islice(piece.box.runs_in(whole), _MAX_RUNS))
            if stored is None or any(start % row or size % row for start, size in runs) or len(runs) == _MAX_RUNS:
                return ()
            name, first = stored
            renamed |= name not in (tensor.source_name, tensor.name)
            shown, rank = readable(seen_from(own, name)), self._source.files[piece.file].rank
            for start, size in runs:
                rows.append(Origin(start // row, (start + size) // row, shown, first, rank))
                first += size // row
        joined = tuple(_joined_rows(rows)) if renamed else ()
        return joined if len(joined) <= _MAX_RUNS else ()

    def _stored(self, piece: Piece) -> tuple[str, int] | None:
        """The name of what holds a piece, and the row of it with which the piece begins."""
        if piece.file <= ZEROS or piece.order or piece.outer or len(piece.extents) != 1:
            return None
        places = self._places.get(piece.file)
        if places is None:
            places = self._places[piece.file] = sorted(self._of_file(piece.file))
        offset = piece.extents[0].offset
        at = bisect_right(places, offset, key=lambda place: place[0]) - 1
        if at < 0 or offset >= places[at][2].extents[0].end:
            return None
        begin, name, stored = places[at]
        nbytes = _row(stored.spec.shape) * stored.spec.itemsize
        return (name, (offset - begin) // nbytes) if nbytes and (offset - begin) % nbytes == 0 else None

    def _of_file(self, number: int) -> Iterator[tuple[int, str, Stored]]:
        for name, stored in self._source.files[number].contents.tensors.items():
            if len(stored.extents) == 1 and not stored.order:
                yield stored.extents[0].offset, name, stored


def seen_from(own: tuple[int, ...], name: str) -> str:
    """The pattern of a name, which keeps those numbers that are not ``own``: they tell experts of a layer apart.

    >>> seen_from((3,), "layers.3.experts.3.w"), seen_from((3,), "layers.7.w")
    ('layers.#.experts.3.w', 'layers.7.w')
    """
    pattern, numbers = pattern_of(name)
    left = list(own)
    for number in numbers:
        shared = bool(left) and left[0] == number
        pattern = pattern.replace("#", "\0" if shared else str(number), 1)
        del left[: int(shared)]
    return pattern.replace("\0", "#")


def _row(shape: tuple[int, ...]) -> int:
    """Elements of a row, which is what lies together in the last dim; of a vector one."""
    return max(prod(shape[-1:]) if len(shape) > 1 else 1, 1)


def _joined_rows(rows: list[Origin]) -> list[Origin]:
    """In order, those that go on in the same tensor as one."""
    found: list[Origin] = []
    for row in sorted(rows, key=lambda origin: origin.start):
        last = found[-1] if found else row
        goes_on = (last.stop, last.name, last.first + last.stop - last.start, last.rank)
        if found and goes_on == (row.start, row.name, row.first, row.rank):
            found[-1] = Origin(last.start, row.stop, last.name, last.first, last.rank)
        else:
            found.append(row)
    return found
