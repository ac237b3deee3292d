"""Elements between buffers, where they do not lie together: strided copies; and rounding to another dtype."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from reshard.dtypes import ITEMSIZE, numpy_dtype
from reshard.layout.box import Box, ordered
from reshard.planning.misfits import Misfits

Array = npt.NDArray[Any]
Buffer = memoryview | bytearray
BoxInMemory = tuple[Buffer, Box]
"""A buffer and the box that it holds, row-major."""
_TILE_ROWS, _TILE_COLUMNS = 64, 256  # words: half the nearest cache but one of most processors
_WORD_NBYTES = 8
_FEW = 16
_PLAIN = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64", 16: "complex128"}


def plain_dtype(nbytes: int) -> str:
    """One of which items of so many bytes are copied as they are, and fast where there is such."""
    return _PLAIN.get(nbytes) or f"V{nbytes}"


def shaped(buffer: Buffer, dtype: str, box: Box) -> Array:
    """The elements of a box, row-major, as an array that shares the buffer's memory."""
    return np.frombuffer(buffer, numpy_dtype(dtype)).reshape(box.shape)


def copy_between(to: BoxInMemory, of: BoxInMemory, counts: Box, dtype: str, order: tuple[int, ...] = ()) -> None:
    """Copy elements from one box to another, bit by bit: those of ``counts`` that both hold.

    Args:
        order: which dim of the boxes each dim of the source's buffer is.
    """
    (out, out_box), (data, box) = to, of
    plain = plain_dtype(ITEMSIZE[dtype])
    both = counts & out_box
    target = shaped(out, plain, out_box)[both.within(out_box)]
    if not order:
        target[...] = shaped(data, plain, box)[both.within(box)]
        return
    stored = ordered(box, order)
    elements = shaped(data, plain, stored)[ordered(both, order).within(stored)]
    elements = elements.transpose([order.index(dim) for dim in range(len(order))])
    across = order[-1]
    if across != len(order) - 1:
        _turn(np.moveaxis(target, across, -2), np.moveaxis(elements, across, -2))
    else:
        target[...] = elements


def _turn(target: Array, elements: Array) -> None:
    """Copy matrices whose rows lie together in ``target`` and whose columns do in ``elements``.

    In tiles, so that what is read for one row is still in the cache for the next; several elements of a column at once,
    so that most steps are of whole words.
    """
    rows, columns = target.shape[-2:]
    if columns < _FEW:
        for column in range(columns):
            target[..., column] = elements[..., column]
        return
    if rows * columns <= _TILE_ROWS * _TILE_COLUMNS:  # NumPy goes through all of them faster than Python calls it
        target[...] = elements
        return
    together = _WORD_NBYTES // target.itemsize if _WORD_NBYTES % target.itemsize == 0 else 1
    whole = rows - rows % together if together > 1 else 0
    tile = np.empty((_TILE_ROWS, _TILE_COLUMNS), np.uint64)
    for matrix in np.ndindex(target.shape[:-2]):
        rowwise, columnwise = target[matrix], elements[matrix]
        words = columnwise.T[:, :whole].view(np.uint64) if whole else None
        for column in range(0, columns, _TILE_COLUMNS):
            at = slice(column, column + _TILE_COLUMNS)
            if words is not None:
                _turn_words(rowwise[:whole, at], words[at], tile)
            for row in range(whole, rows, _TILE_COLUMNS):
                strip = slice(row, row + _TILE_COLUMNS)
                rowwise[strip, at] = columnwise[strip, at]


def _turn_words(target: Array, words: Array, tile: Array) -> None:
    """Copy some columns, given in words of several elements."""
    together = _WORD_NBYTES // target.itemsize
    for row in range(0, words.shape[1], _TILE_ROWS):
        part = words[:, row : row + _TILE_ROWS].T
        turned = tile[: part.shape[0], : part.shape[1]]
        turned[...] = part
        elements = turned.view(target.dtype)
        for n in range(together):
            first, stop = row * together + n, (row + len(part)) * together
            target[first:stop:together] = elements[:, n::together]


@cache
def _each_widened(dtype: np.dtype[Any], to: np.dtype[Any], together: int) -> Array:
    """One value or ``together`` of fp8 in a wider dtype, by their bits as one whole number."""
    each = np.arange(256, dtype=np.uint8).view(dtype).astype(to)
    return (
        each if together == 1 else each[np.arange(1 << 16, dtype=np.uint16).view(np.uint8)].view(f"c{2 * to.itemsize}")
    )


def widened(values: Array, to: np.dtype[Any]) -> Array:
    """A new array of the values in a wider dtype. Those of fp8 are looked up, two at once where they lie together:
    ml_dtypes converts one after the other.
    """
    if not values.dtype.name.startswith("float8"):
        return values.astype(to)
    if values.size % 2 or not values.flags.c_contiguous:
        return np.take(_each_widened(values.dtype, to, 1), values.view(np.uint8), mode="clip")
    pairs = np.take(_each_widened(values.dtype, to, 2), values.reshape(-1).view(np.uint16), mode="clip")
    return pairs.view(to).reshape(values.shape)


INFINITE, NAN, LARGEST = 1, 2, 3
"""Kinds of values that did not fit."""

_NOT_FINITE = {
    "float64": 0x7FF0000000000000, "float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80,
    "float8_e5m2": 0x7C, "float8_e4m3fn": 0x7F, "float8_e8m0fnu": 0x7F,
}  # fmt: skip
"""Bits of an element without its sign: from here on it is NaN or infinite."""

_WIDE = ("float16", "bfloat16", "float32", "float64")


def all_finite(values: Array) -> bool:
    """Whether none is NaN or infinite; by its bits as whole numbers, of which the largest is found fastest."""
    itemsize = values.dtype.itemsize
    signed, unsigned = values.view(f"i{itemsize}"), values.view(f"u{itemsize}")
    if not values.size:
        return True
    if values.dtype.name not in _NOT_FINITE:  # the fnuz kinds, whose NaN is what elsewhere is -0
        return bool(signed.min() != -128)
    first = _NOT_FINITE[values.dtype.name]
    return bool(signed.max() < first and unsigned.max() < first + (1 << (8 * itemsize - 1)))


@cache
def _holds_all(dtype: np.dtype[Any], of: np.dtype[Any]) -> bool:
    """Whether every value of a dtype is one of another, save for its last bits."""
    from ml_dtypes import finfo

    largest, largest_of = (float(finfo(each).max) for each in (dtype, of))  # type: ignore[no-untyped-call]
    return dtype.name in _WIDE and largest >= largest_of


def round_to(out: Array, values: Array, *, computed: bool = False) -> Array | None:
    """Set ``out`` to ``values`` in its own dtype, rounded as ml_dtypes and NumPy do: to nearest, ties to even.

    What is too large becomes infinite, or NaN where the dtype has no infinity; of ``float8_e4m3fn`` it becomes the
    largest, as PyTorch has it.

    Args:
        computed: whatever is NaN or infinite afterwards is told, not only what was not so before.

    Returns:
        The kind of each value that did not fit, 0 for those that did; None where all did.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = values
    if not computed and _holds_all(out.dtype, values.dtype):
        return None
    if all_finite(out):
        return None
    with np.errstate(invalid="ignore"):  # a signalling NaN is no more than a NaN
        was_nan, is_nan = np.isnan(values), np.isnan(out)
        too_large = is_nan & ~was_nan
        kinds = np.zeros(out.shape, np.uint8)
        kinds[np.isinf(out) & (computed | np.isfinite(values))] = INFINITE
        kinds[is_nan if computed else too_large] = NAN
    if out.dtype.name == "float8_e4m3fn":
        with np.errstate(over="ignore", invalid="ignore"):
            largest = np.copysign(np.float32(448), values.astype(np.float32)).astype(out.dtype)
        np.copyto(out, largest, where=too_large)
        kinds[too_large] = LARGEST
    return kinds if kinds.any() else None


def counted_kinds(tensor: str, dtype: str, kinds: Array) -> Misfits:
    """
    >>> str(counted_kinds("w", "float8_e4m3fn", np.array([0, NAN, LARGEST, LARGEST])))
    'w: 1 NaN, 2 set to the largest float8_e4m3fn'
    """
    infinite, nan, largest = (int(np.count_nonzero(kinds == kind)) for kind in (INFINITE, NAN, LARGEST))
    return Misfits(tensor, dtype, infinite, nan, largest)


def cast_out(to: BoxInMemory, dtype: str, of: BoxInMemory, of_dtype: str) -> Array | None:
    """Give ``to`` its part of another box in another dtype. Gives the kinds of what did not fit, as ``round_to``."""
    (out, out_box), (data, box) = to, of
    return round_to(shaped(out, dtype, out_box), shaped(data, of_dtype, box)[out_box.within(box)])
