from __future__ import annotations

import ast
from collections import defaultdict

from source import MODULES, parsed


def test_a_word_names_one_class() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for module in MODULES:
        for node in ast.walk(parsed(module)):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(module)
    assert {word: modules for word, modules in places.items() if len(modules) > 1} == {}
