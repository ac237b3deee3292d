"""What is known of a model on one side: its settings, its sizes, and which of several ways its tensors are kept in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError, PlanError, StrategyError, UsageError
from reshard.names.dims import Axes, Dim
from reshard.names.model import ModelFile
from reshard.names.recipe import Recipe
from reshard.names.wishes import Asked
from reshard.strategy.expression import evaluate, names_in

_OWN = ("vocab", "tied", "untied", "dtype")
"""Settings in which the two sides may differ."""
_FLAGS = frozenset({
    "tied", "untied", "concat", "mlp_concat", "contiguous", "contiguous_r16", "interleaved", "latent_concat",
    "grouped_gemm", "rearranged",
})  # fmt: skip
_SIZES = frozenset({
    "layers", "mtp", "hidden", "vocab", "heads", "kv", "head", "ffn", "experts", "expert_ffn", "dense_layers",
    "shared_experts", "q_rank", "kv_rank", "nope", "rope", "value_head",
})  # fmt: skip
"""Settings of all recipes by what they are; a text that stands in place of one would count as true, or as not there."""
_COMPOSED = re.compile(r"[a-z_0-9]+( [a-z_0-9]+)+")


class Known(Struct, frozen=True):
    """Attributes:
    values: settings by name, None where nothing tells.
    told: for messages, which key of which file tells a setting.
    files: those that were asked, the side's own first.
    """

    recipe: Recipe
    values: Mapping[str, Any]
    told: Mapping[str, str]
    files: tuple[ModelFile, ...]

    @property
    def tied(self) -> bool | None:
        """Whether they say that embedding and output layer are one."""
        if isinstance(self.values.get("tied"), bool):
            return bool(self.values["tied"])
        untied = self.values.get("untied")
        return not untied if isinstance(untied, bool) else None

    def own_vocab(self, *, hub: bool) -> tuple[str, int] | None:
        """The rows that the side's own file says the vocabulary has, and what says it."""
        for file in self.files:
            said = file.said(self.recipe, "vocab")
            if file.hub is hub and said is not None:
                return f"{said[0]} {said[1]} of {file.where.rsplit('/', 1)[-1]}", int(said[1])
        return None

    def evaluated(self, expression: object) -> Any:
        return evaluate(expression, self.values)


def known(recipe: Recipe, files: Sequence[ModelFile], release: int | None) -> Known:
    """The settings that model files tell, the first file's first.

    Raises CheckpointError where two files contradict each other, with both.
    """
    values: dict[str, Any] = dict.fromkeys(recipe.settings)
    told: dict[str, str] = {}
    for name in recipe.settings:
        for file in files:
            said = file.said(recipe, name)
            if said is None:
                continue
            key, value = said
            _check_kind(name, value, f"{key} {value!r} of {file.where}")
            if values[name] is None:
                values[name], told[name] = value, f"{key} {value} of {file.where.rsplit('/', 1)[-1]}"
            elif isinstance(value, int) and value != values[name] and name not in _OWN:
                raise CheckpointError(f"{told[name]}, and {key} {value} of {file.where}: which is the model's?")
    return Known(recipe, {**values, "release": release}, told, tuple(files))


def _check_kind(setting: str, value: object, told: str) -> None:
    """Raises CheckpointError for what is no such value."""
    if setting in _SIZES and type(value) is not int:
        raise CheckpointError(f"{told}: expected a whole number")
    if setting in _FLAGS and value not in (True, False):
        raise CheckpointError(f"{told}: expected true or false")


def axes_of(known: Known, more: Mapping[str, int]) -> Axes:
    """The sizes that settings tell. The vocabulary's is what the tensors have."""
    sizes = {n: v for n, v in known.values.items() if type(v) is int and v >= 0 and n not in (*_OWN, "release")}
    axes = Axes({**sizes, **more}, _composed(known.recipe), known.told)
    return derived(known.recipe, axes)


