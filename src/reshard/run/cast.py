"""Casts between element types, rounding as ml_dtypes and NumPy do (to nearest, ties to even), the frequent fast."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_CHUNK = 32768


def cast_into(out: Array, values: Array) -> None:
    """Set ``out`` to ``values`` in its own dtype. What is too large becomes infinite."""
    pair = (values.dtype.name, out.dtype.name)
    if pair == ("bfloat16", "float32"):
        np.left_shift(values.view(np.uint16), np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
    elif pair == ("float32", "bfloat16"):
        _round_to_bfloat16(out.view(np.uint16), values)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = values


def _round_to_bfloat16(out: Array, values: Array) -> None:
    """Add what carries into the upper half when it is rounded up, and take that half; a NaN would be carried away.

    It goes by chunks that stay in the cache.
    """
    if not (out.flags.c_contiguous and values.flags.c_contiguous):
        values, target = np.ascontiguousarray(values), np.empty(out.shape, np.uint16)
        _round_to_bfloat16(target, values)
        out[...] = target
        return
    flat_values, flat_out = values.reshape(-1), out.reshape(-1)
    for start in range(0, flat_values.size, _CHUNK):
        chunk = flat_values[start : start + _CHUNK]
        bits = chunk.view(np.uint32)
        rounded = bits >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        rounded >>= np.uint32(16)
        part = flat_out[start : start + _CHUNK]
        part[...] = rounded
        nan = np.isnan(chunk)
        if nan.any():
            part[nan] = (bits[nan] >> np.uint32(16)) & np.uint32(0x8000) | np.uint32(0x7FC0)
