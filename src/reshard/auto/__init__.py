"""The start of a job: weights of another layout become each rank's own, or are loaded straight from where they lie."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reshard.auto.loading import load
    from reshard.auto.preparing import Call, Prepared, prepare

_PLACES = {
    "Call": "reshard.auto.preparing",
    "Prepared": "reshard.auto.preparing",
    "prepare": "reshard.auto.preparing",
    "load": "reshard.auto.loading",
}

__all__ = ["Call", "Prepared", "load", "prepare"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'reshard.auto' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
