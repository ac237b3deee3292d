"""What a user says of names, and the recipes by which a checkpoint's are changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct

from reshard.errors import CheckpointError, UsageError, listed
from reshard.names.matching import counterparts, fits
from reshard.names.megatron import CONVENTION as MEGATRON
from reshard.names.model import ModelFile
from reshard.names.recipe import Recipe, built_in
from reshard.names.settings import Asked
from reshard.planning.names import is_state
from reshard.strategy.job import as_release

HUB = "hf"
CONVENTIONS = (HUB, "mindformers", "mcore", MEGATRON, "torchtitan")
Tied = Literal["", "keep", "copy", "drop"]


class Naming(Struct, frozen=True):
    """What a user says of names.

    Attributes:
        src, dst: conventions; "" for the one that the names show, and for the same as the source's.
        model, src_model, dst_model: paths of model files: of either side, of one.
        asked, src_asked: values of styles by name, of the side that is not the hub; of the source where neither is.
        release: of MindFormers.
        vocab_rows: rows of the vocabulary that the target gets.
        tied: what becomes of an output layer that is the embedding's.
        dequantize: codes are multiplied by their scales.
        files: configuration and tokenizer go along.
        ranks: for how many tensor-parallel ranks of Megatron its layers are laid out; 0 for its distributed form.
    """

    src: str = ""
    dst: str = ""
    model: str = ""
    src_model: str = ""
    dst_model: str = ""
    asked: Asked = Asked()
    src_asked: Asked = Asked()
    release: str = ""
    vocab_rows: int | None = None
    tied: Tied = ""
    dequantize: bool = False
    files: bool = False
    ranks: int = 0

    def __post_init__(self) -> None:
        for option, convention in (("--src-names", self.src), ("--dst-names", self.dst)):
            if convention and convention not in CONVENTIONS:
                raise UsageError(f"{option} {convention!r}", hint=f"one of: {', '.join(CONVENTIONS)}")
        if self.tied not in ("", "keep", "copy", "drop"):
            raise UsageError(f"--tied {self.tied!r}", hint="one of: keep, copy, drop")
        if self.vocab_rows is not None and self.vocab_rows < 1:
            raise UsageError(f"--vocab-rows {self.vocab_rows}", hint="a number from 1")
        said = (self.src_model, self.dst_model, self.asked, self.src_asked, self.release)
        if not (self.dst or self.fits_vocabulary) and said != ("", "", Asked(), Asked(), ""):
            raise UsageError("how names are changed was told, and not that they are", hint="--dst-names hf")

    @property
    def changes(self) -> bool:
        """Whether anything is done."""
        return bool(self.dst) or self.dequantize or self.fits_vocabulary

    @property
    def fits_vocabulary(self) -> bool:
        """Whether embedding and output layer change, whatever they are called."""
        return bool(self.tied or self.vocab_rows)

    @property
    def release_number(self) -> int | None:
        """As ``105`` for r1.5."""
        given = as_release(self.release)
        return given[0] * 100 + (given[1] if len(given) > 1 else 0) if given else None


def recipe_of_source(names: Sequence[str], convention: str, files: Sequence[ModelFile]) -> tuple[str, Recipe | None]:
    """The convention of a checkpoint's names, and the recipe that knows them; None where it is the hub's and none does.

    Raises CheckpointError where no recipe knows them, or several do and nothing tells which is meant.
    """
    weights = [name for name in names if not is_state(name)] or list(names)
    tried: list[tuple[bool, Recipe, int, list[str]]] = []
    for recipe in built_in():
        for hub in (True, False):
            if not _may_be(recipe, weights, convention, hub=hub):
                continue
            count, unknown = fits(recipe, weights, hub=hub)
            tried.append((hub, recipe, count, unknown))
    best = [each for each in tried if not each[3]]
    if not best:
        return _nearest(tried, convention)
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
            hint="give the model: --model config.json, or the YAML of its run",
        )
    return meant[0].convention, meant[0]


def _may_be(recipe: Recipe, names: Sequence[str], convention: str, *, hub: bool) -> bool:
    """Whether a side of a recipe is asked. Megatron's names are MindFormers' core's, too: it has to be told."""
    if convention == HUB or hub:
        return hub and convention in ("", HUB)
    if convention != recipe.convention and (convention or recipe.convention == MEGATRON):
        return False
    return recipe.needs <= set(names)


def _nearest(tried: Sequence[tuple[bool, Recipe, int, list[str]]], convention: str) -> tuple[str, Recipe | None]:
    """The recipe that knows most of the names, which says what it does not know; if it knows at least a few."""
    if not tried:
        raise UsageError(f"no recipe is of {convention}")
    hub, recipe, count, unknown = max(tried, key=lambda each: each[2] - len(each[3]))
    if 2 * count < len(unknown):
        raise CheckpointError(
            "no recipe knows its names:\n" + listed(unknown[:8]),
            hint="docs/how-to/add-a-model-family.md says how one is written; --rename changes single names",
        )
    return (HUB, None) if hub else (recipe.convention, recipe)


def recipe_of_target(names: Sequence[str], convention: str, files: Sequence[ModelFile]) -> Recipe:
    """The recipe of a convention that knows all of these hub names, or most."""
    weights = [name for name in names if not is_state(name)] or list(names)
    tried = [(r, *fits(r, weights, hub=True)) for r in built_in() if r.convention == convention]
    best = [recipe for recipe, _, unknown in tried if not unknown]
    if not best:
        most = max(tried, key=lambda each: each[1])
        if not most[1]:
            raise CheckpointError(
                f"no recipe of {convention} knows its names:\n" + listed(weights[:8]),
                hint="docs/how-to/add-a-model-family.md says how one is written",
            )
        return most[0]
    meant = _of_model(best, files)
    return meant[0]


def _of_model(recipes: Sequence[Recipe], files: Iterable[ModelFile]) -> list[Recipe]:
    """Those of the model that files name, the most telling name first; all where none is or nothing is named."""
    left = list(recipes)
    for file in files:
        for model in file.models:
            left = [recipe for recipe in left if model in recipe.models] or left
    return left


def _alike(recipes: Sequence[Recipe], names: Sequence[str]) -> bool:
    """Whether recipes make the same of these names."""
    return len({counterparts(recipe, names) for recipe in recipes}) == 1
