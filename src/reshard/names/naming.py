"""The recipes by which the names of a checkpoint are changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from reshard.errors import CheckpointError, PlanError, UsageError, docs_page, listed
from reshard.names.dims import GIVE_MODEL
from reshard.names.matching import counterparts, fits, lora_of
from reshard.names.model import ModelFile
from reshard.names.recipe import Recipe, built_in
from reshard.names.wishes import HUB, MEGATRON, MINDFORMERS, TOLD_BY_NAMES
from reshard.planning.names import is_state, layer_pattern


def recipe_of_source(names: Sequence[str], convention: str, files: Sequence[ModelFile]) -> tuple[str, Recipe | None]:
    """The convention of a checkpoint's names, and the recipe that knows them; None where it is the hub's and none does.

    Raises CheckpointError where no recipe knows them, or several do and nothing tells which is meant.
    """
    weights = _one_a_layer(names)
    tried: list[tuple[bool, Recipe, int, list[str]]] = []
    for recipe in built_in():
        for hub in (True, False):
            if not _may_be(recipe, weights, convention, hub=hub):
                continue
            count, unknown = fits(recipe, weights, hub=hub)
            tried.append((hub, recipe, count, unknown))
    best = [each for each in tried if not each[3]]
    if not best:
        return _nearest(tried, convention, weights)
    hubs = {hub for hub, *_ in best}
    if len(hubs) > 1:  # names that several sides have in common, as lm_head.weight alone
        raise CheckpointError("its names may be of several conventions", hint="say which: --src-names hf")
    (hub,) = hubs
    if hub:
        return HUB, None
    meant = _of_model([recipe for _, recipe, *_ in best], files)
    conventions = {recipe.convention for recipe in meant}
    if len(conventions) > 1:
        raise CheckpointError(
            f"its names may be of several conventions: {', '.join(sorted(conventions))}", hint="say which: --src-names"
        )
    if len(meant) > 1 and not _alike(meant, weights):
        raise CheckpointError(
            f"its names are those of {', '.join(r.name for r in meant)}, which differ on Hugging Face's side",
            hint=GIVE_MODEL,
        )
    return meant[0].convention, meant[0]


def _may_be(recipe: Recipe, names: Sequence[str], convention: str, *, hub: bool) -> bool:
    """Whether a side of a recipe is asked. Megatron's names are MindFormers' core's, too: it has to be told."""
    if convention == HUB or hub:
        return hub and convention in ("", HUB)
    if convention != recipe.convention and (convention or recipe.convention == MEGATRON):
        return False
    if all(lora_of(name, hub=False)[0] for name in names):  # factors are of few weights
        return True
    patterns = [layer_pattern(name) for name in names]
    return all(any(re.fullmatch(need, pattern) for pattern in patterns) for need in recipe.needs)


def _one_a_layer(names: Iterable[str]) -> list[str]:
    """Names of weights, one of those that differ in numbers alone."""
    weights = [name for name in names if not is_state(name)] or list(names)
    return list({layer_pattern(name): name for name in reversed(weights)}.values())[::-1]


def convention_of(names: Iterable[str], among: Sequence[str] = TOLD_BY_NAMES) -> str:
    """Whose names these are, where the names tell; "" where they do not. ``among`` says whose they may be."""
    weights = _one_a_layer(names)
    found = {
        HUB if hub else recipe.convention
        for recipe in built_in()
        for hub in (True, False)
        if (HUB if hub else recipe.convention) in among and weights and not fits(recipe, weights, hub=hub)[1]
    }
    return found.pop() if len(found) == 1 else ""


def _nearest(
    tried: Sequence[tuple[bool, Recipe, int, list[str]]], convention: str, weights: Sequence[str]
) -> tuple[str, Recipe | None]:
    """The recipe that knows most of the names, which says what it does not know; if it knows at least a few."""
    if not tried:
        raise UsageError(f"no recipe is of {convention}")
    hub, recipe, count, unknown = max(tried, key=lambda each: each[2] - len(each[3]))
    if 2 * count < len(unknown):
        raise CheckpointError(
            "no recipe knows its names:\n" + listed(unknown[:8]), hint=_hint_of_prefix(unknown, weights)
        )
    return (HUB, None) if hub else (recipe.convention, recipe)


def _hint_of_prefix(unknown: Sequence[str], weights: Sequence[str]) -> str:
    if before := prefix_of_known(unknown):
        return f"--rename '^{re.escape(before)}=>', for without it they are known"
    if before := next((p for p in _BASE if convention_of([p + name for name in unknown]) == HUB), ""):
        head = r"(?!lm_head\.)" if any(n.startswith("lm_head.") for n in weights) else ""  # known as it is
        return f"--rename '^{head}=>{before}', for with it they are known"
    if told := _way_to_text(unknown):
        return f"{told}, for the language model is known so"
    return f"{_HINT}; --rename changes single names"


_HINT = f"{docs_page('how-to/add-a-model-family')} says how one is written"


