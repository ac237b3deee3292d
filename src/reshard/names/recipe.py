"""Recipes: for each tensor of a convention, of which Hugging Face tensors it is made and how. They are data.

``docs/how-to/add-a-model-family.md`` describes the files. Reading one checks it, so that a recipe that exists can be
applied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import InputError, StrategyError, listed
from reshard.names.checking import faults, line_of
from reshard.names.dims import NUMBERED, Dims, parsed, section_of
from reshard.planning.names import layer_pattern
from reshard.yaml_text import read_own_yaml

_HINT = "docs/how-to/add-a-model-family.md describes recipes"


ALONE = "alone"


class RecipeTensor(Struct, frozen=True):
    """A tensor of a rule: its name, with ``{n}`` for a layer's number, ``{layers+j}`` for one behind them, ``{e}`` for
    an expert's.

    ``dims``: what its dims are made of; several where only their number tells which.
    """

    name: str
    dims: tuple[Dims, ...]

    @property
    def pattern(self) -> str:
        """The name with ``#`` for each number."""
        return NUMBERED.sub("#", self.name)

    @property
    def numbers(self) -> tuple[tuple[str, str], ...]:
        """Of each number of the name what it counts and, if anything, from which size on."""
        return tuple((found[2], (found[1] or "").rstrip("+")) for found in NUMBERED.finditer(self.name))

    def called(self, numbers: Mapping[str, int], sizes: Mapping[str, int]) -> str:
        def number(found: re.Match[str]) -> str:
            first = sizes[found[1].rstrip("+")] if found[1] else 0
            return str(numbers[found[2]] + first)

        return NUMBERED.sub(number, self.name)

    def beginning(self, first: int, sizes: Mapping[str, int]) -> str:
        """The names that have this first number, up to the dot behind it."""
        placeholder, *_ = NUMBERED.finditer(self.name)
        begun = replace(self, name=f"{self.name[: placeholder.end()]}.")
        return begun.called({placeholder[2]: first}, sizes)

    def of_ndim(self, ndim: int) -> Dims:
        """Its dims where it has so many, else those that come first."""
        return next((dims for dims in self.dims if len(dims) == ndim), self.dims[0])


class Rule(Struct, frozen=True):
    """How tensors of both sides are made of one another: one of Hugging Face's is one of the convention's, or either is
    the sections of several of the other.

    Attributes:
        number: counts the rules of a recipe.
        hub, own: by section, "" where it is the whole, the tensors of Hugging Face and of the convention.
        styles: the values of styles that it is for.
        block, kind: what stands and falls together: layers have all of a block, and one of its kinds.
        optional: "" for what a layer cannot do without, ``ALONE``, or a word: tensors of one word are there together,
            with ``WORD of SET`` those of one word at least of each set.
        required: an expression of settings: where it holds the rule is not optional.
        dtype, hub_dtype: an expression for the dtype that the tensors of either side are kept in; None for as it is.
        copy_of: the name of the Hugging Face tensor that this one, which the convention has not, repeats.
        tied: the name of the Hugging Face tensor that it is one with where embeddings are tied.
        counts: what the block's numbers count, "" for tensors that stand once.
        stacked: whether one tensor holds what many have that are numbered as experts are.
    """

    number: int
    hub: Mapping[str, RecipeTensor]
    own: Mapping[str, RecipeTensor]
    styles: Mapping[str, str] = {}
    block: int = 0
    kind: str = ""
    when: object = True
    optional: str = ""
    required: object = None
    dtype: object = None
    hub_dtype: object = None
    copy_of: str = ""
    tied: str = ""
    counts: str = ""
    stacked: bool = False

    def sides(self, *, hub: bool) -> Mapping[str, RecipeTensor]:
        return self.hub if hub else self.own


class Style(Struct, frozen=True):
    """What a convention does in one of several ways: an expression of the model's settings tells which, None where they
    do not.

    ``default``: how it is written where nothing tells; ``ask``: what tells, for a message. ``fused_with``: a style that
    is its default where, and only where, this one is.
    """

    told: object
    default: str
    ask: str
    fused_with: str = ""


class Dropped(Struct, frozen=True):
    """Names that have no counterpart, and why that is right."""

    match: str
    why: str


class Recipe(Struct, frozen=True, eq=False):
    """One convention of one family of models; equal to itself alone, so that what is made of it can be kept.

    Attributes:
        models: what configurations call them: ``model_type``, ``architectures``, ``model.arch.type``.
        settings: for each setting the keys that tell it, the first that is given counts.
        axes: sizes as expressions of settings, or the axes that one is made of.
        defaults: what a model file means that leaves a setting out, and shapes do not tell.
        needs: regular expressions of names, numbers as #, without which a checkpoint is another recipe's that it knows.
        hash_of: the text of the files, for the identity of a conversion.
    """

    name: str
    convention: str
    models: tuple[str, ...]
    settings: Mapping[str, tuple[str, ...]]
    axes: Mapping[str, object]
    defaults: Mapping[str, object]
    styles: Mapping[str, Style]
    dropped: tuple[Dropped, ...]
    rules: tuple[Rule, ...]
    text: str
    needs: frozenset[str] = frozenset()


