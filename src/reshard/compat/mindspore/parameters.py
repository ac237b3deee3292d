"""MindSpore, where it is installed: Parameters, this process's rank, loading into a network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from reshard.compat.mindspore.calls import warn


def _mindspore() -> Any:
    """The framework, or None."""
    return import_module("mindspore") if find_spec("mindspore") else None


def as_parameters(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """MindSpore Parameters, or without MindSpore NumPy arrays of the caller's own. bf16 keeps its bits."""
    ms = _mindspore()
    if ms is None:
        return {name: np.array(array) for name, array in arrays.items()}
    return {name: ms.Parameter(_tensor(ms, np.array(array)), name=name) for name, array in arrays.items()}


def _tensor(ms: Any, array: Any) -> Any:
    if array.dtype.name == "bfloat16":
        return ms.Tensor(array.astype(np.float32), dtype=ms.bfloat16)
    return ms.Tensor.from_numpy(array)


def this_rank(given: int | None) -> int:
    """The rank of this process as MindSpore's communication or RANK_ID knows it, else the one given, else 0."""
    ms = _mindspore()
    if ms is not None:
        try:
            return int(ms.communication.get_rank())
        except RuntimeError:
            pass  # communication was not started
    if given is not None:
        return given
    text = os.environ.get("RANK_ID", "")
    if not text.isdigit():
        warn(["Get rank failed, default loading weight for rank 0."])
    return int(text) if text.isdigit() else 0


def load_into(network: Any, parameters: Mapping[str, Any], *, strict: bool) -> Any:
    """What MindSpore's ``load_param_into_net`` gives. Raises RuntimeError without MindSpore."""
    ms = _mindspore()
    if ms is None:
        raise RuntimeError("a network is loaded by MindSpore, which is not installed: give return_param_dict=True")
    return ms.load_param_into_net(network, dict(parameters), strict_load=strict)
