"""Elements between buffers, where they do not lie together: strided copies, and casts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from reshard.dtypes import ITEMSIZE, numpy_dtype
from reshard.layout.box import Box

Array = npt.NDArray[Any]
Buffer = memoryview | bytearray
_PLAIN = {1: "uint8", 2: "uint16", 3: "V3", 4: "uint32", 8: "uint64", 16: "complex128"}


def shaped(buffer: Buffer, dtype: str, box: Box) -> Array:
    """The elements of a box, row-major, as an array that shares the buffer's memory."""
    return np.frombuffer(buffer, numpy_dtype(dtype)).reshape(box.shape)


def copy_between(out: memoryview, out_box: Box, data: memoryview, box: Box, dtype: str) -> None:
    """Copy the elements that two boxes share, bit by bit."""
    plain, both = _PLAIN[ITEMSIZE[dtype]], box & out_box
    shaped(out, plain, out_box)[both.within(out_box)] = shaped(data, plain, box)[both.within(box)]


def cast_out(out: memoryview, out_box: Box, out_dtype: str, data: memoryview, box: Box, dtype: str) -> None:
    """Give ``out`` its part of ``box`` in another dtype, rounding as ml_dtypes and NumPy do: to nearest, ties to even.
    What is too large becomes infinite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        shaped(out, out_dtype, out_box)[...] = shaped(data, dtype, box)[out_box.within(box)]