def _way_to_text(unknown: Sequence[str]) -> str:
    """What leaves a model of more than text its language model alone, under names that are known; "" for nothing."""
    for layers in dict.fromkeys(name.partition("layers.")[0] for name in unknown if ".layers." in name):
        old, new = (layers.removesuffix("model."), "") if layers.endswith(".model.") else (layers, "model.")
        own = (layers, f"{old}lm_head.")
        if convention_of([new + name.removeprefix(old) for name in unknown if name.startswith(own)]) == HUB:
            others = dict.fromkeys(_up_to_other(name, layers) for name in unknown if not name.startswith(own))
            excluded = "".join(f"--exclude '^{re.escape(other)}' " for other in others)
            return f"{excluded}--rename '^{re.escape(old)}=>{new}'"
    return ""


def _up_to_other(name: str, layers: str) -> str:
    """A name up to the first part that is not what layers are in.

    >>> _up_to_other("thinker.visual.blocks.0.norm.weight", "thinker.model.")
    'thinker.visual.'
    """
    parts = name.split(".")
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(parts, layers.split("."), strict=False)))
    return ".".join(parts[: same + 1]) + "."


_BASE = ("model.", "transformer.")
"""What names begin with that a model without its head was saved without."""


def prefix_of_known(names: Iterable[str]) -> str:
    """What all names of weights begin with that would be known without it, as trainers save {"model": ...}; or ""."""
    weights = _one_a_layer(names)
    first = weights[0].split(".")
    prefixes = (".".join(first[:count]) + "." for count in (1, 2))
    shared = (prefix for prefix in prefixes if all(name.startswith(prefix) for name in weights))
    return next((p for p in shared if convention_of([name.removeprefix(p) for name in weights])), "")


def recipe_of_target(names: Sequence[str], convention: str, files: Sequence[ModelFile]) -> Recipe:
    """The recipe of a convention that knows all of these hub names, or most."""
    weights = _one_a_layer(names)
    tried = [(r, *fits(r, weights, hub=True)) for r in built_in() if r.convention == convention]
    best = [recipe for recipe, _, unknown in tried if not unknown]
    if not best:
        most = max(tried, key=lambda each: each[1])
        _refuse_for_others(most, convention, weights)
        if not most[1]:
            raise CheckpointError(
                f"no recipe of {convention} knows its names:\n" + listed(weights[:8]),
                hint=_HINT,
            )
        return most[0]
    meant = _of_model(best, files)
    if len(meant) > 1 and not _share(meant, weights):
        raise CheckpointError(
            f"its names are those of {', '.join(r.name for r in meant)}, which {convention} keeps differently",
            hint=GIVE_MODEL,
        )
    return meant[0]


def _refuse_for_others(most: tuple[Recipe, int, list[str]], convention: str, weights: Sequence[str]) -> None:
    """Raises CheckpointError where another convention of MindFormers' knows all names of the hub."""
    others = [c for c in MINDFORMERS if c != convention and convention in MINDFORMERS and knows_all(c, weights)]
    if others:
        recipe, _, unknown = most
        whose = convention if recipe.name == convention else f"{convention}'s {recipe.name}"
        raise CheckpointError(
            f"names that {whose} does not have:\n" + listed(unknown),
            hint=f"--dst-names {others[0]} has them all",
        )


def knows_all(convention: str, names: Iterable[str]) -> bool:
    """Whether a convention has all of these names of the hub."""
    weights = _one_a_layer(names)
    return any(not fits(r, weights, hub=True)[1] for r in built_in() if r.convention == convention)


def more_than_text(config: ModelFile | None) -> PlanError | None:
    """What is wrong with a configuration that tells of towers and goes along with a language model alone."""
    told = (key.partition(".")[0] for key, value in (config.values if config else {}).items() if value is not None)
    tower = next((name for name in told if name in _TOWERS), "")
    if config is None or not tower:
        return None
    return PlanError(
        f"{tower} of {config.where.rsplit('/', 1)[-1]}: no tensor is of that, and this configuration goes along",
        hint="--model says whose the weights are; without --with-files they are written alone",
    )


_TOWERS = ("vision_config", "audio_config")


def strangers(files: Iterable[ModelFile]) -> Iterator[str]:
    """A warning for each configuration of a model that no recipe is written for: its names may be those of one, and its
    norms kept less one, as Gemma's, or its rotary rows in pairs.
    """
    written_for = {model for recipe in built_in() for model in recipe.models}
    for file in files:
        if file.hub and file.models and written_for.isdisjoint(file.models):
            yield (
                f"no recipe is written for {file.models[-1]} of {file.where.rsplit('/', 1)[-1]}: its names are known; "
                "whether its numbers mean the same is not"
            )


def _of_model(recipes: Sequence[Recipe], files: Iterable[ModelFile]) -> list[Recipe]:
    """Those of the model that files name, the most telling name first; all where none is or nothing is named."""
    left = list(recipes)
    for file in files:
        for model in file.models:
            left = [recipe for recipe in left if model in recipe.models] or left
    return left


def _alike(recipes: Sequence[Recipe], names: Sequence[str]) -> bool:
    """Whether recipes make the same of these names of a convention."""
    return len({counterparts(recipe, names, hub=False) for recipe in recipes}) == 1


def _share(recipes: Sequence[Recipe], names: Sequence[str]) -> bool:
    """Whether there is something that each of them may make of every of these names of the hub."""
    made = [counterparts(recipe, names, hub=True) for recipe in recipes]
    anywhere, everywhere = frozenset.union(*made), frozenset.intersection(*made)
    return {name for name, *_ in anywhere} == {name for name, *_ in everywhere}
