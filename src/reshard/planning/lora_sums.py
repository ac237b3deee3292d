"""What adapters add to each weight, put together in their order."""

from __future__ import annotations

from collections.abc import Iterator
from math import copysign, sqrt

from msgspec import Struct

from reshard.planning.catalog import Tensor
from reshard.planning.lora_values import Combination, Sum, Term


class _Of(Struct, frozen=True):
    """A term and the number of the adapter that it comes from."""

    adapter: int
    term: Term


class LoraSums:
    """Terms and magnitudes by weight, as they are found."""

    def __init__(self) -> None:
        self._terms: dict[str, list[_Of]] = {}
        self._magnitudes: dict[str, Tensor] = {}
        self._adapter = 0

    def begin(self) -> None:
        """What is added from now on is of the next adapter."""
        self._adapter += 1

    def has(self, weight: str) -> bool:
        """Whether this adapter adds to a weight already."""
        return any(each.adapter == self._adapter for each in self._terms.get(weight, ()))

    def add(self, weight: str, term: Term) -> None:
        self._terms.setdefault(weight, []).append(_Of(self._adapter, term))

    def scale(self, weight: str, magnitude: Tensor) -> None:
        self._magnitudes[weight] = magnitude

    def made(self, combination: Combination) -> tuple[dict[str, Sum], list[str]]:
        """The sum of each weight, and what cannot be put together."""
        sums, faults = {}, []
        for weight, terms in self._terms.items():
            several = len({each.adapter for each in terms}) > 1
            magnitude = self._magnitudes.get(weight)
            if magnitude is not None and len(terms) > 1:
                faults.append(f"{magnitude.name}: DoRA scales {weight} by its length, which other factors change")
            if combination == "linear" and (fault := _fault(terms)):
                faults.append(f"{weight}: {fault}")
            elif combination == "linear" and several:
                sums[weight] = Sum(tuple(_crossed(terms)), magnitude)
            else:
                sums[weight] = Sum(tuple(each.term for each in terms), magnitude)
        return sums, faults


def _fault(terms: list[_Of]) -> str:
    if any(each.term.form == "vector" for each in terms):
        return "a bias of the product: adapters with such are put together by cat alone"
    if len({(each.term.form, each.term.factors[1].spec.shape) for each in terms}) > 1:
        return "its factors have several ranks: adapters with such are put together by cat alone"
    return ""


def _crossed(terms: list[_Of]) -> Iterator[Term]:
    """``(Σ √|s| B) @ (Σ ±√|s| A)``, as PEFT's ``linear`` has it, product by product."""
    for one in terms:
        for two in terms:
            b, a = one.term, two.term
            scaling = sqrt(abs(b.scaling)) * copysign(sqrt(abs(a.scaling)), a.scaling)
            yield Term((b.factors[0], a.factors[1]), scaling, b.form)
