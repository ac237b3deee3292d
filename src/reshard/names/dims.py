"""What the dims of a tensor are made of, in the notation of recipes.

``(kv queries+key+value head) hidden``: two dims. The first counts KV groups, in each the query heads, then the key's
head, then the value's, in each the rows of a head. ``+`` joins sections, of which another tensor may be one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import prod

from msgspec import Struct

from reshard.errors import StrategyError

Item = tuple[str, ...]
"""An axis; or several, the sections that lie behind one another."""
Dim = tuple[Item, ...]
Dims = tuple[Dim, ...]

NUMBERED = re.compile(r"\{([a-z]+\+)?([a-z])\}")
"""A number in a name: ``{n}``, or ``{layers+j}`` for one behind others."""
AXIS_OF = {"n": "layers", "j": "mtp", "e": "experts"}
"""What the numbers in names count."""
GIVE_MODEL = "give the model: --model config.json, or the YAML of its run"
"""The hint of what its files tell and names and shapes do not."""
_TOKEN = re.compile(r"\s*([()]|[^\s()]+)")
_NAME = re.compile(r"[a-z_][a-z_0-9]*")


@lru_cache(maxsize=4096)
def parsed(text: str) -> Dims:
    """Raises StrategyError for what is no such notation.

    >>> parsed("(ffn gate+up) hidden")
    ((('ffn',), ('gate', 'up')), (('hidden',),))
    """
    dims: list[Dim] = []
    inside: list[Item] | None = None
    for token in _TOKEN.findall(text):
        if token in "()":
            if (token == "(") is (inside is not None):
                raise StrategyError(f"{text!r}: brackets do not match")
            if inside is not None:
                dims.append(tuple(inside))
            inside = [] if token == "(" else None
            continue
        item = tuple(token.split("+"))
        if not all(_NAME.fullmatch(name) for name in item):
            raise StrategyError(f"{text!r}: {token!r} is no axis")
        if inside is None:
            dims.append((item,))
        else:
            inside.append(item)
    if inside is not None:
        raise StrategyError(f"{text!r}: brackets do not match")
    return tuple(dims)


def shown(dims: Dims) -> str:
    """As it is written.

    >>> shown(parsed("(ffn gate+up) hidden"))
    '(ffn gate+up) hidden'
    """
    texts = (" ".join("+".join(item) for item in dim) for dim in dims)
    return " ".join(f"({text})" if len(dim) != 1 else text for text, dim in zip(texts, dims, strict=True))


def section_of(dims: Dims, name: str) -> Dims:
    """The dims of one section alone."""
    return tuple(tuple((name,) if name in item else item for item in dim) for dim in dims)


class Axes(Struct, frozen=True):
    """Sizes of axes, as far as they are known; ``composed`` says of which others an axis consists.

    ``told``: for messages, what says each size, as "num_attention_heads 32 of config.json".
    """

    sizes: Mapping[str, int]
    composed: Mapping[str, tuple[str, ...]] = {}
    told: Mapping[str, str] = {}

    def atoms(self, name: str) -> tuple[str, ...]:
        """The axes that one consists of, outermost first."""
        below = self.composed.get(name)
        return tuple(atom for axis in below for atom in self.atoms(axis)) if below else (name,)

    def size(self, name: str) -> int | None:
        """None where it is not known."""
        sizes = [self.sizes.get(atom) for atom in self.atoms(name)]
        known = [n for n in sizes if n is not None]
        return prod(known) if len(known) == len(sizes) else None

    def size_of(self, dim: Dim) -> int | None:
        """How many elements a dim has."""
        total = 1
        for item in dim:
            sections = [self.size(name) for name in item]
            known = [n for n in sections if n is not None]
            if len(known) < len(sections):
                return None
            total *= sum(known)
        return total

    def unknown(self, dim: Dim) -> set[str]:
        return {a for item in dim for name in item for a in self.atoms(name) if a not in self.sizes}

    def saying(self, dim: Dim) -> str:
        """What says how large a dim is, for a message."""
        names = dict.fromkeys(atom for item in dim for name in item for atom in self.atoms(name))
        return ", ".join(self.told[name] for name in names if name in self.told)

    def solved(self, dim: Dim, size: int) -> tuple[str, int] | None:
        """The one axis of a dim that is not known, and its size; None where that does not follow from the dim's."""
        unknown = self.unknown(dim)
        if len(unknown) != 1:
            return None
        (axis,) = unknown
        left = size
        within: list[Item] = []
        for item in dim:
            if any(axis in self.atoms(name) for name in item):
                within.append(item)
                continue
            of_item = sum(self.size(name) or 0 for name in item)
            if not of_item or left % of_item:
                return None
            left //= of_item
        if len(within) != 1:
            return None
        return self._of_item(axis, within[0], left)

    def _of_item(self, axis: str, item: Item, size: int) -> tuple[str, int] | None:
        """``k * axis + m`` is the size of an item that joins sections."""
        times = rest = 0
        for name in item:
            atoms = self.atoms(name)
            if atoms.count(axis) > 1:
                return None
            others = prod(self.sizes[a] for a in atoms if a != axis)
            times, rest = (times + others, rest) if axis in atoms else (times, rest + others)
        if not times or (size - rest) % times or size < rest:
            return None
        return axis, (size - rest) // times


class AxisRange(Struct, frozen=True):
    """A place of a tensor: an axis of its view, and the range of it that is meant.

    ``dim``: which of the tensor's own dims it is of.
    """

    label: str
    dim: int
    total: int
    start: int
    size: int


def slots_of(dim: Dim, number: int, axes: Axes, section: str) -> Iterator[AxisRange]:
    """A dim of a view in which a section is a box, and where it lies there; outermost first.

    Raises StrategyError naming an axis whose size is not known, or a section that lies in no view.
    """
    for item in dim:
        if len(item) > 1:
            yield from _section(item, number, axes, section)
            continue
        for atom in axes.atoms(item[0]):
            size = _known(axes, atom)
            yield AxisRange(atom, number, size, 0, size)


def _section(item: Item, number: int, axes: Axes, section: str) -> Iterator[AxisRange]:
    sizes = {name: prod(_known(axes, atom) for atom in axes.atoms(name)) for name in item}
    start = 0
    for name in item:
        if name == section:
            break
        start += sizes[name]
    first, *inner = axes.atoms(section)
    below = prod(_known(axes, atom) for atom in inner)
    total = sum(sizes.values())
    if total % below or start % below:
        raise StrategyError(f"{section} begins at {start} of {total} in {'+'.join(item)}, between two of {below}")
    yield AxisRange(first, number, total // below, start // below, _known(axes, first))
    for atom in inner:
        size = _known(axes, atom)
        yield AxisRange(atom, number, size, 0, size)


def _known(axes: Axes, atom: str) -> int:
    size = axes.sizes.get(atom)
    if size is None:
        raise StrategyError(f"the size of {atom} is not known", hint=GIVE_MODEL)
    return size
