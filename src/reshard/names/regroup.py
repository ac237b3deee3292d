"""A catalog under other names: its tensors made of others', before anything is decided about them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import PlanError, UsageError, listed
from reshard.index import TensorSpec
from reshard.layout.box import Box
from reshard.names.links import Axis, AxisPlace, Link
from reshard.names.maker import Maker
from reshard.names.matching import fits
from reshard.names.megatron import (
    EMBEDDING,
    HEAD,
    args_of,
    differ_by_spec,
    distributed,
    is_ours,
    layer_by_layer,
    of_ranks,
    refuse_other_values,
)
from reshard.names.model import ModelFile, hub_config
from reshard.names.naming import convention_of, more_than_text, recipe_of_source, recipe_of_target, strangers
from reshard.names.recipe import Recipe, built_in
from reshard.names.settings import Known, known
from reshard.names.stage import IS_IT, Given, NameFate, refuse_other_model, staged
from reshard.names.wishes import HUB, MEGATRON, Asked, Excluded, Naming
from reshard.planning.catalog import Catalog, Tensor
from reshard.planning.identity import hash_of
from reshard.planning.lora_names import lora_name
from reshard.planning.names import is_lora, is_state, weight_of_state

_NO_VOCABULARY = "which tensors are the embedding and the output layer is not known of these names"


class Models(Struct, frozen=True):
    """The model files of the two sides, each side's own first."""

    src: tuple[ModelFile, ...] = ()
    dst: tuple[ModelFile, ...] = ()


class Regrouped(Struct, frozen=True):
    """A catalog under other names.

    Attributes:
        same: pairs of tensors of the source of which one was left out as it repeats the other, which bytes must tell.
        fates: what becomes of each tensor of the source, stage by stage.
        head, embedding: what Hugging Face calls the two that may be one.
        files: the model files that were asked, the target's first.
    """

    catalog: Catalog
    convention: str
    same: tuple[tuple[Tensor, Tensor], ...] = ()
    fates: tuple[tuple[NameFate, ...], ...] = ()
    head: str = ""
    embedding: str = ""
    files: tuple[ModelFile, ...] = ()


def regrouped(
    source: Catalog, naming: Naming, models: Models, excluded: Excluded, shards: Mapping[str, int]
) -> Regrouped:
    """The source as the target's convention has it.

    Args:
        excluded: what the user left out.
        shards: for tensors that the target fuses after the cut, into how many parts their rows are cut.

    Raises:
        InputError: listing what is unknown, missing or contradictory.
    """
    return _Regrouping(source, naming, models, excluded).done(shards)


def _refuse_idle(asked: Asked, recipe: Recipe | None, convention: str) -> None:
    """Raises UsageError for what is told of tensors that are kept in one way alone: another was perhaps wished for."""
    for style, value in asked.options.items():
        if recipe is None or style not in recipe.styles:
            raise UsageError(
                f"{asked.option(style)} {value}: names of {convention} have one way for these tensors",
                hint=f"leave {asked.option(style)} out",
            )


def whose_names(catalog: Catalog) -> str:
    """The convention that a checkpoint's names are read as, where nobody says it; "" where they do not tell."""
    return MEGATRON if _is_megatrons(catalog) else convention_of(catalog.tensors)


def _is_megatrons(catalog: Catalog) -> bool:
    return catalog.kind == MEGATRON or is_ours(catalog.tensors)


