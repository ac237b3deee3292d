"""Formats by name and by suffix."""

from __future__ import annotations

import subprocess
import sys

import pytest

from reshard.errors import UsageError
from reshard.formats.registry import format_named, format_of, suffixes

BUILT_IN = {".ckpt": "ckpt", ".safetensors": "safetensors", ".bin": "torch", ".pt": "torch", ".pth": "torch"}


def test_built_in() -> None:
    assert suffixes() == BUILT_IN
    assert {format_named(name).suffix for name in BUILT_IN.values()} <= set(BUILT_IN)
    assert format_of("a.b/c.ckpt") is format_named("ckpt")
    assert [format_of(p) for p in ("ckpt", "a.ckpt/b", "a.npz", "")] == [None] * 4


def test_an_unknown_name_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="no format 'gguf'") as caught:
        format_named("gguf")
    assert "ckpt, safetensors, torch" in caught.value.hint


def test_to_know_a_format_nothing_installed_is_looked_through() -> None:
    code = (
        "import sys; from reshard.formats.registry import format_of\n"
        "format_of('a.safetensors'), format_of('folder'), format_of('a.ckpt')\n"
        "sys.exit('importlib.metadata' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
