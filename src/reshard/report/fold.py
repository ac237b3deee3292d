"""Names that differ in their numbers only, as one pattern and the numbers that there are."""

from __future__ import annotations

from collections.abc import Iterable

from reshard.drawing import spans
from reshard.planning.names import layer_numbers, layer_pattern
from reshard.report.values import FoldedNames

Numbers = tuple[int, ...]


def pattern_of(name: str) -> tuple[str, Numbers]:
    """The pattern of a name and its numbers; a name that could not be put together again is its own pattern.

    >>> pattern_of("layers.7.experts.12.w"), pattern_of("layers.07.w")
    (('layers.#.experts.#.w', (7, 12)), ('layers.07.w', ()))
    """
    words = layer_numbers(name)
    if "#" in name or any(str(int(w)) != w for w in words):
        return name, ()
    return layer_pattern(name), tuple(map(int, words))


def numbers_text(found: Iterable[Numbers]) -> str:
    """Sets of numbers whose products are exactly those given.

    >>> numbers_text([(0,), (1,), (4,)]), numbers_text([(0, 0), (0, 1), (1, 0), (1, 1), (2, 5)])
    ('0-1,4', '0-1.0-1|2.5')
    """
    return "|".join(_alternatives(sorted(set(found))))


def _alternatives(found: list[Numbers]) -> list[str]:
    if not found or not found[0]:
        return []
    if len(found[0]) == 1:
        return [spans(n for (n,) in found)]
    rests: dict[int, list[Numbers]] = {}
    for first, *rest in found:
        rests.setdefault(first, []).append(tuple(rest))
    firsts: dict[tuple[str, ...], list[int]] = {}
    for first, those in rests.items():
        firsts.setdefault(tuple(_alternatives(those)), []).append(first)
    return [f"{spans(numbers)}.{rest}" for alternatives, numbers in firsts.items() for rest in alternatives]


def folded_names(names: Iterable[tuple[str, str]]) -> tuple[FoldedNames, ...]:
    """Pairs of a name and its name in the source, by pattern in the order of their first. A name that holds a # of its
    own is apart from those that a pattern stands for.
    """
    found: dict[tuple[str, str, int], list[Numbers]] = {}
    for name, source_name in names:
        pattern, numbers = pattern_of(name)
        was = "" if name == source_name else pattern_of(source_name)[0]
        found.setdefault((pattern, was, len(numbers)), []).append(numbers)
    return tuple(
        FoldedNames(readable(pattern), numbers_text(numbers), len(numbers), readable(was))
        for (pattern, was, _), numbers in found.items()
    )


def readable(text: str) -> str:
    """Text that JSON can hold: what is no Unicode, as in odd file names, is replaced."""
    return text.encode("utf-8", "replace").decode()
