"""Formats by name, imported when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module

from reshard.errors import UsageError
from reshard.formats.base import Format

_FORMATS = {
    "ckpt": "reshard.formats.mindspore_ckpt:MindSporeCkpt",
    "safetensors": "reshard.formats.safetensors:Safetensors",
    "torch": "reshard.formats.torch_file:TorchFile",
}
_SUFFIXES = {".ckpt": "ckpt", ".safetensors": "safetensors", ".bin": "torch", ".pt": "torch", ".pth": "torch"}
"""So that a name is judged without importing any format."""


@cache
def format_named(name: str) -> Format:
    """The format called ``name``. Raises UsageError.

    >>> format_named("ckpt").suffix
    '.ckpt'
    """
    place = _FORMATS.get(name)
    if place is None:
        raise UsageError(f"no format {name!r}", hint=f"one of: {', '.join(sorted(_FORMATS))}")
    module, _, attribute = place.partition(":")
    made: Format = getattr(import_module(module), attribute)()
    return made


def suffixes() -> Mapping[str, str]:
    """File name suffix → format name."""
    return _SUFFIXES


def format_of(path: str) -> Format | None:
    """The format that the file's name says, or None where it says none."""
    _, dot, suffix = path.rpartition("/")[2].rpartition(".")
    name = _SUFFIXES.get(dot + suffix)
    return format_named(name) if name else None
