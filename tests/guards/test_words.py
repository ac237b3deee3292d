from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from source import MODULES, parsed

TYPE_NAME = re.compile(r"_?[A-Z][a-z]\w*")


def types(module: str) -> Iterator[tuple[str, str]]:
    """Classes and names of types, each with its meaning: a class is one of its module, a type is what it says."""
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.ClassDef):
            yield node.name, module
        elif isinstance(node, ast.Assign) and node in parsed(module).body:
            names = (target.id for target in node.targets if isinstance(target, ast.Name))
            yield from ((name, ast.unparse(node.value)) for name in names if TYPE_NAME.fullmatch(name))


def test_a_word_names_one_class() -> None:
    meanings: dict[str, set[str]] = defaultdict(set)
    for module in MODULES:
        for name, meaning in types(module):
            meanings[name.lstrip("_")].add(meaning)
    assert {word: found for word, found in meanings.items() if len(found) > 1} == {}
