"""Elements between buffers, where they do not lie together: strided copies, and casts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from reshard.dtypes import ITEMSIZE, numpy_dtype
from reshard.layout.box import Box
from reshard.planning.plan import ordered, unordered

Array = npt.NDArray[Any]
Buffer = memoryview | bytearray
Part = tuple[Buffer, Box]
"""A buffer and the box that it holds, row-major."""
_TILE_ROWS, _TILE_COLUMNS = 64, 256  # words: half the nearest cache but one of most processors
_WORD_NBYTES = 8
_FEW = 16
_PLAIN = {1: "uint8", 2: "uint16", 3: "V3", 4: "uint32", 8: "uint64", 16: "complex128"}


def shaped(buffer: Buffer, dtype: str, box: Box) -> Array:
    """The elements of a box, row-major, as an array that shares the buffer's memory."""
    return np.frombuffer(buffer, numpy_dtype(dtype)).reshape(box.shape)


def copy_between(to: Part, of: Part, counts: Box, dtype: str, order: tuple[int, ...] = ()) -> None:
    """Copy elements from one box to another, bit by bit: those of ``counts`` that both hold.

    Args:
        order: which dim of the source each dim of the target is; ``counts`` is in the source's dims.
    """
    (out, out_box), (data, box) = to, of
    plain = _PLAIN[ITEMSIZE[dtype]]
    both = counts & (unordered(out_box, order) if order else out_box)
    elements = shaped(data, plain, box)[both.within(box)]
    if order:
        both = ordered(both, order)
    target = shaped(out, plain, out_box)[both.within(out_box)]
    if order and order[-1] != len(order) - 1:
        across = order.index(len(order) - 1)
        _turn(np.moveaxis(target, across, -2), np.moveaxis(elements.transpose(order), across, -2))
    else:
        target[...] = elements.transpose(order) if order else elements


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


def cast_out(out: memoryview, out_box: Box, out_dtype: str, data: memoryview, box: Box, dtype: str) -> None:
    """Give ``out`` its part of ``box`` in another dtype, rounding as ml_dtypes and NumPy do: to nearest, ties to even.
    What is too large becomes infinite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        shaped(out, out_dtype, out_box)[...] = shaped(data, dtype, box)[out_box.within(box)]
