"""Arrays as MindSpore Parameters and torch tensors, by the framework itself."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from reshard.errors import UsageError

Framework = Literal["numpy", "mindspore", "torch"]
_SAME_BITS = {"bfloat16": ("int16", "bfloat16"), "float8_e4m3fn": ("uint8", "float8_e4m3fn"),
              "float8_e5m2": ("uint8", "float8_e5m2")}  # fmt: skip
"""Kinds that torch has and NumPy has not: NumPy's of the same width, torch's name."""


def given_as(arrays: Mapping[str, Any], kind: Framework) -> Mapping[str, Any]:
    """The arrays, made when asked for; or all of them as MindSpore Parameters or torch tensors."""
    if kind == "numpy":
        return arrays
    if kind not in ("mindspore", "torch"):
        raise UsageError(f"arrays as {kind!r}", hint="one of: numpy, mindspore, torch")
    if not find_spec(kind):
        raise UsageError(f"{kind} is not installed", hint=f"pip install {kind}, or take NumPy arrays")
    framework = import_module(kind)
    made = _parameter if kind == "mindspore" else _tensor
    return {name: made(framework, name, array) for name, array in arrays.items()}


def _parameter(ms: Any, name: str, array: Any) -> Any:
    own = np.array(array)  # MindSpore keeps the memory that it is given
    if own.dtype.name == "bfloat16":
        return ms.Parameter(ms.Tensor(own.astype(np.float32), dtype=ms.bfloat16), name=name)
    return ms.Parameter(ms.Tensor.from_numpy(own), name=name)


def _tensor(torch: Any, name: str, array: Any) -> Any:
    shape = array.shape
    flat = np.asarray(array).reshape(-1)
    bits, same = _SAME_BITS.get(array.dtype.name, ("", ""))
    if bits:
        return torch.from_numpy(flat.view(bits)).view(getattr(torch, same)).reshape(shape)
    return torch.from_numpy(flat).reshape(shape)
