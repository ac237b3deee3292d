"""Elements between buffers, where they do not lie together: strided copies, and casts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from reshard.dtypes import ITEMSIZE, numpy_dtype
from reshard.layout.box import Box

Array = npt.NDArray[Any]
Buffer = memoryview | bytearray
Part = tuple[Buffer, Box]
"""A buffer and the box that it holds, row-major."""
_STRIP_ROWS = 32
_PLAIN = {1: "uint8", 2: "uint16", 3: "V3", 4: "uint32", 8: "uint64", 16: "complex128"}


def shaped(buffer: Buffer, dtype: str, box: Box) -> Array:
    """The elements of a box, row-major, as an array that shares the buffer's memory."""
    return np.frombuffer(buffer, numpy_dtype(dtype)).reshape(box.shape)


def copy_between(to: Part, of: Part, dtype: str, order: tuple[int, ...] = ()) -> None:
    """Copy the elements that two boxes share, bit by bit.

    Args:
        order: which dim of the source each dim of the target is; the boxes are each in their own.
    """
    (out, out_box), (data, box) = to, of
    plain = _PLAIN[ITEMSIZE[dtype]]
    elements = shaped(data, plain, box)
    if order:
        elements = elements.transpose(order)
        box = Box(tuple(box.start[d] for d in order), tuple(box.stop[d] for d in order))
    both = box & out_box
    target, elements = shaped(out, plain, out_box)[both.within(out_box)], elements[both.within(box)]
    if order:
        _copy_in_strips(target, elements)
    else:
        target[...] = elements


def _copy_in_strips(target: Array, elements: Array) -> None:
    """Copy row by row few rows at a time: what is read for one row is still in the cache for the next."""
    if target.ndim < 2:
        target[...] = elements
        return
    for matrix in np.ndindex(target.shape[:-2]):
        rows, columns = target[matrix], elements[matrix]
        for start in range(0, len(rows), _STRIP_ROWS):
            rows[start : start + _STRIP_ROWS] = columns[start : start + _STRIP_ROWS]


def cast_out(out: memoryview, out_box: Box, out_dtype: str, data: memoryview, box: Box, dtype: str) -> None:
    """Give ``out`` its part of ``box`` in another dtype, rounding as ml_dtypes and NumPy do: to nearest, ties to even.
    What is too large becomes infinite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        shaped(out, out_dtype, out_box)[...] = shaped(data, dtype, box)[out_box.within(box)]
