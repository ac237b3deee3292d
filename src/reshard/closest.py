"""Did you mean: what somebody may have wanted who wrote a word that nothing is called."""

from __future__ import annotations

import re
from collections.abc import Iterable


def closest(word: str, known: Iterable[str], *, most: int = 3, likeness: float = 0.6) -> list[str]:
    """The known words nearest to one that is not known, the nearest first; none that is less alike (0 to 1).

    >>> closest("convrt", ["convert", "inspect"])
    ['convert']
    """
    from difflib import get_close_matches

    return get_close_matches(word, list(known), most, likeness)


def did_you_mean(words: Iterable[str]) -> str:
    """
    >>> did_you_mean(["convert", "inspect"]), did_you_mean([])
    ("did you mean 'convert' or 'inspect'?", '')
    """
    said = " or ".join(repr(word) for word in words)
    return f"did you mean {said}?" if said else ""


def closest_pattern(pattern: str, names: Iterable[str]) -> str:
    """The regular expression with each word that is in no name replaced by the nearest that is; "" without one.

    >>> closest_pattern("layers.*querry", ["layers.0.query.weight", "lm_head.weight"])
    'layers.*query'
    """
    known = {word for name in names for part in name.split(".") for word in (part, *part.split("_"))}
    changed = pattern
    for word in re.findall(r"(?<!\\)\b[A-Za-z]\w{2,}", pattern):
        if not any(word in name for name in known):
            near = closest(word, known)
            if not near:
                return ""
            changed = changed.replace(word, near[0])
    return changed if changed != pattern else ""
