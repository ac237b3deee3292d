"""Formats by name, imported when asked for. Others may join through the entry point group ``reshard.formats``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from reshard.errors import UsageError
from reshard.formats.base import Format

_BUILT_IN = {
    "ckpt": "reshard.formats.mindspore_ckpt:MindSporeCkpt",
    "safetensors": "reshard.formats.safetensors:Safetensors",
}


@cache
def _named() -> Mapping[str, str]:
    others = {point.name: point.value for point in entry_points(group="reshard.formats")}
    return {**others, **_BUILT_IN}


@cache
def format_named(name: str) -> Format:
    """The format called ``name``. Raises UsageError.

    >>> format_named("ckpt").suffix
    '.ckpt'
    """
    if name not in _named():
        raise UsageError(f"no format {name!r}", hint=f"one of: {', '.join(sorted(_named()))}")
    module, _, attribute = _named()[name].partition(":")
    made: Format = getattr(import_module(module), attribute)()
    return made


@cache
def suffixes() -> Mapping[str, str]:
    """File name suffix → format name, for the formats known."""
    return {format_named(name).suffix: name for name in _named()}


def format_of(path: str) -> Format | None:
    """The format that the file's name says, or None where it says none."""
    name = next((n for suffix, n in suffixes().items() if path.endswith(suffix)), None)
    return format_named(name) if name else None