def _composed(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    given = ((n, v) for n, v in recipe.axes.items() if isinstance(v, str) and _COMPOSED.fullmatch(v))
    return {name: tuple(value.split()) for name, value in given}


def derived(recipe: Recipe, axes: Axes) -> Axes:
    """With the sizes that follow from known ones."""
    sizes, told = dict(axes.sizes), dict(axes.told)
    for name, value in recipe.axes.items():
        if value is None or name in axes.composed or name in sizes:
            continue
        needs = names_in(value)
        if all(sizes.get(n) is not None for n in needs):
            try:
                size = evaluate(value, sizes)
            except StrategyError:
                continue
            if size is not None:
                sizes[name] = int(size)
                said = ", ".join(told[n] for n in sorted(needs) if n in told)
                told.update({name: said} if said else {})
    for name in axes.composed:  # a composed size that a file tells: its last unknown part follows
        if name in sizes:
            solved = replace(axes, sizes=sizes).solved(((name,),), sizes[name])
            sizes.update([solved] if solved else [])
            told.update({solved[0]: told[name]} if solved and name in told else {})
    return replace(axes, sizes=sizes, told=told)


def solved(recipe: Recipe, axes: Axes, dims: Iterable[tuple[str, Dim, int]]) -> Axes:
    """With sizes that follow from the shapes of tensors: (name, dim, elements)."""
    left = [each for each in dims if axes.unknown(each[1])]
    while left:
        following = []
        before = len(axes.sizes)
        for name, dim, size in left:
            found = axes.solved(dim, size)
            if found is not None and found[0] not in axes.sizes:
                told = {**axes.told, found[0]: f"{found[1]} {found[0]} by {name}"}
                axes = derived(recipe, replace(axes, sizes={**axes.sizes, found[0]: found[1]}, told=told))
            if axes.unknown(dim):
                following.append((name, dim, size))
        if len(axes.sizes) == before:
            return axes
        left = following
    return axes


def with_defaults(known: Known, axes: Axes) -> Axes:
    """With what a model file means that leaves a setting out."""
    if not known.files:
        return axes
    for name, expression in known.recipe.defaults.items():
        if name in axes.sizes or name in axes.composed:
            continue
        if all(axes.sizes.get(needed) for needed in names_in(expression)):
            size = int(evaluate(expression, axes.sizes))
            told = f"{expression} = {size}, as {known.files[0].where.rsplit('/', 1)[-1]} has no {name}"
            axes = replace(axes, sizes={**axes.sizes, name: size}, told={**axes.told, name: told})
            axes = derived(known.recipe, axes)
    return axes


def surprising(known: Known, axes: Axes) -> list[str]:
    """A warning for each size that no file tells, where it is not what is usually taken for it."""
    found = []
    for name, expression in known.recipe.defaults.items():
        size, needs = axes.size(name), names_in(expression)
        if name in known.told or size is None or not all(axes.sizes.get(needed) for needed in needs):
            continue
        usual = int(evaluate(expression, axes.sizes))
        if usual != size:
            said = axes.told.get(name, f"{size} by shapes")
            keys = " or ".join(known.recipe.settings.get(name, (name,))[:2])
            found.append(f"{keys}: no file tells it; {said}, not {expression} = {usual}")
    return found


def style_of(known: Known, style: str, possible: Sequence[str], asked: Asked, *, reading: str) -> tuple[str, str]:
    """Which of the values that names leave possible a style has, and what tells, "" for names.

    Args:
        reading: the name of a tensor that is read by it; "" where it is written, and the convention's own way serves.

    Raises:
        PlanError: nothing tells how what is read was written.
    """
    kind = known.recipe.styles[style]
    told = known.evaluated(kind.told)
    where = known.files[0].where.rsplit("/", 1)[-1] if known.files else ""
    said, option = asked.of(style), asked.option(style)
    if said:
        if said not in possible:
            raise UsageError(
                f"{option} {said}: {known.recipe.convention} names of {known.recipe.name} are "
                f"{' or '.join(possible)} here"
            )
        if told is not None and told != said and told in possible:
            raise UsageError(f"{option} {said}, and {where} says {told}", hint="drop one of them")
        return said, option
    if len(possible) == 1:
        return possible[0], ""
    if told in possible:
        return str(told), where
    if not reading:
        return (kind.default if kind.default in possible else possible[0]), "default"
    raise PlanError(
        f"{reading}: it may be {' or '.join(possible)}, names and shapes are the same, and nothing tells which",
        hint=f"say it: {kind.ask}".replace(Asked().option(style), f"{option} {'|'.join(possible)}"),
    )
