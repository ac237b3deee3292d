"""Words and numbers as people write and read them."""

from __future__ import annotations

import re

from reshard.errors import UsageError

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {_letter: 1024**_power, _letter + "iB": 1024**_power, _letter + "B": 1000**_power}


def parse_nbytes(text: str, option: str) -> int:
    """A number of bytes: ``5GiB`` and ``5G`` are powers of 1024, ``5GB`` of 1000. Raises UsageError.

    >>> parse_nbytes("1.5KiB", "--max-rate"), parse_nbytes("2MB", "--max-rate")
    (1536, 2000000)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = next((u for u in _UNITS if found and u.lower() == found[2].lower()), None)
    if found is None or unit is None:
        raise UsageError(f"{option}: {text!r} is not a size", hint="for example 500MiB or 5GiB")
    nbytes = int(float(found[1]) * _UNITS[unit])
    if nbytes < 1:
        raise UsageError(f"{option}: {text!r} is no room for anything", hint="for example 500MiB or 5GiB")
    return nbytes


def parse_ranks(text: str) -> frozenset[int]:
    """Ranks as ``0-7,12``. Raises UsageError.

    >>> sorted(parse_ranks("0-2,5"))
    [0, 1, 2, 5]
    """
    ranks: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise UsageError(f"{text!r} does not name ranks", hint="for example 0-7,12")
        last = int(found[2] or found[1])
        if last - int(found[1]) > 1 << 20:
            raise UsageError(f"{text!r} names more ranks than any job has")
        ranks.update(range(int(found[1]), last + 1))
    return frozenset(ranks)


def parse_rename(text: str) -> tuple[str, str]:
    """``RE=>NAME``. Raises UsageError."""
    pattern, arrow, replacement = text.partition("=>")
    if not arrow:
        raise UsageError(f"{text!r} lacks '=>'", hint=r"for example --rename '^model\.=>'")
    return pattern, replacement


def shown_nbytes(nbytes: float) -> str:
    """
    >>> shown_nbytes(1536), shown_nbytes(3)
    ('1.5 KiB', '3 B')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} TiB"


def shown_seconds(seconds: float) -> str:
    """
    >>> shown_seconds(0.25), shown_seconds(75)
    ('0.2 s', '1 min 15 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
