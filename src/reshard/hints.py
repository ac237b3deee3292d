"""Hints in the words of the tool at hand: they are written with the options of ``convert``, and others have others."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from reshard.errors import ReshardError

_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_OF_TARGET = {"--src-strategy": "--dst-strategy", "--from": "--dst-from"}
_BETWEEN = re.compile(r"(; (?:or )?|, (?:or|then) )")


def suited(hint: str, options: Collection[str], words: Mapping[str, str]) -> str:
    """A hint without the advice that a tool cannot take. A command that it tells in full has options of its own.

    Args:
        options: those that the tool has; all with an underscore are a launcher's, a YAML's or its own.
        words: what it calls options of others.

    >>> suited("check the disk; run again with --resume", [], {})
    'check the disk'
    >>> suited("leave --src-strategy out, or give the folder", [], {"--src-strategy": "src_strategy"})
    'leave src_strategy out, or give the folder'
    >>> suited("the YAML of a job? reshard strategy make --config run.yaml", [], {})
    'the YAML of a job? reshard strategy make --config run.yaml'
    """
    clauses = _BETWEEN.split(hint)
    said = ""
    for between, clause in zip(["", *clauses[1::2]], clauses[::2], strict=True):
        advice, command, rest = clause.partition("reshard ")
        if all("_" in option or option in options or option in words for option in _OPTION.findall(advice)):
            said += (between if said else "") + _OPTION.sub(lambda m: words.get(m[0], m[0]), advice) + command + rest
    return said


@contextmanager
def of_target() -> Iterator[None]:
    """What is wrong with a target that is read, to be compared, is told with the options of the target."""
    try:
        yield
    except ReshardError as error:
        hint = _OPTION.sub(lambda m: _OF_TARGET.get(m[0], m[0]), error.hint)
        raise type(error)(error.message, error.where, hint) from None
