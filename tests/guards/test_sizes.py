from __future__ import annotations

import ast

from source import MODULES, ROOT, parsed

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 50
Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_no_module_grows_large() -> None:
    lines = {module: (ROOT / module).read_text().count("\n") for module in MODULES}
    assert {module: n for module, n in lines.items() if n > MAX_MODULE_LINES} == {}


def test_no_function_grows_long() -> None:
    functions = [(m, node) for m in MODULES for node in ast.walk(parsed(m)) if isinstance(node, Function)]
    lines = {(module, f.name): (f.end_lineno or 0) - f.lineno + 1 for module, f in functions}
    assert {function: n for function, n in lines.items() if n > MAX_FUNCTION_LINES} == {}


def test_every_module_says_what_it_is() -> None:
    assert [m for m in MODULES if m != "_version.py" and not ast.get_docstring(parsed(m))] == []
