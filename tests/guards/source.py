"""The package as text: its modules, parsed, and what each imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import reshard

ROOT = Path(reshard.__file__).parent
MODULES = tuple(sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py")))


def dotted(module: str) -> str:
    """
    >>> dotted("planning/blocks.py"), dotted("planning/__init__.py")
    ('reshard.planning.blocks', 'reshard.planning')
    """
    return ".".join(["reshard", *Path(module).with_suffix("").parts]).removesuffix(".__init__")


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(), module)


@cache
def imports(module: str) -> frozenset[str]:
    """Every module that is imported, anywhere; also the names taken from it, which may be modules."""
    return frozenset(_imports(parsed(module)))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
