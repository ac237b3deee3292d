"""What file names say of the whole that they are parts of: ``model-00001-of-00003`` is one of three."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

_OF = re.compile(r"(?P<before>.*?)(?P<number>\d+)(?P<of>[-_. ]*of[-_. ]*)(?P<count>\d+)(?P<after>.*)", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"(?P<before>.*?)(?P<number>\d+)(?P<after>\D*)")
_MOST = 1_000_000


class Part(Struct, frozen=True):
    """The place of one file among ``count``; ``width`` digits write its number."""

    number: int
    count: int
    before: str
    after: str
    width: int

    def sibling(self, number: int) -> str:
        """The name of another part."""
        return f"{self.before}{number:0{self.width}d}{self.after}"

    def __str__(self) -> str:
        return f"part {self.number} of {self.count}"


def part_of(name: str) -> Part | None:
    """What a name says; None where it says nothing, or names the only part of one.

    >>> str(part_of("model-00001-of-00003.safetensors")), part_of("model-00001-of-00001.safetensors")
    ('part 1 of 3', None)
    """
    found = _OF.fullmatch(name.rpartition("/")[2])
    if found is None or not 1 < int(found["count"]) <= _MOST:
        return None
    after = found["of"] + found["count"] + found["after"]
    return Part(int(found["number"]), int(found["count"]), found["before"], after, len(found["number"]))


def lone_parts(paths: Iterable[str], target: str) -> list[str]:
    """Files of which all other parts lack, but one that becomes the same part of the target."""
    sets: dict[tuple[str, str, str], list[tuple[str, Part]]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if part := part_of(name):
            sets.setdefault((folder, part.before, part.after), []).append((path, part))
    made = part_of(target)
    same = (made.number, made.count) if made else None
    lone = [parts[0] for parts in sets.values() if len(parts) == 1]
    return [f"{path}: {part}" for path, part in lone if (part.number, part.count) != same]


class WholeByNames(Struct, frozen=True):
    """Files that by their names make one checkpoint, and the names that lack."""

    names: tuple[str, ...]
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        last = f" … {self.names[-1]}" if len(self.names) > 1 else ""
        return f"{self.names[0]}{last}"


def wholes(names: Iterable[str]) -> list[WholeByNames]:
    """Files of a folder by the checkpoints that their names tell apart.

    >>> [str(whole) for whole in wholes(["a.ckpt", "m-1.ckpt", "m-2.ckpt"])]
    ['a.ckpt', 'm-1.ckpt … m-2.ckpt']
    """
    told: dict[tuple[str, str], list[Part]] = {}
    numbered: dict[tuple[str, str], dict[int, str]] = {}
    found: list[WholeByNames] = []
    for name in sorted(names):
        part = part_of(name)
        number = _LAST_NUMBER.fullmatch(name)
        if part is not None:
            told.setdefault((part.before, part.after.lower()), []).append(part)
        elif number is not None:
            numbered.setdefault((number["before"], number["after"]), {})[int(number["number"])] = name
        else:
            found.append(WholeByNames((name,)))
    found += [_of_told(parts) for parts in told.values()]
    for (before, after), by_number in numbered.items():
        found += _of_numbered(before, after, by_number)
    return sorted(found, key=lambda whole: whole.names)


def _of_told(parts: Sequence[Part]) -> WholeByNames:
    """Most writers count from 1, some from 0."""
    numbers = {part.number for part in parts}
    count = parts[0].count
    wanted = range(count) if 0 in numbers and count not in numbers else range(1, count + 1)
    missing = tuple(parts[0].sibling(n) for n in wanted if n not in numbers)
    return WholeByNames(tuple(part.sibling(part.number) for part in parts), missing)


def _of_numbered(before: str, after: str, by_number: Mapping[int, str]) -> list[WholeByNames]:
    """Numbers from 0 or 1 count parts, and a gap is a part that lacks; others, as of steps, tell checkpoints apart."""
    numbers = sorted(by_number)
    mindspore = before == "part"  # which counts from 0
    gaps = numbers[-1] + 1 - (0 if mindspore else numbers[0]) - len(numbers)
    if not mindspore and (numbers[0] > 1 or len(numbers) == 1 or gaps > len(numbers)):
        return [WholeByNames((name,)) for name in by_number.values()]
    width = min(map(len, by_number.values())) - len(before) - len(after)
    missing = [n for n in range(0 if mindspore else numbers[0], numbers[-1]) if n not in by_number]
    lacking = tuple(f"{before}{n:0{width}d}{after}" for n in missing)
    return [WholeByNames(tuple(by_number[n] for n in numbers), lacking)]
