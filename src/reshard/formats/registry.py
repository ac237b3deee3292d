"""Formats by name, imported when asked for. Others may join through the entry point group ``reshard.formats``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module

from reshard.errors import UsageError
from reshard.formats.base import Format

_BUILT_IN = {
    "ckpt": "reshard.formats.mindspore_ckpt:MindSporeCkpt",
    "safetensors": "reshard.formats.safetensors:Safetensors",
    "torch": "reshard.formats.torch_file:TorchFile",
}
_SUFFIXES = {".ckpt": "ckpt", ".safetensors": "safetensors", ".bin": "torch", ".pt": "torch", ".pth": "torch"}
"""Of the built-in formats, so that a name is judged without importing any."""


@cache
def _others() -> Mapping[str, str]:
    """Looked for only where no built-in format fits: to read what is installed costs every start dear."""
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group="reshard.formats") if point.name not in _BUILT_IN}


@cache
def format_named(name: str) -> Format:
    """The format called ``name``. Raises UsageError.

    >>> format_named("ckpt").suffix
    '.ckpt'
    """
    place = _BUILT_IN.get(name) or _others().get(name)
    if place is None:
        raise UsageError(f"no format {name!r}", hint=f"one of: {', '.join(sorted(_names()))}")
    module, _, attribute = place.partition(":")
    made: Format = getattr(import_module(module), attribute)()
    return made


def _names() -> Iterator[str]:
    yield from _BUILT_IN
    yield from _others()


def suffixes() -> Mapping[str, str]:
    """File name suffix → format name, for the formats known."""
    return _SUFFIXES | {format_named(name).suffix: name for name in _others()}


def format_of(path: str) -> Format | None:
    """The format that the file's name says, a built-in one first, or None where it says none."""
    _, dot, suffix = path.rpartition("/")[2].rpartition(".")
    if not suffix:
        return None
    name = _SUFFIXES.get(dot + suffix)
    if name is None:
        name = next((name for name in _others() if path.endswith(format_named(name).suffix)), None)
    return format_named(name) if name else None
