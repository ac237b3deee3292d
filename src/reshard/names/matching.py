"""Which rule each name of a checkpoint belongs to, and what lacks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

from msgspec import Struct

from reshard.names.dims import AXIS_OF, shown
from reshard.names.recipe import Dropped, Recipe, RecipeTensor, Rule
from reshard.names.settings import Known
from reshard.planning.catalog import Tensor
from reshard.planning.names import layer_numbers, layer_pattern, weight_of_state

_LORA = (
    (re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight"), "hf"),
    (re.compile(r"(.+)\.(?:(?:mindpet|tk)_delta_)?lora_([ab])"), "own"),
)


class NameMatch(Struct, frozen=True):
    """What a name is: the state (``adam_m.``) or LoRA factor (``a``, ``b``) of a rule's tensor, or that itself.

    ``numbers``: what the name counts, as {"n": layer}.
    """

    rule: Rule
    section: str
    numbers: Mapping[str, int]
    state: str = ""
    factor: str = ""

    @property
    def group(self) -> tuple[object, ...]:
        """What all parts of one tensor of the other side share."""
        whole = tuple(item for item in self.numbers.items() if not (self.rule.stacked and item[0] == "e"))
        return self.rule.number, whole, self.state, self.factor


class Names:
    """The rules of one side of a recipe, by name."""

    def __init__(self, recipe: Recipe, rules: Iterable[Rule], *, hub: bool) -> None:
        self._hub = hub
        self._dropped = [(re.compile(d.match), d) for d in recipe.dropped]
        self._by_pattern: dict[str, list[tuple[Rule, str]]] = {}
        for rule in rules:
            for section, side in rule.sides(hub=hub).items():
                self._by_pattern.setdefault(side.pattern, []).append((rule, section))

    def rules(self, name: str) -> Iterator[tuple[Rule, str]]:
        """The rules that may be a tensor's, and the section of each that it is."""
        yield from self._of_weight(weight_of_state(name))[2]

    def found(self, name: str, sizes: Mapping[str, int]) -> NameMatch | None:
        """The rule of a name; of those that differ in what they count, the one whose count it is."""
        own = weight_of_state(name)
        weight, factor, rules = self._of_weight(own)
        counts = [int(n) for n in layer_numbers(weight)]
        for rule, section in rules:
            numbers = _numbers(rule.sides(hub=self._hub)[section], counts, sizes)
            if numbers is not None:
                return NameMatch(rule, section, numbers, name[: len(name) - len(own)], factor)
        return None

    def _of_weight(self, name: str) -> tuple[str, str, Sequence[tuple[Rule, str]]]:
        """A weight, which LoRA factor of it the name is or "", and the rules that may be its."""
        rules = self._by_pattern.get(layer_pattern(name))
        if rules is not None:
            return name, "", rules
        weight, factor = lora_of(name, hub=self._hub)
        return weight, factor, self._by_pattern.get(layer_pattern(weight), []) if weight else []

    def dropped(self, name: str) -> Dropped | None:
        return next((d for pattern, d in self._dropped if pattern.fullmatch(name)), None)


@cache
def names_of(recipe: Recipe, *, hub: bool) -> Names:
    """All rules of one side of a recipe."""
    return Names(recipe, recipe.rules, hub=hub)


def lora_of(name: str, *, hub: bool) -> tuple[str, str]:
    """The weight that a LoRA factor belongs to, and which it is, ``a`` or ``b``; ("", "") for no factor."""
    for pattern, side in _LORA:
        found = pattern.fullmatch(name)
        if found and (side == "hf") is hub:
            return f"{found[1]}.weight", found[2].lower()
    return "", ""


def lora_name(weight: str, factor: str, *, hub: bool) -> str:
    """What a side calls a LoRA factor of a weight.

    >>> lora_name("model.layers.0.wq.weight", "a", hub=False), lora_name("l.q_proj.weight", "b", hub=True)
    ('model.layers.0.wq.lora_a', 'base_model.model.l.q_proj.lora_B.weight')
    """
    base = weight.removesuffix(".weight")
    return f"base_model.model.{base}.lora_{factor.upper()}.weight" if hub else f"{base}.lora_{factor}"


def _numbers(side: RecipeTensor, counts: list[int], sizes: Mapping[str, int]) -> dict[str, int] | None:
    """What a name counts; None where there are not so many of that."""
    numbers: dict[str, int] = {}
    for (of, first), count in zip(side.numbers, counts, strict=True):
        number = count - (sizes.get(first, 0) if first else 0)
        if not 0 <= number < sizes.get(AXIS_OF[of], number + 1):
            return None
        numbers[of] = number
    return numbers


def fits(recipe: Recipe, names: Iterable[str], *, hub: bool) -> tuple[int, list[str]]:
    """How many names a recipe knows, and those that it does not."""
    known = names_of(recipe, hub=hub)
    by_pattern: dict[str, bool] = {}
    unknown, count = [], 0
    for name in names:
        pattern = layer_pattern(name)
        if pattern not in by_pattern:
            by_pattern[pattern] = next(known.rules(name), None) is not None or known.dropped(name) is not None
        if by_pattern[pattern]:
            count += 1
        else:
            unknown.append(name)
    return count, unknown


def counterparts(recipe: Recipe, names: Iterable[str], *, hub: bool) -> frozenset[tuple[str, str, str]]:
    """What a recipe makes of one side's names on the other: name, counterpart and its dims, as patterns."""
    known = names_of(recipe, hub=hub)
    by_pattern = {layer_pattern(name): name for name in names}
    return frozenset(
        (pattern, side.pattern, ", ".join(map(shown, side.dims)))
        for pattern, name in by_pattern.items()
        for rule, _ in known.rules(name)
        for side in rule.sides(hub=not hub).values()
    )


def counts_of(known: Known, tensors: Mapping[str, Tensor], *, hub: bool) -> dict[str, int]:
    """How many layers, further layers and experts there are: as the model's files say, else as names count."""
    sizes = {axis: known.values[axis] for axis in AXIS_OF.values() if type(known.values.get(axis)) is int}
    if len(sizes) == len(AXIS_OF):
        return sizes
    names = names_of(known.recipe, hub=hub)
    highest: dict[str, int] = {}
    behind: list[int] = []
    for name in tensors:
        weight = weight_of_state(name)
        rules = list(names.rules(name))
        counts = [int(n) for n in layer_numbers(weight)]
        sides = [rule.sides(hub=hub)[section] for rule, section in rules]
        if sides and all(first for side in sides for _, first in side.numbers[:1]):
            behind += counts[:1]
            continue
        for side in sides[:1]:
            for (of, _), count in zip(side.numbers, counts, strict=True):
                highest[of] = max(highest.get(of, -1), count)
    sizes.setdefault("layers", min(behind) if behind else highest.get("n", -1) + 1)
    further = max(behind) + 1 - sizes["layers"] if behind else highest.get("j", -1) + 1
    sizes.setdefault("mtp", further)
    sizes.setdefault("experts", highest.get("e", -1) + 1)
    if not sizes["experts"]:
        del sizes["experts"]
    return sizes
