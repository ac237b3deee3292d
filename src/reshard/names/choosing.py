"""In which of several ways tensors are kept: what names leave possible, shapes, model files and the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.errors import UsageError
from reshard.names.dims import AXIS_OF
from reshard.names.matching import lora_of, names_of
from reshard.names.recipe import Rule
from reshard.names.settings import Known, axes_of, style_of
from reshard.names.wishes import Asked
from reshard.planning.catalog import Tensor
from reshard.planning.names import layer_pattern, weight_of_state

_SeenRules = Sequence[tuple[str, list[tuple[Rule, str]]]]
"""A name of each pattern, with the rules that may be its."""


class Choosing:
    """Decides on the styles of what is read, or of what is made of it.

    Args:
        sizes: how many layers and experts there are.
    """

    def __init__(self, tensors: Mapping[str, Tensor], known: Known, sizes: Mapping[str, int], *, hub: bool) -> None:
        self._tensors = tensors
        self._known = known
        self._recipe = known.recipe
        self._sizes = sizes
        self._hub = hub

    def chosen(self, asked: Asked) -> tuple[dict[str, str], list[str]]:
        """The value of each style: by the names that are there, where these tell; and a word on each that is told."""
        chosen: dict[str, str] = {}
        warnings = []
        names = names_of(self._recipe, hub=self._hub)
        by_pattern = {layer_pattern(name): name for name in self._tensors}
        seen = [(name, list(names.rules(name))) for name in by_pattern.values()]
        for style in self._recipe.styles:
            values, example = self._possible(style, seen, chosen)
            if not values:
                continue
            reading = "" if self._hub else example
            chosen[style], why = style_of(self._known, style, values, asked, reading=reading)
            if why and len(values) > 1:
                told = "the convention's own" if why == "default" else f"by {why}"
                warnings.append(f"{style}: {chosen[style]}, {told}")
        self._refuse_half(chosen, asked)
        return chosen, warnings

    def _refuse_half(self, chosen: Mapping[str, str], asked: Asked) -> None:
        """Raises UsageError where one of two styles is to be fused that a model fuses together."""
        for style, kind in self._recipe.styles.items():
            both = (style, kind.fused_with)
            if not (self._hub and chosen.keys() >= {*both} and any(map(asked.of, both))):
                continue
            own, other = sorted(both, key=lambda s: chosen[s] != self._recipe.styles[s].default)
            if chosen[own] == self._recipe.styles[own].default and chosen[other] != self._recipe.styles[other].default:
                raise UsageError(
                    f"{asked.option(other)} {chosen[other]} alone: {self._recipe.convention} models of "
                    f"{self._recipe.name} that fuse one fuse the other, too",
                    hint=f"add {asked.option(own)}, or leave {asked.option(other)} out",
                )

    def _possible(self, style: str, seen: _SeenRules, chosen: Mapping[str, str]) -> tuple[list[str], str]:
        """The values under which every name has a rule, and a name that the style is about."""
        values = dict.fromkeys(r.styles[style] for r in self._recipe.rules if style in r.styles)
        about, example = set(values), ""
        for name, rules in seen:
            live = [rule for rule, _ in rules if all(chosen.get(s, v) == v for s, v in rule.styles.items())]
            if live and all(style in rule.styles for rule in live):
                about &= {rule.styles[style] for rule in live}
                example = example or name
        if not example:
            return [], ""
        lora = all(lora_of(weight_of_state(name), hub=self._hub)[0] for name, _ in seen)
        left = [v for v in values if v in about]
        whole = [v for v in left if lora or self._needs(style, v, seen, chosen)]
        suiting = [v for v in whole if lora or self._suits(style, v, seen)]
        return suiting or whole or left, example  # where none is whole, what lacks is told

    def _needs(self, style: str, value: str, seen: _SeenRules, chosen: Mapping[str, str]) -> bool:
        """Whether what a value of a style cannot do without is there."""
        there = {(rule.number, section) for _, rules in seen for rule, section in rules}
        for rule in self._recipe.rules:
            apart = any(chosen.get(s) != v for s, v in rule.styles.items() if s != style)
            absent = rule.counts and not self._sizes[AXIS_OF[rule.counts]]
            if rule.styles.get(style) != value or rule.optional or rule.kind or apart or absent:
                continue
            if not self._known.evaluated(rule.when):
                continue
            if not any((rule.number, section) in there for section in rule.sides(hub=self._hub)):
                return False
        return True

    def _suits(self, style: str, value: str, seen: _SeenRules) -> bool:
        """Whether the shapes of tensors are those that a value of a style would give them, as far as sizes are told."""
        axes = axes_of(self._known, self._sizes)
        for name, rules in seen:
            shape = self._tensors[name].spec.shape
            sides = [rule.sides(hub=self._hub)[section] for rule, section in rules if rule.styles.get(style) == value]
            dims = [side.of_ndim(len(shape)) for side in sides]
            if dims and not any(
                all(axes.size_of(d) in (None, n) for d, n in zip(of, shape, strict=False)) for of in dims
            ):
                return False
        return True
