"""Casts between element types, rounding as ml_dtypes and NumPy do: to nearest, ties to even."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def cast_into(out: Array, values: Array) -> None:
    """Set ``out`` to ``values`` in its own dtype. What is too large becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = values
