"""Names and sizes of element types.

A dtype is its name (``"bfloat16"``); its size is in bytes. Types that NumPy lacks (bfloat16 and the fp8 kinds) come
from ml_dtypes, imported when first asked for. ``int4x2`` is MindSpore's packed int4: one element is one byte that
holds two values. So are the floats of less than a byte: ``x2`` in one byte, ``x4`` in three; ``complex32`` is two
float16. They are carried, never looked into.
``str`` is text, which has no bytes of its own in a plan.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

ITEMSIZE = {
    "bool": 1, "int8": 1, "uint8": 1, "int4x2": 1,
    "float4_e2m1fn_x2": 1, "float6_e2m3fn_x4": 3, "float6_e3m2fn_x4": 3,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e8m0fnu": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
    "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2,
    "int32": 4, "uint32": 4, "float32": 4, "complex32": 4,
    "int64": 8, "uint64": 8, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip

FLOATING = frozenset({"float16", "bfloat16", "float32", "float64"} | {d for d in ITEMSIZE if d.startswith("float8")})

ALIASES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "fp64": "float64"}
"""Short names that users write for the same types."""

_PACKED = {"int4x2": "uint8", "float4_e2m1fn_x2": "uint8", "float6_e2m3fn_x4": "V3", "float6_e3m2fn_x4": "V3",
           "complex32": "uint32"}  # fmt: skip
_ML_DTYPES = frozenset({"bfloat16"} | {d for d in ITEMSIZE if d.startswith("float8")})


@cache
def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The NumPy dtype whose elements have these bytes.

    >>> numpy_dtype("int4x2")
    dtype('uint8')
    """
    import numpy as np

    if dtype in _PACKED:
        return np.dtype(_PACKED[dtype])
    if dtype in _ML_DTYPES:
        import ml_dtypes

        made: np.dtype[Any] = np.dtype(getattr(ml_dtypes, dtype))
        return made
    return np.dtype(dtype)