@cache
def built_in() -> tuple[Recipe, ...]:
    folder = files("reshard.names") / "recipes"
    texts = {
        entry.name: entry.read_text(encoding="utf-8") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    }
    common = texts.pop("_common.yaml")
    return tuple(read_recipe(text, name, common) for name, text in sorted(texts.items()))


def read_recipe(text: str, where: str, common: str) -> Recipe:
    """Raises StrategyError with all that is wrong, line by line."""
    try:
        content, shared = read_own_yaml(text), _shared(common)
        if wrong := faults(content, shared):
            raise StrategyError(listed([f"line {line_of(text, f.path)}: {f.text}" for f in wrong], 99))
        return _recipe(content, shared, where.rsplit("/", 1)[-1].removesuffix(".yaml"), text + common)
    except InputError as error:
        raise StrategyError(error.message, where, error.hint or _HINT) from None


@cache
def _shared(common: str) -> Any:
    return read_own_yaml(common)


def _recipe(content: dict[str, Any], shared: dict[str, Any], name: str, text: str) -> Recipe:
    """Of entries that were found right."""

    def both(key: str) -> dict[str, Any]:
        return {**shared.get(key, {}), **content.get(key, {})}

    rules: list[Rule] = []
    for number, block in enumerate(content["blocks"]):
        place = _Surroundings(number, block.get("hf", ""), block.get("own", ""), {}, block.get("kind", ""))
        rules += [Rule(len(rules) + more, *made) for more, made in enumerate(_rules(block, place))]
    return Recipe(
        name,
        content["convention"],
        tuple(map(str, content.get("models", []))),
        {key: tuple(map(str, keys)) for key, keys in both("settings").items()},
        both("axes"),
        both("defaults"),
        {name: _style(style) for name, style in content.get("styles", {}).items()},
        tuple(Dropped(str(d["match"]), str(d["why"])) for each in (content, shared) for d in each.get("drop", [])),
        tuple(rules),
        text,
        frozenset(layer_pattern(str(name)) for name in content.get("needs", [])),
    )


class _Surroundings(Struct, frozen=True):
    """Where an entry stands: what its names begin with, and what is common to those around it."""

    block: int
    hub: str
    own: str
    styles: Mapping[str, str]
    kind: str


def _rules(entry: dict[str, Any], place: _Surroundings) -> Iterator[tuple[Any, ...]]:
    for rule in entry["tensors"]:
        styles = {**place.styles, **rule.get("styles", {})}
        if "tensors" in rule:
            yield from _rules(
                rule, _Surroundings(place.block, place.hub, place.own, styles, rule.get("kind", place.kind))
            )
            continue
        for kind in ("weight", "bias") if ".*" in str(rule.get("hf")) else ("",):
            yield _rule(rule, place, styles, kind)


def _rule(entry: dict[str, Any], place: _Surroundings, styles: Mapping[str, str], kind: str) -> tuple[Any, ...]:
    hub, own = _both_sides(entry, place, kind)
    return (
        hub,
        own,
        {str(k): str(v) for k, v in styles.items()},
        place.block,
        str(entry.get("kind", place.kind)),
        entry.get("when", True),
        _optional(entry, kind),
        entry.get("required"),
        entry.get("dtype"),
        entry.get("hf_dtype"),
        str(entry.get("copy_of", "")),
        str(entry.get("tied", "")),
        next((of for of, _ in next(iter(hub.values())).numbers if of != "e"), ""),
        len({_per_expert(side) for side in (hub, own) if side}) > 1,
    )


def _optional(entry: Mapping[str, Any], kind: str) -> str:
    given = (entry.get("biases") or True) if kind == "bias" else entry.get("optional", False)
    return ALONE if given is True else str(given or "")


def _per_expert(sides: Mapping[str, RecipeTensor]) -> bool:
    return any(of == "e" for of, _ in next(iter(sides.values())).numbers)


def _both_sides(
    entry: dict[str, Any], place: _Surroundings, kind: str
) -> tuple[dict[str, RecipeTensor], dict[str, RecipeTensor]]:
    names = {"hf": _names(entry.get("hf"), place.hub, kind), "own": _names(entry.get("own"), place.own, kind)}
    text = entry.get("dims", "")
    made: dict[str, dict[str, RecipeTensor]] = {}
    for side, named in names.items():
        whole = [parsed(str(entry.get(f"{side}_dims", text)))]
        whole += [parsed(str(entry[f"{side}_dims_3"]))] if f"{side}_dims_3" in entry else []
        of_parts = entry.get("parts_dims", {})
        made[side] = {}
        for section, name in named.items():
            given = of_parts.get(section, entry.get("part_dims") if section else None)
            dims = [parsed(str(given))] if given is not None else [section_of(d, section) for d in whole]
            made[side][section] = RecipeTensor(name, tuple(d[:1] if kind == "bias" else d for d in dims))
    return made["hf"], made["own"]


def _names(given: object, prefix: str, kind: str) -> dict[str, str]:
    if given is None:
        return {}
    sections = given if isinstance(given, dict) else {"": given}
    return {str(section): prefix + re.sub(r"\.\*$", f".{kind}", str(name)) for section, name in sections.items()}


def _style(entry: Mapping[str, Any]) -> Style:
    default, ask, other = (str(entry.get(k, v)) for k, v in (("default", ""), ("ask", "--model"), ("fused_with", "")))
    return Style(entry.get("told"), default, ask, other)
