from __future__ import annotations

import ast

import pytest
from source import MODULES, ROOT, parsed

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 50
Function = ast.FunctionDef | ast.AsyncFunctionDef


@pytest.mark.parametrize("module", MODULES)
def test_no_module_grows_large(module: str) -> None:
    lines = (ROOT / module).read_text().count("\n")
    assert lines <= MAX_MODULE_LINES


@pytest.mark.parametrize("module", MODULES)
def test_no_function_grows_long(module: str) -> None:
    functions = [n for n in ast.walk(parsed(module)) if isinstance(n, Function)]
    long = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions}
    assert {name: n for name, n in long.items() if n > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    if module != "_version.py":
        assert ast.get_docstring(parsed(module))
