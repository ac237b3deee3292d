"""Parts of a block that steps make: their elements, in the order in which bytes of a file would hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import numpy as np

from reshard.dtypes import numpy_dtype
from reshard.index import MADE
from reshard.layout.box import Box
from reshard.layout.cover import boxes_of_range
from reshard.layout.view import in_view
from reshard.moving.elements import Array, round_to, shaped
from reshard.moving.lora import Read
from reshard.moving.steps import Making
from reshard.planning.blocks import Access, EvenRuns
from reshard.planning.plan import Move
from reshard.planning.steps import Assembly, Joint, MadeTensor

_AT_ONCE_NBYTES = 8 << 20
Make = Callable[[Box, memoryview], Array | None]
"""Sets bytes to the elements of a box, and gives what did not fit."""


class JointParts:
    """What the parts of a joint step make; what they are made of comes through ``read``."""

    def __init__(self, step: Joint, read: Read) -> None:
        self._parts = step.parts
        self._read = read
        self._makes = [self._make(part) for part in step.parts]

    def read_into(self, access: Access, buffer: memoryview) -> Array | None:
        """Fill the buffer with the elements of an access; gives what of them did not fit, one after the other."""
        number = MADE - access.file
        spec, at, odd = self._parts[number].spec, 0, None
        for box in _boxes(access, spec.shape, spec.itemsize):
            for part in _portions(box, _AT_ONCE_NBYTES // spec.itemsize):
                end = at + part.size
                found = self._makes[number](part, buffer[at * spec.itemsize : end * spec.itemsize])
                if found is not None:
                    odd = np.zeros(access.box.size, np.uint8) if odd is None else odd
                    odd[at:end] = found.reshape(-1)
                at = end
        return odd

    def _make(self, part: MadeTensor) -> Make:
        step, dtype, shape = part.step, part.spec.dtype, part.spec.shape

        def read(of: Assembly, box: Box) -> Array:
            return self._seen(of, shape, box) if of is step.base else self._read(of, box)

        if isinstance(step, Assembly):
            return lambda box, made: round_to(shaped(made, dtype, box), read(step, box))
        making = Making(Move(part.name, step, dtype, ()), read, shape)

        def make(box: Box, made: memoryview) -> Array | None:
            base = read(step.base, box).reshape(-1).view(np.uint8)
            return making.made(box, made, base.data, making.beside(box))

        return make

    def _seen(self, of: Assembly, shape: tuple[int, ...], box: Box) -> Array:
        """A box of a tensor of this shape, however it is put together."""
        if of.shape == shape:
            return self._read(of, box)
        made = np.empty(box.shape, numpy_dtype(of.dtype))
        for real, seen in in_view(box, shape, of.shape):
            made[real.within(box)] = self._read(of, seen).reshape(real.shape)
        return made


def _boxes(access: Access, shape: tuple[int, ...], itemsize: int) -> Iterator[Box]:
    """The boxes whose elements an access names, one after the other."""
    for extent in access.ranges:
        yield from boxes_of_range(shape, extent.offset // itemsize, extent.end // itemsize)
    for rows in access.rows:
        yield from _boxes_of_rows(rows, shape, itemsize)


def _boxes_of_rows(rows: EvenRuns, shape: tuple[int, ...], itemsize: int) -> Iterator[Box]:
    first, size, step = (n // itemsize for n in (rows.offset, rows.nbytes, rows.step))
    width = shape[-1]
    line, column = divmod(first, width)
    if step == width and column + size <= width:
        for lead in boxes_of_range(shape[:-1], line, line + rows.count):
            yield Box((*lead.start, column), (*lead.stop, column + size))
        return
    for start in range(first, first + rows.count * step, step):
        yield from boxes_of_range(shape, start, start + size)


def _portions(box: Box, most: int) -> Iterator[Box]:
    """Some rows of a box at once, so many elements or one row."""
    if box.size <= most:
        yield box
        return
    dim = next(n for n, size in enumerate(box.shape) if size > 1)
    rows = max(most // prod(box.shape[dim + 1 :]), 1)
    for start in range(box.start[dim], box.stop[dim], rows):
        part = Box(
            (*box.start[:dim], start, *box.start[dim + 1 :]),
            (*box.stop[:dim], min(start + rows, box.stop[dim]), *box.stop[dim + 1 :]),
        )
        yield from _portions(part, most)
