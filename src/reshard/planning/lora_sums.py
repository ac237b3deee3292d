"""What adapters add to each weight, put together in their order."""

from __future__ import annotations

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
            magnitude = self._magnitudes.get(weight)
            if magnitude is not None and len(terms) > 1:
                faults.append(f"{magnitude.name}: DoRA scales {weight} by its length, which other factors change")
            if combination == "linear" and self._adapter > 1:
                if fault := _fault(terms):
                    faults.append(f"{weight}: {fault}")
                    continue
                terms = _crossed(terms)
            sums[weight] = Sum(tuple(each.term for each in terms), magnitude)
        return sums, faults


def _fault(terms: list[_Of]) -> str:
    if any(each.term.form == "vector" for each in terms):
        return "a bias of the product: adapters with such are put together by cat alone"
    if any(len({each.term.factors[1].spec.shape for each in layer}) > 1 for layer in _layers(terms)):
        return "its factors have several ranks: adapters with such are put together by cat alone"
    return ""


def _layers(terms: list[_Of]) -> list[list[_Of]]:
    """The terms of each layer: an embedding and the head that is tied to it have one weight, each in its own form."""
    forms = dict.fromkeys(each.term.form for each in terms)
    return [[each for each in terms if each.term.form == form] for form in forms]


def _crossed(terms: list[_Of]) -> list[_Of]:
    """``(Σ √|s| B) @ (Σ ±√|s| A)`` of each layer, as PEFT's ``linear`` has it, product by product."""
    made = []
    for layer in _layers(terms):
        pairs = [(b, a) for b in layer for a in layer]
        made += layer if len(layer) == 1 else [_Of(a.adapter, _product(b.term, a.term)) for b, a in pairs]
    return made


def _product(b: Term, a: Term) -> Term:
    scaling = sqrt(abs(b.scaling)) * copysign(sqrt(abs(a.scaling)), a.scaling)
    return Term((b.factors[0], a.factors[1]), scaling, b.form)
