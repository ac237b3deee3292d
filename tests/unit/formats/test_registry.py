"""Formats by name and by suffix; those of others join by an entry point."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_a_package_adds_one(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("class Theirs:\n    name = 'theirs'\n    suffix = '.xyz'\n")
    (tmp_path / "theirs-1.dist-info").mkdir()
    (tmp_path / "theirs-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    points = "[reshard.formats]\ntheirs = theirs:Theirs\nckpt = theirs:Theirs\n"
    (tmp_path / "theirs-1.dist-info/entry_points.txt").write_text(points)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from reshard.formats.registry import format_of, suffixes\n"
        f"print(format_of('a.xyz').name, format_of('a.ckpt').name, suffixes() == {BUILT_IN | {'.xyz': 'theirs'}})"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "theirs ckpt True\n"


def test_to_know_a_format_nothing_installed_is_looked_through() -> None:
    code = (
        "import sys; from reshard.formats.registry import format_of\n"
        "format_of('a.safetensors'), format_of('folder'), format_of('a.ckpt')\n"
        "sys.exit('importlib.metadata' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
