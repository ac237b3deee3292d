"""Arguments as the reference takes them: abbreviations, other releases' spellings, "" and "None" for unset."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence

from reshard.errors import UsageError

_TRUE = ("true", "1", "yes", "y", "t", "on")
_FALSE = ("false", "0", "no", "n", "f", "off", "", "none")


def parser(name: str, description: str, *example: str) -> argparse.ArgumentParser:
    """A parser that takes unambiguous beginnings of options, as the reference's do.

    Args:
        example: options of a command that the help shows.
    """
    shown = " \\\n".join([f"  reshard compat {name}", *(f"    {option}" for option in example)])
    return argparse.ArgumentParser(
        prog=f"reshard compat {name}",
        description=description,
        epilog=f"example:\n{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=True,
    )


def spelled(argv: Iterable[str], spellings: Mapping[str, str]) -> list[str]:
    """Options in the spelling that the parser knows. They are no options of it, so that abbreviations stay unambiguous.

    >>> spelled(["--process_num=2", "--prefix", "a"], {"--process_num": "--transform_process_num"})
    ['--transform_process_num=2', '--prefix', 'a']
    """
    made = []
    for word in argv:
        option, equals, value = word.partition("=")
        made.append(spellings.get(option, option) + equals + value)
    return made


def path(text: str) -> str:
    """A path, or "" for one that is not given.

    >>> path("None"), path("a/b")
    ('', 'a/b')
    """
    return "" if text.strip() in ("", "None") else text


def truth(text: str) -> bool:
    """
    >>> truth("True"), truth("False"), truth("")
    (True, False, False)
    """
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def whole(text: str) -> int | None:
    """A number, or None for one that is not given."""
    return int(text) if path(text) else None


def required(values: Mapping[str, str]) -> None:
    """Raises UsageError naming all options that are not given."""
    absent = [option for option, value in values.items() if not value]
    if absent:
        raise UsageError(f"{', '.join(absent)} must be given")


def parsed(options: argparse.ArgumentParser, argv: Sequence[str], spellings: Mapping[str, str]) -> argparse.Namespace:
    return options.parse_args(spelled(argv, spellings))
