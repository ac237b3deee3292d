"""The small language of rules files: arithmetic, comparison and choice over named values.

It is a part of Python's expression syntax and means what it means there, but nothing is executed: no attributes, no
indexing, no calls but those that the names offer.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from reshard.errors import StrategyError

KnownValues = Mapping[str, Any]

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "int": int}


def evaluate(expression: object, names: KnownValues) -> Any:
    """What an expression gives; a value that is not text stands for itself.

    Raises StrategyError with the expression and what is wrong in it: syntax, an unknown name, a value that is not
    given.

    >>> evaluate("2 * ffn if gated else ffn", {"ffn": 96, "gated": True})
    192
    """
    if not isinstance(expression, str):
        return expression
    try:
        return _value(parse(expression), names)
    except StrategyError as error:
        raise StrategyError(f"{expression!r}: {error.message}", error.where, error.hint) from None
    except (TypeError, ValueError, ZeroDivisionError, OverflowError, RecursionError) as error:
        missing = sorted(name for name in names_in(expression) if names.get(name) is None)
        given = f"not given: {', '.join(missing)}" if missing else str(error)
        raise StrategyError(f"{expression!r} has no value: {given}") from None


@lru_cache(maxsize=4096)
def parse(expression: str) -> ast.expr:
    """Raises StrategyError."""
    try:
        return ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise StrategyError(f"not an expression: {error.args[0] if error.args else error}") from None


def names_in(expression: object) -> frozenset[str]:
    """The names that an expression reads.

    >>> sorted(names_in("max(dp, cp) * mp"))
    ['cp', 'dp', 'mp']
    """
    if not isinstance(expression, str):
        return frozenset()
    return _names_in(expression)


@lru_cache(maxsize=4096)
def _names_in(expression: str) -> frozenset[str]:
    found = {node.id for node in ast.walk(parse(expression)) if isinstance(node, ast.Name)}
    return frozenset(found - _FUNCTIONS.keys())


def _value(node: ast.expr, names: KnownValues) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise StrategyError(f"unknown name {node.id!r}", hint=f"known: {', '.join(sorted(names))}")
        return names[node.id]
    compound = _COMPOUND.get(type(node))
    if compound is None:
        raise StrategyError(f"{ast.unparse(node)!r} is not allowed here")
    return compound(node, names)


def _arithmetic(node: ast.BinOp, names: KnownValues) -> Any:
    if type(node.op) not in _BINARY:
        raise StrategyError(f"{ast.unparse(node)!r}: only + - * // % are known")
    return _BINARY[type(node.op)](_value(node.left, names), _value(node.right, names))


def _negated(node: ast.UnaryOp, names: KnownValues) -> Any:
    value = _value(node.operand, names)
    if isinstance(node.op, ast.Not):
        return not value
    if isinstance(node.op, ast.USub):
        return -value
    raise StrategyError(f"{ast.unparse(node)!r} is not allowed here")


def _chosen(node: ast.IfExp, names: KnownValues) -> Any:
    return _value(node.body if _value(node.test, names) else node.orelse, names)


def _either(node: ast.BoolOp, names: KnownValues) -> Any:
    """``and`` and ``or``: the operand that decides, the rest unread."""
    stop = isinstance(node.op, ast.Or)
    value = None
    for operand in node.values:
        value = _value(operand, names)
        if bool(value) is stop:
            return value
    return value


def _compared(node: ast.Compare, names: KnownValues) -> bool:
    left = _value(node.left, names)
    for kind, operand in zip(node.ops, node.comparators, strict=True):
        right = _value(operand, names)
        if not _COMPARE[type(kind)](left, right):
            return False
        left = right
    return True


def _called(node: ast.Call, names: KnownValues) -> Any:
    called = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
    function = _FUNCTIONS.get(called) or names.get(called)
    if not callable(function) or node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
        raise StrategyError(f"no function {called!r}")
    return function(*[_value(argument, names) for argument in node.args])


_COMPOUND: dict[type[ast.expr], Callable[[Any, KnownValues], Any]] = {
    ast.BinOp: _arithmetic,
    ast.UnaryOp: _negated,
    ast.IfExp: _chosen,
    ast.BoolOp: _either,
    ast.Compare: _compared,
    ast.Call: _called,
}
