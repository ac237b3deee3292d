"""Values of a tree by their paths: keys of nested dicts and places in lists, joined by dots.

A tree from a pickle may share its parts and may contain itself. What is shared is told under each of its paths, a
cycle is not followed, and a tree that unfolds to far more values than its file could spell out is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reshard.errors import FormatError
from reshard.formats.pickled import Global, Record

_LEAST = 1000
_PER_BYTE = 4
_MAX_DEPTH = 1000
_OPEN = frozenset({Global("argparse", "Namespace"), Global("types", "SimpleNamespace")})
"""Objects that are nothing but their attributes."""

_Children = Iterator[tuple[Any, Any]]


def paths(value: Any, nbytes: int) -> Iterator[tuple[str, Any]]:
    """All that is no container, with its path, in the order of the file; what sets and objects hold is not told.

    Args:
        nbytes: length of the pickle.

    Raises:
        FormatError: nested too deep; a bomb.
    """
    left = _LEAST + _PER_BYTE * nbytes
    top = _children(value)
    if top is None:
        yield "", value
        return
    above: list[tuple[str, int, _Children]] = [("", id(value), top)]
    ways = {id(value)}
    while above:
        path, number, children = above[-1]
        entry = next(children, None)
        if entry is None:
            ways.discard(number)
            above.pop()
            continue
        left -= 1
        if left < 0:
            raise FormatError(f"its pickle of {nbytes:,} bytes unfolds to many times as many values: a bomb")
        key, child = entry
        inner = _children(child)
        name = f"{path}.{_name(key)}" if len(above) > 1 else _name(key)
        if inner is None:
            yield name, child
        elif id(child) not in ways:
            if len(above) == _MAX_DEPTH:
                raise FormatError(f"its pickle is nested more than {_MAX_DEPTH} deep")
            ways.add(id(child))
            above.append((name, id(child), inner))


def _children(value: Any) -> _Children | None:
    if isinstance(value, dict):
        return iter(value.items())
    if isinstance(value, list | tuple):
        return iter(enumerate(value))
    if isinstance(value, Record) and value.factory in _OPEN:
        return iter(value.fields.items())
    return None


def _name(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, tuple):
        return ", ".join(map(str, key))
    return str(key)


def within(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Everything that a value holds, however deep, itself included, each object once; what was ``seen`` is left out."""
    seen = set() if seen is None else seen
    ahead = [value]
    while ahead:
        one = ahead.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, dict):
            ahead += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            ahead += one
        elif isinstance(one, Record):
            ahead += (one.args, one.state, one.items)
