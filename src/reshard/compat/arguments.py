"""Arguments as the reference takes them: abbreviations, other releases' spellings, "" and "None" for unset."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from reshard.errors import UsageError

_TRUE = ("true", "1", "yes", "y", "t", "on")
_FALSE = ("false", "0", "no", "n", "f", "off")


class Parser:
    """The options of a tool. Unambiguous beginnings of them are taken, as by the reference's tools.

    Args:
        example: options of a command that the help shows.
        spellings: of other releases and of the documentation → ours. They are no options of the parser, so that
            abbreviations stay unambiguous.
    """

    def __init__(self, name: str, description: str, example: Iterable[str], spellings: Mapping[str, str]) -> None:
        shown = " \\\n".join([f"  reshard compat {name}", *(f"    {option}" for option in example)])
        self._spellings = spellings
        self._parser = argparse.ArgumentParser(
            prog=f"reshard compat {name}",
            description=description,
            epilog=f"example:\n{shown}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=True,
        )

    def add(self, option: str, default: object = "", kind: Callable[[str], object] = str, **shown: Any) -> None:
        """An option with one value; "" and "None" mean that it is not given."""

        def value(text: str) -> object:
            return default if text.strip() in ("", "None") else kind(text)

        value.__name__ = kind.__name__  # as errors call it
        self._parser.add_argument(option, default=default, type=value, **shown)

    def flag(self, option: str, **shown: Any) -> None:
        """An option without a value."""
        self._parser.add_argument(option, action="store_true", **shown)

    def parse(self, argv: Iterable[str]) -> argparse.Namespace:
        return self._parser.parse_args(spelled(argv, self._spellings))


def spelled(argv: Iterable[str], spellings: Mapping[str, str]) -> list[str]:
    """Options in the spelling that the parser knows.

    >>> spelled(["--process_num=2", "--prefix", "a"], {"--process_num": "--transform_process_num"})
    ['--transform_process_num=2', '--prefix', 'a']
    """
    made = []
    for word in argv:
        option, equals, value = word.partition("=")
        made.append(spellings.get(option, option) + equals + value)
    return made


def truth(text: str) -> bool:
    """
    >>> truth("True"), truth("False")
    (True, False)
    """
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def required(values: Mapping[str, str]) -> None:
    """Raises UsageError naming all options that are not given."""
    absent = [option for option, value in values.items() if not value]
    if absent:
        raise UsageError(f"{', '.join(absent)} must be given")
