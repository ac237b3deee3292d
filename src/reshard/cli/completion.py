"""What a shell completes after an option that takes one of a few words."""

from __future__ import annotations

from collections.abc import Callable


def one_of(*words: str) -> Callable[[str], list[str]]:
    """
    >>> one_of("natural", "name", "mtime")("na")
    ['natural', 'name']
    """

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete
