"""The weight files of large models from any family of checkpoint to any other.

The names below are the whole of the public interface; they are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from reshard._version import __version__

if TYPE_CHECKING:
    from reshard.checkpoint import Checkpoint, open
    from reshard.errors import ReshardError
    from reshard.families.source import Source
    from reshard.ops.adapters import AdapterAt
    from reshard.ops.convert import Conversion, convert, plan
    from reshard.ops.diff import diff, verify_content
    from reshard.ops.fingerprint import Fingerprint, fingerprint
    from reshard.ops.lora import lora_config, merge_lora
    from reshard.ops.options import Options
    from reshard.ops.unify import unify
    from reshard.ops.verify import verify
    from reshard.planning.names import NameRules

_PLACES = {
    "AdapterAt": "reshard.ops.adapters",
    "Checkpoint": "reshard.checkpoint",
    "open": "reshard.checkpoint",
    "ReshardError": "reshard.errors",
    "Conversion": "reshard.ops.convert",
    "convert": "reshard.ops.convert",
    "plan": "reshard.ops.convert",
    "diff": "reshard.ops.diff",
    "Fingerprint": "reshard.ops.fingerprint",
    "fingerprint": "reshard.ops.fingerprint",
    "NameRules": "reshard.planning.names",
    "Options": "reshard.ops.options",
    "Source": "reshard.families.source",
    "lora_config": "reshard.ops.lora",
    "merge_lora": "reshard.ops.lora",
    "unify": "reshard.ops.unify",
    "verify": "reshard.ops.verify",
    "verify_content": "reshard.ops.diff",
}

__all__ = [
    "AdapterAt",
    "Checkpoint",
    "Conversion",
    "Fingerprint",
    "NameRules",
    "Options",
    "ReshardError",
    "Source",
    "__version__",
    "convert",
    "diff",
    "fingerprint",
    "lora_config",
    "merge_lora",
    "open",
    "plan",
    "unify",
    "verify",
    "verify_content",
]


def __dir__() -> list[str]:
    """What there is, whether it has been used or not."""
    return [*__all__, "auto"]


def __getattr__(name: str) -> Any:
    if name == "auto":  # a package of its own names
        return import_module("reshard.auto")
    if name not in _PLACES:
        raise AttributeError(f"module 'reshard' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
