"""What a checkpoint lacks: parts of what is fused or stacked, and tensors that other layers have."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain

from reshard.names.dims import AXIS_OF
from reshard.names.matching import NameMatch
from reshard.names.recipe import ALONE, Rule

Groups = Mapping[tuple[object, ...], list[tuple[NameMatch, str]]]


class Lacking:
    """Looks for what is not there.

    Args:
        sizes: how many layers and experts there should be.
        excluded: names that need not be there.
    """

    def __init__(self, rules: Sequence[Rule], sizes: Mapping[str, int], excluded: Container[str], *, hub: bool) -> None:
        self._rules = rules
        self._sizes = sizes
        self._excluded = excluded
        self._hub = hub

    def parts(self, groups: Groups) -> Iterator[str]:
        """A fault for each part that is missing of a tensor that others are there of."""
        for members in groups.values():
            first, example = members[0]
            if first.factor:
                continue
            rule = first.rule
            sides = rule.sides(hub=self._hub)
            experts = range(self._sizes.get("experts", 0)) if self._stacks(rule) else (first.numbers.get("e"),)
            there = {(found.section, found.numbers.get("e")) for found, _ in members}
            for section, side in sides.items():
                for e in experts:
                    if (section, e) not in there:
                        numbers = first.numbers if e is None else {**first.numbers, "e": e}
                        yield f"{first.state}{side.called(numbers, self._sizes)}: missing, beside {example}"

    def factors(self, groups: Groups) -> Iterator[str]:
        """A fault for each LoRA factor whose other one is not there."""
        pairs: dict[tuple[object, ...], dict[str, str]] = {}
        for found, name in chain.from_iterable(groups.values()):
            if found.factor:
                key = (found.rule.number, found.section, *found.numbers.items())
                pairs.setdefault(key, {})[found.factor] = name
        for there in pairs.values():
            if len(there) == 1:
                yield f"{next(iter(there.values()))}: its other factor is not there"

    def _stacks(self, rule: Rule) -> bool:
        """Whether what is read has one tensor an expert, of which one is made."""
        return rule.stacked and any(of == "e" for of, _ in next(iter(rule.sides(hub=self._hub).values())).numbers)

    def tensors(self, groups: Groups) -> Iterator[str]:
        """A fault for each tensor that a layer should have and has not."""
        there: dict[int, set[int | None]] = {}
        for members in groups.values():
            found = members[0][0]
            if not found.state and not found.factor:
                there.setdefault(found.rule.number, set()).add(found.numbers.get(found.rule.counts))
        blocks: dict[tuple[str, str], dict[str, list[Rule]]] = {}
        for rule in self._rules:
            if not rule.copy_of and not (rule.tied and rule.number not in there):
                blocks.setdefault((rule.counts, self._place(rule)), {}).setdefault(rule.kind, []).append(rule)
        for (counts, _), kinds in blocks.items():
            everywhere: set[int | None] = set(range(self._sizes.get(AXIS_OF[counts], 0))) if counts else {None}
            yield from self._of_block(kinds, everywhere, there)

    def further(self, absent: Sequence[str], there: Iterable[str]) -> list[str]:
        """How names of multi-token layers begin, where faults tell of them and none is there."""
        sides = [side for r in self._rules if r.counts == "j" for side in r.sides(hub=self._hub).values()]
        begins = {side.beginning(j, self._sizes) for j in range(self._sizes["mtp"]) for side in sides}
        if not absent or any(name.startswith(tuple(begins)) for name in there):
            return []
        return sorted(begin for begin in begins if any(fault.startswith(begin) for fault in absent))

    def _place(self, rule: Rule) -> str:
        """What distinguishes blocks of which every layer has one: those with kinds are one place together."""
        if rule.kind:
            return "kinds"
        return str(rule.block)

    def _of_block(
        self, kinds: Mapping[str, list[Rule]], everywhere: set[int | None], there: Mapping[int, set[int | None]]
    ) -> Iterator[str]:
        of_kind = {
            kind: set(
                chain.from_iterable(there.get(r.number, ()) for r in rules if len(kinds) == 1 or self._only(r, kinds))
            )
            for kind, rules in kinds.items()
        }
        for kind, rules in kinds.items():
            places = everywhere if len(kinds) == 1 else of_kind[kind]
            for rule, lacks in _wanted(rules, places, there):
                for number in sorted(lacks, key=lambda n: n or 0):
                    if (fault := self._fault(rule, number)) is not None:
                        yield fault
        if len(kinds) > 1:
            for number in sorted(everywhere - set().union(*of_kind.values()), key=lambda n: n or 0):
                fault = self._fault(next(iter(kinds.values()))[0], number)
                if fault is not None:
                    yield fault

    def _only(self, rule: Rule, kinds: Mapping[str, list[Rule]]) -> bool:
        """Whether no rule of another kind has the same names."""
        mine = {side.pattern for side in rule.sides(hub=self._hub).values()}
        others = (r for kind, rules in kinds.items() if kind != rule.kind for r in rules)
        return not any(side.pattern in mine for r in others for side in r.sides(hub=self._hub).values())

    def _fault(self, rule: Rule, number: int | None) -> str | None:
        numbers = {rule.counts: number} if number is not None else {}
        names = []
        for side in rule.sides(hub=self._hub).values():
            experts = range(self._sizes.get("experts", 0)) if any(of == "e" for of, _ in side.numbers) else (None,)
            for e in experts:
                more = {} if e is None else {"e": e}
                names.append(side.called({**numbers, **more}, self._sizes))
        left = [name for name in names if name not in self._excluded]
        return f"{left[0]}: not there" if left else None


def _wanted(
    rules: Sequence[Rule], places: set[int | None], there: Mapping[int, set[int | None]]
) -> Iterator[tuple[Rule, set[int | None]]]:
    """Rules, and where their tensors should be and are not."""
    of_word: dict[str, set[int | None]] = {}
    of_set: dict[str, list[Rule]] = {}
    for rule in rules:
        word = rule.optional if rule.optional != ALONE else str(rule.number)
        of_word.setdefault(word, set()).update(there.get(rule.number, ()))
        if " of " in word:
            of_set.setdefault(word.partition(" of ")[2], []).append(rule)
    for rule in rules:
        word = rule.optional if rule.optional != ALONE else str(rule.number)
        if not word or of_word[word]:
            yield rule, places - there.get(rule.number, set())
    for several in of_set.values():
        yield several[0], places - set().union(*(of_word[rule.optional] for rule in several))
