"""Texts of strangers; of their YAML plain values alone, none nested without end, and one kind of error."""

from __future__ import annotations

import codecs
from contextlib import suppress
from pathlib import Path
from typing import Any

from reshard.errors import InputError
from reshard.plain_files import local_content

_MAX_DEPTH = 64
"""Of lists and maps in brackets: the time that PyYAML takes for them grows with the square of their depth."""
_MAX_LINE = 500
_MAX_VALUES = 1_000_000
"""With those that aliases stand for: some lines of aliases to aliases stand for more than any memory holds."""


def text_of(path: str | Path) -> str:
    """What a YAML or JSON file says. Raises InputError."""
    return text_in(local_content(path), str(path))


def text_in(content: bytes, where: str) -> str:
    """What bytes say, without the mark that some editors put before the first word. Raises InputError."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise InputError("text in UTF-16", where, "save it as UTF-8") from None
        raise InputError("not a text file", where, "text in UTF-8 is expected") from None


def read_yaml(text: str) -> Any:
    """Raises InputError.

    >>> read_yaml("a: {b: [1, 2]}")
    {'a': {'b': [1, 2]}}
    """
    import yaml

    class Careful(yaml.SafeLoader):
        def fetch_flow_collection_start(self, token: Any) -> None:
            if self.flow_level >= _MAX_DEPTH:
                raise yaml.YAMLError(f"more than {_MAX_DEPTH} brackets within one another")
            super().fetch_flow_collection_start(token)

    try:
        if (quick := quick_loader(text)) is not yaml.SafeLoader:
            with suppress(yaml.YAMLError):  # what is wrong is told by the other, in the same words on every machine
                return _loaded(text, quick)
        return _loaded(text, Careful)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"not YAML: {error}") from None
    except (ValueError, AttributeError, TypeError, OverflowError) as error:  # values that PyYAML does not expect
        raise InputError(f"not YAML: a value cannot be read: {error}") from None


def quick_loader(text: str) -> Any:
    """PyYAML's loader in C where it reads a text as that in Python does, which is stricter with some characters; and
    where nothing can be nested so deep that it is lost in it: each level takes a bracket, or a column of some line.
    """
    import yaml

    brackets = text.count("[") + text.count("{")
    shallow = brackets <= _MAX_DEPTH and all(len(line) < _MAX_LINE for line in text.splitlines())
    plain = shallow and not any(character in text for character in "\t?!")
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader) if plain else yaml.SafeLoader


def _loaded(text: str, loader: Any) -> Any:
    import yaml

    loading = loader(text)
    try:
        node = loading.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > _MAX_VALUES:
            raise yaml.YAMLError(f"more than {_MAX_VALUES:,} values, or one within itself")
        return loading.construct_document(node)
    finally:
        loading.dispose()


def read_own_yaml(text: str) -> Any:
    """YAML that lies in this package: nothing of it is guarded against, and a rank that starts need not wait for it.

    Raises InputError with the line that is wrong.
    """
    import yaml

    try:
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {error}") from None


def whole_numbers(value: Any) -> Any:
    """The same values, with whole numbers that are written as fractions as what they are.

    >>> whole_numbers({"a": [8.0, 0.5, True]})
    {'a': [8, 0.5, True]}
    """
    if isinstance(value, dict):
        return {key: whole_numbers(below) for key, below in value.items()}
    if isinstance(value, list):
        return [whole_numbers(below) for below in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _values(node: Any, known: dict[int, int]) -> int:
    """How many values a node stands for, each alias counted as what it leads to."""
    if id(node) not in known:
        known[id(node)] = _MAX_VALUES + 1  # as long as it is being counted: within itself it has no end
        below = node.value if isinstance(node.value, list) else ()
        nodes = (n for entry in below for n in (entry if isinstance(entry, tuple) else (entry,)))
        known[id(node)] = 1 + sum(_values(n, known) for n in nodes)
    return known[id(node)]
