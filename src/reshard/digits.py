"""Numbers that a small file, an environment or an option spells in digits."""

from __future__ import annotations


def number_in(text: str) -> int | None:
    """The number that 1 to 18 ASCII digits spell; None for all else, of which ``isdigit`` takes what ``int`` does not.

    >>> number_in("0010"), number_in(""), number_in("-1"), number_in("²"), number_in("9" * 5000)
    (10, None, None, None, None)
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None