class _Regrouping:
    def __init__(self, source: Catalog, naming: Naming, models: Models, excluded: Excluded) -> None:
        self._source = source
        self._naming = naming
        self._models = models
        self._excluded = excluded
        self._tensors: Mapping[str, Tensor] = source.tensors
        self._dropped: dict[str, tuple[str, ...]] = dict(source.dropped)
        self._warnings: list[str] = []
        self._same: list[tuple[Tensor, Tensor]] = []
        self._fates: list[tuple[NameFate, ...]] = []
        self._recipes: list[Recipe] = []
        self._src = ""
        self._ends = ("", "")
        self._sizes: Mapping[str, Any] = {}
        self._vocabulary: dict[str, int] = {}

    def done(self, shards: Mapping[str, int]) -> Regrouped:
        naming = self._naming
        self._refuse_absent()
        if not (naming.dst or naming.fits_vocabulary):
            return Regrouped(self._catalog(self._source.args), "", files=(*self._models.dst, *self._models.src))
        megatron = naming.src == MEGATRON or (not naming.src and _is_megatrons(self._source))
        if megatron and naming.dst in ("", MEGATRON):
            self._within_megatron()
        else:
            self._over_the_hub(MEGATRON if megatron else naming.src, shards)
        args = self._args()
        if naming.dst == MEGATRON:
            args = self._with_spec(args)
            made = of_ranks(self._tensors, naming.ranks, args) if naming.ranks else distributed(self._tensors, args)
            self._tensors = made
        return Regrouped(
            self._catalog(args),
            self._src,
            tuple(self._same),
            tuple(self._fates),
            *self._ends,
            (*self._models.dst, *self._models.src),
        )

    def _catalog(self, args: Mapping[str, Any]) -> Catalog:
        naming = self._naming
        told_by = {**self._source.told_by, "names": self._identity()}
        return replace(
            self._source,
            tensors=self._tensors,
            dropped=self._dropped,
            expected=() if naming.dst else self._source.expected,
            told_by=told_by,
            warnings=(*self._source.warnings, *self._warnings),
            texts={} if naming.dst == HUB else self._source.texts,
            withheld={n: w for n, w in self._source.withheld.items() if naming.dst != HUB or not is_state(n)},
            kind=HUB if naming.dst == HUB else self._source.kind,
            args=args,
            common=b"" if naming.dst else self._source.common,
        )

    def _over_the_hub(self, src: str, shards: Mapping[str, int]) -> None:
        naming = self._naming
        if src == MEGATRON:
            self._tensors = layer_by_layer(self._tensors)
            refuse_other_values(self._source.args)
        self._src, recipe = recipe_of_source([*self._tensors], src, self._models.src)
        asked = naming.asked_of_source
        _refuse_idle(asked, recipe, self._src)
        if naming.dst == HUB:
            self._drop_states()
        if recipe is not None:
            given = self._given(recipe, self._models.src, to_hub=True)
            self._stage(replace(given, asked=asked, shards=_rows_of(self._source)), self._src)
        dst = naming.dst or self._src
        target = recipe_of_target([*self._tensors], dst, self._models.dst) if dst != HUB else None
        if naming.files and recipe is None and target is None:
            self._refuse_other_model()
        fault = more_than_text(hub_config(self._files_of("dst"))) if naming.files and dst == HUB else None
        if fault and (recipe or self._suiting()):  # tensors that a recipe knows are a language model's
            raise fault
        self._at_the_hub(recipe or target)
        if naming.dst not in (HUB, ""):
            _refuse_idle(naming.asked, target, dst)
        if target is not None:
            given = self._given(target, self._models.dst, to_hub=False)
            self._sizes = given.known.values
            self._stage(replace(given, asked=naming.asked, shards=shards), dst)
        if self._fates:
            self._warnings += dict.fromkeys(strangers((*self._models.src, *self._models.dst)))

    def _refuse_other_model(self) -> None:
        """Raises PlanError where the configuration that goes along with the hub's own names is of another model."""
        config = hub_config(self._files_of("dst"))
        own = [recipe for recipe in built_in() if config and not {*config.models}.isdisjoint(recipe.models)]
        if config is None or not own or self._suiting() is None:
            return  # of a model that nobody knows
        tried = [(recipe, fits(recipe, self._tensors, hub=True)[1]) for recipe in own]
        recipe, unknown = min(tried, key=lambda each: len(each[1]))
        if unknown:
            raise PlanError(f"{unknown[0]}: {config.models[0]}, as config.json says, has no such tensor", hint=IS_IT)
        refuse_other_model(self._tensors, Given(known(recipe, (config,), None), to_hub=False, missing=self._excluded))

    def _within_megatron(self) -> None:
        """No other names: rows of the vocabulary, and the form in which a target needs its tensors."""
        self._src = MEGATRON
        for asked in (self._naming.asked_of_source, self._naming.asked):
            _refuse_idle(asked, None, MEGATRON)
        if self._naming.dst:
            self._tensors = layer_by_layer(self._tensors)
        if self._naming.fits_vocabulary and EMBEDDING not in self._tensors:
            before = next((n.removesuffix(EMBEDDING) for n in self._tensors if n.endswith(EMBEDDING)), "")
            raise UsageError(_NO_VOCABULARY, hint=f"--rename '^{re.escape(before)}=>'" if before else "")
        if self._naming.tied:
            self._tie(HEAD, EMBEDDING, ())
        rows = self._naming.vocab_rows
        for name in (EMBEDDING, HEAD) if rows else ():
            if name in self._tensors and rows != self._tensors[name].spec.shape[0]:
                self._set_rows(self._tensors[name], rows or 0)

    def _args(self) -> Mapping[str, Any]:
        """Megatron's arguments, where its names are written: those of the source, else what settings and shapes say."""
        embedding = self._tensors.get(EMBEDDING)
        lost = not self._source.args and (self._source.kind == MEGATRON or not self._naming.dst)
        if (self._naming.dst or self._src) != MEGATRON or embedding is None or lost:
            return self._source.args
        rows, hidden = embedding.spec.shape
        told = {"padded_vocab_size": rows, "hidden_size": hidden}
        untied = {"untie_embeddings_and_output_weights": HEAD in self._tensors}
        told |= untied if self._naming.tied else {}
        return {**untied, **self._vocabulary, **args_of(self._sizes), **self._source.args, **told}

    def _with_spec(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        """With the layer spec that is asked for. Warns where nobody tells one, and the names depend on it."""
        if asked := self._naming.transformer_impl:
            return {**args, "transformer_impl": asked}
        if "transformer_impl" not in args and differ_by_spec(self._tensors, on_ranks=self._naming.ranks > 0):
            self._warnings.append(
                "norms are called as Megatron's local layers call them; those of Transformer Engine, its default, want "
                "--transformer-impl transformer_engine"
            )
        return args

    def _identity(self) -> str:
        files = [
            (f.where.rsplit("/", 1)[-1], sorted(map(repr, f.values.items())))
            for f in (*self._models.src, *self._models.dst)
        ]
        said = replace(self._naming, model="", src_model="", dst_model="")
        return hash_of([said, files, [recipe.text for recipe in self._recipes], sorted(self._excluded.names)])

    def _refuse_absent(self) -> None:
        """What a strategy lists and no file holds would lack in what is made of it."""
        there = self._tensors.keys() | self._excluded.names
        absent = [n for n in self._source.expected if n not in there and not is_state(n) and not is_lora(n)]
        if absent:
            raise PlanError("no source file holds:\n" + listed(absent), hint="bring the missing ranks' files")

    def _drop_states(self) -> None:
        states = dict.fromkeys(n for n, tensor in self._tensors.items() if is_state(n) and not tensor.weight)
        if states:
            kinds = dict.fromkeys(name[: len(name) - len(weight_of_state(name))] or name for name in states)
            why = f"optimizer states ({', '.join(list(kinds)[:6])}), which Hugging Face has no place for"
            self._dropped[why] = tuple(states)
            self._tensors = {n: t for n, t in self._tensors.items() if n not in states}

    def _given(self, recipe: Recipe, files: Sequence[ModelFile], *, to_hub: bool) -> Given:
        self._recipes.append(recipe)
        return Given(known(recipe, files, self._naming.release_number), to_hub, missing=self._excluded)

    def _stage(self, given: Given, convention: str) -> None:
        made = staged(self._tensors, given)
        for why, names in made.dropped.items():
            self._drop(why, names)
        for name, of in made.copies.items():
            self._same.append((self._tensors[name], self._tensors[of]))
        if made.copies:
            self._drop("repeats of others, which the target's convention keeps once", made.copies)
        self._fates.append(made.fates)
        self._warnings += [f"{convention}: {warning}" for warning in made.warnings]
        self._tensors = made.tensors

    def _drop(self, why: str, names: Iterable[str]) -> None:
        self._dropped[why] = (*self._dropped.get(why, ()), *names)

    def _at_the_hub(self, recipe: Recipe | None) -> None:
        """What concerns the embedding and the output layer, under Hugging Face's names."""
        recipe = recipe or self._suiting()
        if recipe is None:
            if self._naming.fits_vocabulary:
                raise UsageError(_NO_VOCABULARY)
            return
        sides = [known(recipe, self._files_of(which), None) for which in ("src", "dst")]
        for rule in recipe.rules:
            if rule.tied:
                self._ends = (rule.hub[""].name, rule.tied)
                self._tie(*self._ends, sides)
        rows = [side for rule in recipe.rules for side in rule.hub.values() if side.dims[0][:1] == ((("vocab",),),)]
        for side in rows:
            if side.name in self._tensors:
                self._fit_rows(self._tensors[side.name], sides)
            elif self._naming.vocab_rows:
                self._refuse_factors(side.name, self._naming.vocab_rows)

    def _suiting(self) -> Recipe | None:
        """A recipe that knows all names of the hub; rather one that knows the output layer, too."""
        found = (recipe for recipe in built_in() if not fits(recipe, self._tensors, hub=True)[1])
        return max(found, key=lambda recipe: any(rule.tied for rule in recipe.rules), default=None)

    def _files_of(self, side: str) -> tuple[ModelFile, ...]:
        return self._models.src if side == "src" else self._models.dst

    def _tie(self, head: str, embedding: str, sides: Sequence[Known]) -> None:
        naming = self._naming
        if embedding not in self._tensors:
            return
        tied = next((side.tied for side in reversed(sides) if side.tied is not None), None)
        wanted = naming.tied or ("drop" if naming.dst in (HUB, MEGATRON) and tied else "keep")
        if wanted == "copy" and head not in self._tensors:
            if self._states_of(embedding):
                self._warnings.append(f"{head}: made of {embedding}, without what the optimizer keeps of that")
            self._tensors = {**self._tensors, head: replace(self._tensors[embedding], name=head)}
        elif wanted == "drop" and head in self._tensors:
            self._same.append((self._tensors[head], self._tensors[embedding]))
            states = self._states_of(head)
            self._tensors = {name: t for name, t in self._tensors.items() if name not in (head, *states)}
            self._drop("output layer that is the embedding's", (head, *states))
        if tied is False and head not in self._tensors and wanted == "keep" and head not in self._excluded:
            told = next(side.told.get("tied") or side.told["untied"] for side in reversed(sides) if side.tied is False)
            way = f"--exclude '^{re.escape(head)}', if the model has none; --tied copy takes the embedding for it"
            raise PlanError(f"{head}: not there, and {told}", hint=way)

    def _fit_rows(self, tensor: Tensor, sides: Sequence[Known]) -> None:
        naming, rows = self._naming, tensor.spec.shape[0]
        src, dst = (side.own_vocab(hub=of == HUB) for side, of in zip(sides, (self._src, naming.dst), strict=True))
        padded = self._src == MEGATRON and src is not None and src[1] < rows
        if naming.vocab_rows is None and src is not None and src[1] != rows and not padded:
            raise PlanError(
                f"{tensor.name}: {rows} rows, and {src[0]}", hint="--vocab-rows N says how many the target gets"
            )
        wanted = naming.vocab_rows or (src[1] if padded and src is not None else rows)
        corrected = naming.vocab_rows and naming.files  # the configuration that goes along says what is written
        if dst is not None and dst[1] != wanted and not corrected and (dst != src or naming.dst != self._src):
            raise PlanError(
                f"{tensor.name}: {wanted} rows, and {dst[0]}",
                hint=f"--vocab-rows {dst[1]} adds rows of zeros, or leaves the last ones out",
            )
        if wanted != rows:
            self._set_rows(tensor, wanted)

    def _states_of(self, weight: str) -> list[str]:
        return [n for n in self._tensors if is_state(n) and (n.endswith(f".{weight}") or weight_of_state(n) == weight)]

    def _set_rows(self, tensor: Tensor, wanted: int) -> None:
        """With so many rows: the last ones left out, or zeros added; of what the optimizer keeps of each, too."""
        states = [self._tensors[name] for name in self._states_of(tensor.name)]
        other = next((s.name for s in states if s.spec.shape != tensor.spec.shape and prod(s.spec.shape) > 1), "")
        if other:
            raise PlanError(f"{other}: keeps its rows, which {tensor.name} does not", hint="add --weights-only")
        self._refuse_factors(tensor.name)
        for each in (tensor, *(s for s in states if s.spec.shape == tensor.spec.shape)):
            self._set_own_rows(each, wanted)
        self._vocabulary = {"vocab_size": min(tensor.spec.shape[0], wanted)}

    def _refuse_factors(self, weight: str, rows: int = 0) -> None:
        """Raises PlanError for LoRA factors of a weight that gets other rows; of one elsewhere, where not so many."""
        factors = [n for n in self._tensors if (of := lora_name(n)) is not None and f"{of.layer}.weight" == weight]
        if factors and all(rows not in self._tensors[name].spec.shape for name in factors):
            raise PlanError(
                f"{factors[-1]}: it is of the rows that {weight} has",
                hint="merge first: reshard lora merge --vocab-rows",
            )

    def _set_own_rows(self, tensor: Tensor, wanted: int) -> None:
        rows, *rest = tensor.spec.shape
        kept = min(rows, wanted)
        axes = [Axis(kept, AxisPlace(0, rows, 0), AxisPlace(0, wanted, 0))]
        axes += [Axis(n, AxisPlace(dim, n, 0), AxisPlace(dim, n, 0)) for dim, n in enumerate(rest, 1)]
        link = Link(tensor.name, tuple(axes), tuple(range(len(axes))))
        zeros = [Box((rows, *(0 for _ in rest)), (wanted, *rest))] if wanted > rows else []
        spec = TensorSpec(tensor.spec.dtype, (wanted, *rest))
        made = replace(Maker(self._tensors).made(tensor.name, spec, [link], zeros), cast_to=tensor.cast_to)
        self._tensors = {**self._tensors, tensor.name: made}
        self._warnings.append(f"{tensor.name}: {rows} rows become {wanted}")


def _rows_of(source: Catalog) -> dict[str, int]:
    """Into how many parts the rows of each tensor are cut, optimizer parallel aside."""
    known = ((name, t.cut) for name, t in source.tensors.items() if t.known and t.spec.shape)
    cut = ((name, layout.sharding) for name, layout in known if layout is not None)
    return {name: each.parts[0] // each.opt_parts for name, each in cut if each.devices > 1}
