"""Steps that compute: what a block needs beside its base, and the block made of both."""

from __future__ import annotations

from math import prod

import numpy as np
from msgspec import Struct

from reshard.layout.box import Box
from reshard.moving.elements import NAN, Array, round_to, shaped, widened
from reshard.moving.lora import Factors, Lengths, Read, add_lora, check_finite, read_factors
from reshard.planning.plan import Move
from reshard.planning.steps import Assembly, Joint, LoraAdd, Rows, Scaled


class Beside(Struct, frozen=True):
    """What a block is made of besides its base: the parts of factors, the lengths of DoRA; scales, or rows."""

    factors: Factors = ()
    lengths: Array | None = None
    others: Array | None = None


class Making:
    """The making of a move's blocks by a step that computes; what it reads comes through ``read``."""

    def __init__(self, move: Move, read: Read, shape: tuple[int, ...] = ()) -> None:
        """``shape``: of what is made, where its base is put together in a view of it."""
        self._move = move
        self._step = step = move.step
        self._read = read
        self._lengths: Lengths | None = None
        if isinstance(step, LoraAdd) and step.magnitude:
            self._lengths = Lengths(step, shape or step.base.shape, self._again)

    def beside(self, box: Box) -> Beside:
        """What a block needs besides its base."""
        match self._step:
            case LoraAdd() as step:
                lengths = self._lengths.of(box, self._read) if self._lengths else None
                return Beside(read_factors(step, box, self._read), lengths, self._scales(box))
            case Scaled():
                return Beside(others=self._scales(box))
            case Rows() as step:
                return Beside(others=self._read(step.rows, rows_box(step, box)))
            case Assembly() | Joint():
                raise AssertionError("a copy computes nothing")

    def _scales(self, box: Box) -> Array | None:
        """Those of codes that something is added to."""
        of = self._step.weight if isinstance(self._step, LoraAdd) else self._step
        return self._read(of.scale, scale_box(of, box)) if isinstance(of, Scaled) else None

    def _again(self, box: Box) -> Array:
        """A part of the weight that something is added to."""
        return self._widened(self._read(self._step.base, box), self._scales(box), box)

    def _widened(self, of: Array, scales: Array | None, box: Box) -> Array:
        """What codes mean, in fp64: the product of a code and a scale is exact in it."""
        if scales is None or not isinstance(self._step, LoraAdd) or not isinstance(self._step.weight, Scaled):
            return of
        wide = np.empty(box.shape, np.float64)
        scale(self._step.weight, wide, of, scales, box)
        return wide

    def made(self, box: Box, made: memoryview, base: memoryview, beside: Beside) -> Array | None:
        """Set ``made`` to the block ``box``, in the move's dtype, of its base and what was read besides. Gives what did
        not fit, as ``round_to``.
        """
        before, after = shaped(base, self._step.base.dtype, box), shaped(made, self._move.dtype, box)
        if isinstance(self._step, LoraAdd):
            before = self._widened(before, beside.others, box)
            kinds = add_lora(self._step, after, before, beside.factors, beside.lengths)
            if kinds is not None and not self._step.allow_nan:
                check_finite(self._move.name, self._step, box, before, beside.factors, after)
            return kinds
        assert beside.others is not None
        if isinstance(self._step, Scaled):
            return scale(self._step, after, before, beside.others, box)
        assert isinstance(self._step, Rows)
        return put_rows(self._step, after, before, beside.others, box)


def _rows_in(step: Rows, box: Box) -> list[tuple[int, int]]:
    """Which rows of the step lie in a box: the number of each and where it goes."""
    return [(row, at) for row, at in enumerate(step.at) if box.start[0] <= at < box.stop[0]]


def rows_box(step: Rows, box: Box) -> Box:
    """The rows that a block needs, and those between."""
    numbers = [row for row, _ in _rows_in(step, box)] or [0]
    last = max(numbers) + 1 if step.at else 0
    return Box((min(numbers), *box.start[1:]), (last, *box.stop[1:]))


def put_rows(step: Rows, made: Array, of: Array, rows: Array, box: Box) -> Array | None:
    """Set ``made`` to ``of`` with rows in place of some. Gives what did not fit, as ``round_to``."""
    kinds = round_to(made, of)
    first = rows_box(step, box).start[0]
    for row, at in _rows_in(step, box):
        odd = round_to(made[at - box.start[0]], rows[row - first])
        if odd is not None:
            kinds = np.zeros(made.shape, np.uint8) if kinds is None else kinds
        if kinds is not None:
            kinds[at - box.start[0]] = 0 if odd is None else odd
    return kinds


def scale_box(step: Scaled, box: Box) -> Box:
    """The scales that a block needs."""
    return Box(
        tuple(start // n for start, n in zip(box.start, step.block, strict=True)),
        tuple(-(-stop // n) for stop, n in zip(box.stop, step.block, strict=True)),
    )


_CHUNK = 131072  # elements that are multiplied at once


def scale(step: Scaled, made: Array, of: Array, scales: Array, box: Box) -> Array | None:
    """Set ``made`` to ``of * scales``, computed in fp32, for fp64 in that, and rounded to its dtype once. ``box`` is
    where they lie. Gives what did not fit, as ``round_to``.
    """
    exact = np.dtype(np.float64 if made.dtype == np.float64 else np.float32)
    shape = (prod(box.shape[:-1]), box.shape[-1] if box.shape else 1)
    target, codes = made.reshape(shape), of.reshape(shape)
    lines, line_of = _scale_lines(step, scales.astype(exact), box)
    kinds: Array | None = None
    at_once = max(_CHUNK // max(shape[1], 1), 1)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, shape[0], at_once):
            part = slice(start, start + at_once)
            products = widened(codes[part], exact)
            products *= _along(lines[line_of[part]], step, box)
            odd = round_to(target[part], products, computed=True)
            if odd is not None:
                kinds = np.zeros(shape, np.uint8) if kinds is None else kinds
                kinds[part] = odd
                target[part][odd == NAN] = np.nan  # of two NaNs it is the processor's choice whose bits it keeps
    return None if kinds is None else kinds.reshape(made.shape)


def _scale_lines(step: Scaled, scales: Array, box: Box) -> tuple[Array, Array]:
    """The scales of a box, a line for each row that has others; and for each row of the box which line counts."""
    numbers = np.zeros(1, np.intp)
    for first, stop, n, held in zip(box.start[:-1], box.stop[:-1], step.block, scales.shape, strict=False):
        place = np.arange(first, stop) // n - first // n
        numbers = (numbers[:, None] * held + place).reshape(-1)
    return scales.reshape(-1, scales.shape[-1] if box.shape else 1), numbers


def _along(lines: Array, step: Scaled, box: Box) -> Array:
    """Each scale as often as it counts in a row of the box."""
    if lines.shape[1] == 1:
        return lines
    skipped = box.start[-1] % step.block[-1]
    return np.repeat(lines, step.block[-1], -1)[:, skipped : skipped + box.shape[-1]]
