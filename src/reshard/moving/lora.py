"""The LoRA step on one block: summed in fp64, rounded once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from reshard.errors import CheckpointError
from reshard.layout.box import Box
from reshard.moving.elements import round_to
from reshard.moving.products import RightSide
from reshard.planning.steps import Assembly, LoraAdd, Product

Array = npt.NDArray[Any]
Read = Callable[[Assembly, Box], Array]
"""Gives the elements of a box of what is put together so."""
Range = tuple[int, int]
Factors = Sequence[tuple[Array, ...]]
"""Of each product, the parts of its factors that a box of the weight needs."""
_CHUNK = 262144  # elements that are summed at once: in a cache, and so many that threads seldom wait for Python's lock
_READ_NBYTES = 4 << 20


def read_factors(step: LoraAdd, box: Box, read: Read) -> Factors:
    """The parts of all factors that a block of the weight needs."""
    return [
        tuple(read(factor, part) for factor, part in zip(each.factors, factor_boxes(each, box), strict=True))
        for each in step.products
    ]


def factor_boxes(product: Product, box: Box) -> tuple[Box, ...]:
    """Where those lie."""
    if product.form == "vector":
        return (box,)
    a = product.factors[1].shape
    *lead, rows, columns = zip(box.start, box.stop, strict=True)
    if product.form == "convolution":
        (outs, inner, *kernel), rank = (*lead, rows, columns), (0, a[0])
        return _box(outs, rank, *((0, 1) for _ in kernel)), _box(rank, inner, *kernel)
    rank = (0, a[-2])
    if product.form.endswith("in_out"):
        rows, columns = columns, rows
    if product.form.startswith("experts"):
        return _box(rows, rank, *lead), _box(*lead, rank, columns)
    return _box(*lead, rows, rank), _box(*lead, rank, columns)


def _box(*ranges: Range) -> Box:
    return Box(tuple(a for a, _ in ranges), tuple(b for _, b in ranges))


def add_lora(step: LoraAdd, made: Array, weight: Array, factors: Factors, lengths: Array | None) -> Array | None:
    """Set ``made`` to the sum, rounded to its dtype once. Gives what did not fit, as ``round_to`` does.

    Args:
        lengths: by what each output of the block is multiplied (DoRA).

    All is computed in fp64. The bits depend neither on blocks nor, for factors of 32 bits or less, on the machine.
    """
    kinds: Array | None = None
    target = _matrices(step, made)
    with np.errstate(over="ignore", invalid="ignore"):
        for part, total in sums(step, weight, factors):
            if lengths is not None:
                total *= lengths if _lies_in_out(step) else lengths[part[-1], None]
            odd = round_to(target[part], total, computed=True)
            if odd is not None:
                kinds = np.zeros(target.shape, np.uint8) if kinds is None else kinds
                kinds[part] = odd
    return None if kinds is None else kinds.reshape(made.shape)


def sums(step: LoraAdd, weight: Array, factors: Factors) -> Iterator[tuple[tuple[Any, ...], Array]]:
    """``W + B @ A * scaling + …`` of a block, some rows of a matrix at once: which they are, and the sums in fp64.

    Of a convolution the matrix is [out, in and kernel], of a vector it is one row.
    """
    weight = _matrices(step, weight)
    sides = [_sides(product, parts) for product, parts in zip(step.products, factors, strict=True)]
    in_steps = step.in_steps and weight.dtype == np.float32
    for matrix in np.ndindex(weight.shape[:-2]):
        rights = [RightSide(right[matrix], in_steps=in_steps) for _, right in sides]
        rows = rights[0].portion(_CHUNK // max(weight.shape[-1], 1))
        for start in range(0, weight.shape[-2], rows):
            part = (*matrix, slice(start, start + rows))
            total: Array | float = 0.0
            for product, (left, _), right in zip(step.products, sides, rights, strict=True):
                term = right.times(left[part])
                term *= product.scaling
                total = np.add(total, term, out=term) if isinstance(total, np.ndarray) else term
            assert isinstance(total, np.ndarray)
            total += weight[part].astype(total.dtype)
            yield part, total


def _matrices(step: LoraAdd, weight: Array) -> Array:
    """A block of the weight as the matrices that products are."""
    form = step.products[0].form
    if form == "vector":
        return weight.reshape(1, -1)
    return weight.reshape(weight.shape[0], -1) if form == "convolution" else weight


def _sides(product: Product, factors: tuple[Array, ...]) -> tuple[Array, Array]:
    """What are multiplied, as they lie in the block."""
    if product.form == "vector":
        return np.ones((1, 1), np.float32), factors[0].reshape(1, -1)
    b, a = factors
    if product.form == "convolution":
        return b.reshape(len(b), -1), a.reshape(len(a), -1)
    if product.form.startswith("experts"):
        b = b.transpose(2, 0, 1)
    return (a.swapaxes(-1, -2), b.swapaxes(-1, -2)) if product.form.endswith("in_out") else (b, a)


def _lies_in_out(step: LoraAdd) -> bool:
    return step.products[0].form == "in_out"


class Lengths:
    """By what DoRA multiplies each output of a weight: its magnitude by its length.

    A length is that of all that leads to an output, of which a block may be a part: what it is made of is read again, a
    few rows at once, by ``weight``.
    """

    def __init__(self, step: LoraAdd, shape: tuple[int, ...], weight: Callable[[Box], Array]) -> None:
        self._step = step
        self._shape = shape
        self._weight = weight
        self._known: dict[Range, Array] = {}
        self._lock = threading.Lock()

    def of(self, box: Box, read: Read) -> Array:
        """For the outputs of a block."""
        dim = 1 if _lies_in_out(self._step) else 0
        outs = (box.start[dim], box.stop[dim])
        if dim == 0:
            return self._made(outs, self._of_rows(outs, read), read)
        with self._lock:  # all blocks need the same: made once
            if outs not in self._known:
                self._known[outs] = self._made(outs, self._of_columns(outs, read), read)
            return self._known[outs]

    def _made(self, outs: Range, squares: Array, read: Read) -> Array:
        assert self._step.magnitude is not None
        magnitude = read(self._step.magnitude, _box(outs)).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(magnitude / np.sqrt(squares))

    def _of_rows(self, outs: Range, read: Read) -> Array:
        squares = np.empty(outs[1] - outs[0])
        for start, total in self._sums(outs, self._shape[1:], read):
            at = start - outs[0]
            squares[at : at + len(total)] = np.add.reduce(total * total, axis=-1)
        return squares

    def _of_columns(self, outs: Range, read: Read) -> Array:
        """Row by row, so that the bits do not depend on how many are read at once."""
        squares = np.zeros(outs[1] - outs[0])
        for _, total in self._sums((0, self._shape[0]), (), read, outs):
            for row in total:
                squares += row * row
        return squares

    def _sums(
        self, rows: Range, whole: tuple[int, ...], read: Read, columns: Range | None = None
    ) -> Iterator[tuple[int, Array]]:
        """The sums of some rows, a few at once, each with the number of the first."""
        inner = [columns] if columns else [(0, n) for n in whole]
        width = max(int(np.prod([b - a for a, b in inner])), 1)
        step = max(_READ_NBYTES // (width * 8), 1)
        for start in range(rows[0], rows[1], step):
            box = _box((start, min(start + step, rows[1])), *inner)
            factors = read_factors(self._step, box, read)
            weight = self._weight(box)
            with np.errstate(over="ignore", invalid="ignore"):
                for (part,), total in sums(self._step, weight, factors):
                    yield start + part.start, total


def check_finite(name: str, step: LoraAdd, box: Box, weight: Array, factors: Factors, made: Array) -> None:
    """Raises CheckpointError naming the first element of ``made`` that is NaN or infinite though its inputs are finite.

    Args:
        box: where in the tensor ``made`` lies.
        made: the sum, rounded to the target's dtype.
    """
    tainted = _matrices(step, ~np.isfinite(weight)).copy()
    for product, parts in zip(step.products, factors, strict=True):
        left, right = (~np.isfinite(side) for side in _sides(product, parts))
        rows: Array = np.any(left, axis=-1)[..., :, None]
        columns: Array = np.any(right, axis=-2)[..., None, :]
        tainted |= rows | columns
    new = np.argwhere(~np.isfinite(made) & ~tainted.reshape(made.shape))
    if len(new):
        index = [int(i) + start for i, start in zip(new[0], box.start, strict=True)]
        raise CheckpointError(
            f"adding the LoRA weights makes {made[tuple(new[0])]} at {index} of {name}",
            hint="check the scaling; a wider --dtype holds larger values; --allow-nan lets it pass",
        )
