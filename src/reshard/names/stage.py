"""One stage of a renaming: from a convention's names to Hugging Face's, the hub, or from there to a convention's."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from reshard.dtypes import ALIASES, FLOATING
from reshard.errors import PlanError, StrategyError, listed
from reshard.index import TensorSpec
from reshard.names.choosing import Choosing
from reshard.names.dims import AXIS_OF, GIVE_MODEL, Axes, Dims, shown
from reshard.names.lacking import Lacking
from reshard.names.linking import SharedDims, at_index, link_of
from reshard.names.links import Link
from reshard.names.maker import Maker
from reshard.names.matching import NameMatch, Names, counts_of, lora_name, names_of
from reshard.names.recipe import RecipeTensor, Rule
from reshard.names.settings import Known, axes_of, derived, solved, surprising, with_defaults
from reshard.names.wishes import Asked
from reshard.planning.catalog import Tensor
from reshard.planning.names import is_state, layer_pattern


class NameFate(Struct, frozen=True):
    """What becomes of a tensor: the names that it is made into, and the rule in words."""

    source: str
    targets: tuple[str, ...]
    rule: str


class Staged(Struct, frozen=True):
    """What a stage gives.

    Attributes:
        dropped: by reason, the names that have no counterpart.
        copies: tensors left out that repeat another one: name -> which.
        chosen: in words, how what is fused was read or is written.
    """

    tensors: Mapping[str, Tensor]
    dropped: Mapping[str, tuple[str, ...]]
    copies: Mapping[str, str]
    fates: tuple[NameFate, ...]
    warnings: tuple[str, ...]


class Given(Struct, frozen=True):
    """What a stage is told.

    Attributes:
        to_hub: whether the hub is what it makes.
        asked: of the side that is not the hub.
        missing: names that are left out as the user wishes: that they are not there is no fault.
        shards: of each tensor that is fused after the cut, into how many parts its rows are cut; by name.
    """

    known: Known
    to_hub: bool
    asked: Asked = Asked()
    missing: Container[str] = frozenset()
    shards: Mapping[str, int] = {}


def staged(tensors: Mapping[str, Tensor], given: Given) -> Staged:
    """Raises InputError listing what is unknown, missing or contradictory."""
    return _Stage(tensors, given).made()


def refuse_other_model(tensors: Mapping[str, Tensor], given: Given) -> None:
    """Raises PlanError where sizes and layers that a model's file tells are not those of the tensors.

    What the tensors lack besides is no fault: many leave out multi-token layers, of which their configuration tells.
    """
    _Stage(tensors, given).check_sizes()


class _Stage:
    def __init__(self, tensors: Mapping[str, Tensor], given: Given) -> None:
        self._tensors = tensors
        self._given = given
        self._known = given.known
        self._recipe = given.known.recipe
        self._hub = not given.to_hub  # whether the hub is what is read
        self._faults: list[str] = []
        self._hints: dict[str, None] = {}
        self._warnings: list[str] = []
        self._dropped: dict[str, list[str]] = {}
        self._copies: dict[str, str] = {}
        self._fates: dict[str, list[str]] = {}
        self._rule_of: dict[str, str] = {}
        self._links: dict[tuple[object, ...], tuple[Link, tuple[int, ...]]] = {}
        self._sizes = counts_of(self._known, tensors, hub=self._hub)
        self._styles, said = Choosing(tensors, self._known, self._sizes, hub=self._hub).chosen(given.asked)
        self._warnings += said
        self._rules = [self._as_required(rule) for rule in self._recipe.rules if self._applies(rule)]

    def made(self) -> Staged:
        groups = self._grouped()
        self._refuse()
        axes = self._axes(groups)
        experts = axes.size("experts")
        if experts is not None:  # as shapes of what is stacked tell
            self._sizes = {"experts": experts, **self._sizes}
        self._check_whole(groups)
        self._check_shapes(groups, axes)
        self._refuse()
        made = self._make(groups, axes)
        self._refuse()
        self._repeat(made)
        fates = tuple(
            NameFate(name, tuple(self._fates[name]), self._rule_of[name])
            for name in self._tensors
            if name in self._fates
        )
        dropped = {why: tuple(names) for why, names in self._dropped.items()}
        return Staged(made, dropped, self._copies, fates, tuple(self._warnings))

    def check_sizes(self) -> None:
        groups = self._grouped()
        self._check_layers(groups)
        self._check_shapes(groups, self._axes(groups))
        self._refuse()

    def _check_layers(self, groups: Mapping[tuple[object, ...], list[tuple[NameMatch, str]]]) -> None:
        layered = [found for (found, _), *_ in groups.values() if "n" in found.numbers]
        absent = set(range(self._sizes["layers"])) - {found.numbers["n"] for found in layered}
        for number in sorted(absent) if layered else ():
            example = layered[0]
            side = example.rule.sides(hub=self._hub)[example.section]
            name = side.called({**example.numbers, "n": number}, self._sizes)
            if name not in self._given.missing:
                told = self._known.told.get("layers", "of further layers there are")
                self._faults.append(f"{name}: not there, and {told}")
                self._hints[IS_IT] = None

    def _refuse(self) -> None:
        if self._faults:
            names = "Hugging Face's" if self._hub else f"{self._recipe.convention}'s"
            raise PlanError(
                f"names of {self._recipe.name}, read as {names}:\n" + listed(self._faults),
                hint=next(iter(self._hints), "--exclude leaves tensors out; reshard names says what becomes of each"),
            )

    def _as_required(self, rule: Rule) -> Rule:
        needed = rule.optional and rule.required is not None and self._known.evaluated(rule.required)
        return replace(rule, optional="") if needed else rule

    def _applies(self, rule: Rule) -> bool:
        if any(self._styles.get(style, value) != value for style, value in rule.styles.items()):
            return False
        return bool(self._known.evaluated(rule.when))

    def _grouped(self) -> dict[tuple[object, ...], list[tuple[NameMatch, str]]]:
        """The tensors of each group, that are made into one another."""
        names = Names(self._recipe, self._rules, hub=self._hub)
        anyone = names_of(self._recipe, hub=self._hub)
        groups: dict[tuple[object, ...], list[tuple[NameMatch, str]]] = {}
        unknown = []
        for name in self._tensors:
            found = names.found(name, self._sizes)
            if found is None:
                dropped = names.dropped(name)
                if dropped is not None:
                    self._dropped.setdefault(dropped.why, []).append(name)
                else:
                    unknown.append(name)
                    self._faults.append(f"{name}: {self._unknown(name, anyone)}")
            elif found.rule.copy_of:
                origin = self._origin(found.rule.copy_of, self._tensors)
                if origin is None:
                    self._faults.append(f"{name}: repeats {found.rule.copy_of}, which is not there")
                else:
                    self._copies[name] = origin
            else:
                groups.setdefault(found.group, []).append((found, name))
        if unknown and all(map(is_state, unknown)):
            self._hints["--weights-only leaves the optimizer's states out"] = None
        elif unknown and any(members[0][0].factor for members in groups.values()):
            self._hints[_MERGE] = None
        return groups

    def _unknown(self, name: str, anyone: Names) -> str:
        """Why no rule is a name's."""
        for rule, section in anyone.rules(name):
            side = rule.sides(hub=self._hub)[section]
            counted = sorted({AXIS_OF[of] for of, _ in side.numbers})
            told = ", ".join(self._known.told[axis] for axis in counted if axis in self._known.told)
            if any(rule.number == live.number for live in self._rules):
                self._hints.update({IS_IT: None} if told else {})
                return f"it counts further than {told or 'the others'}"
            styles = ", ".join(f"{s} {v}" for s, v in rule.styles.items() if self._styles.get(s, v) != v)
            return f"it is for {styles}, which this is not"
        return "no rule knows it"

    def _axes(self, groups: Mapping[tuple[object, ...], list[tuple[NameMatch, str]]]) -> Axes:
        axes = axes_of(self._known, self._sizes)
        after = {s.pattern for r in self._rules if _PER_SHARD in r.styles.values() for s in r.own.values()}
        shards = {n for name, n in self._given.shards.items() if layer_pattern(name) in after}
        if len(shards) == 1:
            axes = derived(self._recipe, replace(axes, sizes={**axes.sizes, "shards": next(iter(shards))}))
        elif _PER_SHARD in self._styles.values():
            raise PlanError(
                "tensors that were fused on each rank after the cut, and no strategy says how they are cut",
                hint="give the rank folders and their strategy; of one rank alone: --qkv concat --gate-up concat",
            )
        dims = []
        for found, name in _unlike(groups, self._tensors):
            shape = self._tensors[name].spec.shape
            own = self._dims(found, len(shape))
            if len(own) == len(shape):
                dims += [(name, dim, n) for dim, n in zip(own, shape, strict=True) if dim != _RANK]
        axes = solved(self._recipe, axes, dims)
        axes = solved(self._recipe, with_defaults(self._known, axes), dims)
        self._warnings += surprising(self._known, axes)
        return axes

    def _dims(self, found: NameMatch, ndim: int, *, target: str | None = None) -> Dims:
        """The dims of a tensor, or of the target's section that it is made into."""
        rule = found.rule
        if target is None:
            dims = rule.sides(hub=self._hub)[found.section].of_ndim(ndim)
        else:
            dims = rule.sides(hub=not self._hub)[target].dims[0]
        if found.factor:
            return (_RANK, dims[-1]) if found.factor == "a" else (dims[0], _RANK)
        return dims

    def _check_shapes(self, groups: Mapping[tuple[object, ...], list[tuple[NameMatch, str]]], axes: Axes) -> None:
        for found, name in _unlike(groups, self._tensors):
            shape = self._tensors[name].spec.shape
            dims = self._dims(found, len(shape))
            if len(dims) != len(shape):
                self._faults.append(f"{name}: {list(shape)}, expected {shown(dims)}")
                continue
            for number, (dim, n) in enumerate(zip(dims, shape, strict=True)):
                size = axes.size_of(dim)
                if size is not None and size != n:
                    told = axes.saying(dim)
                    self._hints.update({IS_IT: None} if any(said in told for said in self._known.told.values()) else {})
                    self._faults.append(f"{name}: {n} in dim {number}, expected {size}" + (f": {told}" if told else ""))

    def _check_whole(self, groups: Mapping[tuple[object, ...], list[tuple[NameMatch, str]]]) -> None:
        lora = all(found[0][0].factor for found in groups.values())
        lacking = Lacking(self._rules, self._sizes, self._given.missing, hub=self._hub)
        self._faults += lacking.parts(groups)
        self._faults += lacking.factors(groups)
        if not lora:
            absent = list(lacking.tensors(groups))
            self._faults += absent
            self._faults += self._of_other_kinds(groups)
            further, told = lacking.further(absent, self._tensors), self._known.told.get("mtp")
            if further and told:  # of a configuration that tells more layers than there ever were
                excluded = " ".join(f"--exclude '^{re.escape(begin)}'" for begin in further)
                who = "transformers saved it," if self._hub else "the training was"
                self._hints[f"{excluded}, if {who} without multi-token layers; {told}"] = None

    def _of_other_kinds(self, groups: Mapping[tuple[object, ...], list[tuple[NameMatch, str]]]) -> Iterator[str]:
        """A fault for each layer that has experts where the model's file says that it is dense, or the reverse."""
        first, every = (self._known.values.get(name) for name in ("dense_layers", "experts_every"))
        if type(first) is not int or every not in (None, 1):
            return
        wrong: dict[int, str] = {}
        for members in groups.values():
            found, name = members[0]
            n, kind = found.numbers.get("n"), found.rule.kind
            if n is not None and kind in ("dense", "experts") and (kind == "dense") != (n < first):
                wrong.setdefault(n, f"{name}: of a layer of {kind}, and {self._known.told['dense_layers']}")
        yield from wrong.values()

    def _make(self, groups: Mapping[tuple[object, ...], list[tuple[NameMatch, str]]], axes: Axes) -> dict[str, Tensor]:
        maker = Maker(self._tensors)
        made: dict[str, Tensor] = {}
        for members in groups.values():
            try:
                for name, tensor in self._targets(members, axes, maker):
                    made[name] = tensor
                    for found, source in members:
                        cast = f", as {tensor.cast_to}" if tensor.wanted_dtype != tensor.spec.dtype else ""
                        self._rule_of[source] = in_words(found.rule, found.section) + cast
                        self._fates.setdefault(source, []).append(name)
            except (StrategyError, PlanError) as error:
                self._faults.append(f"{members[0][1]}: {error.message}")
                self._hints.update({error.hint: None} if error.hint else {})
        return made

    def _repeat(self, made: dict[str, Tensor]) -> None:
        """Of what the hub has again, which the convention has once."""
        for rule in self._rules if not self._hub else ():
            origin = self._origin(rule.copy_of, made) if rule.copy_of else None
            for number in range(self._sizes[AXIS_OF[rule.counts]]) if origin else ():
                begin = rule.hub[""].beginning(number, self._sizes)
                if any(name.startswith(begin) for name in made):
                    name = rule.hub[""].called({rule.counts: number}, self._sizes)
                    made[name] = replace(made[origin or ""], name=name)

    def _origin(self, name: str, tensors: Mapping[str, Tensor]) -> str | None:
        """The name, or where it is tied and not there what it is tied to."""
        if name in tensors:
            return name
        tied = next((r.tied for r in self._recipe.rules if r.tied and r.hub[""].name == name), "")
        return tied if tied in tensors else None

    def _targets(self, members: list[tuple[NameMatch, str]], axes: Axes, maker: Maker) -> Iterator[tuple[str, Tensor]]:
        first, _ = members[0]
        targets = first.rule.sides(hub=not self._hub)
        if first.factor and (len(targets) > 1 or len(first.rule.sides(hub=self._hub)) > 1 or first.rule.stacked):
            raise PlanError("LoRA of a tensor that is fused here and not there", hint=_MERGE)
        for section, side in targets.items():
            per_expert = first.rule.stacked and any(of == "e" for of, _ in side.numbers)
            if per_expert and "experts" not in self._sizes:
                raise StrategyError("the number of experts is not known", hint=GIVE_MODEL)
            for e in range(self._sizes["experts"]) if per_expert else (None,):
                numbers = dict(first.numbers) if e is None else {**first.numbers, "e": e}
                name = self._called(side, numbers, first)
                pairs = [self._link(found, source, section, e, axes) for found, source in members]
                links, shapes = [link for link, _ in pairs], {shape for _, shape in pairs}
                yield name, self._tensor(name, links, shapes, maker, first)

    def _link(
        self, found: NameMatch, source: str, section: str, expert: int | None, axes: Axes
    ) -> tuple[Link, tuple[int, ...]]:
        shape = self._tensors[source].spec.shape
        key = (found.rule.number, found.section, section, found.factor, shape)
        if key not in self._links:
            dims = self._dims(found, len(shape)), self._dims(found, 0, target=section)
            index = AXIS_OF["e"] if found.rule.stacked else ""
            self._links[key] = link_of(source, shape, SharedDims(*dims, section or found.section, index), axes)
        link, made = self._links[key]
        return at_index(link, source, found.numbers.get("e", 0) if expert is None else expert), made

    def _called(self, side: RecipeTensor, numbers: Mapping[str, int], found: NameMatch) -> str:
        name = side.called(numbers, self._sizes)
        if found.factor:
            name = lora_name(name, found.factor, hub=not self._hub)
        return found.state + name

    def _tensor(
        self, name: str, links: Sequence[Link], shapes: set[tuple[int, ...]], maker: Maker, found: NameMatch
    ) -> Tensor:
        sources = [self._tensors[link.source] for link in links]
        dtypes = {source.spec.dtype: source.name for source in sources}
        if len(dtypes) > 1:
            raise PlanError(
                f"{name} would be of several dtypes: " + ", ".join(f"{n} is {d}" for d, n in dtypes.items())
            )
        if len(shapes) > 1:
            raise PlanError(f"{name} would be of several shapes: {', '.join(map(str, sorted(shapes)))}")
        tensor = maker.made(name, TensorSpec(next(iter(dtypes)), next(iter(shapes))), links)
        kept = {source.cast_to for source in sources}
        wanted = found.rule.hub_dtype if not self._hub else found.rule.dtype
        dtype = self._known.evaluated(wanted) if wanted is not None and not found.state else None
        if dtype and tensor.spec.dtype in FLOATING:
            return replace(tensor, cast_to=as_dtype(str(dtype), name))
        return replace(tensor, cast_to=next(iter(kept)) if len(kept) == 1 else "")


def in_words(rule: Rule, section: str) -> str:
    """How a rule makes one side of the other."""
    hub, own = (next(iter(side.values())).dims[0] for side in (rule.hub, rule.own))
    if len(rule.own) > 1:
        return f"parts of {shown(next(iter(rule.hub.values())).dims[0])}" if section == "" else f"{section} of them"
    whole = shown(own)
    if len(rule.hub) > 1:
        return f"{section} of {whole}" if section else f"parts of {whole}"
    if rule.stacked:
        return f"one of {whole}"
    return "the same" if hub == own else f"{shown(hub)} as {whole}"


_PER_SHARD = "per_shard"
_MERGE = "merge it first: reshard lora merge"
IS_IT = "is that the model of these weights? --model says whose they are"
_RANK = (("lora_rank",),)
"""The dim of a LoRA factor that no weight has."""


def as_dtype(text: str, name: str) -> str:
    dtype = ALIASES.get(text.lower(), text.lower())
    if dtype not in FLOATING:
        raise PlanError(f"{name}: its dtype is to be {text!r}, which is none")
    return dtype


def _unlike(
    groups: Mapping[tuple[object, ...], list[tuple[NameMatch, str]]], tensors: Mapping[str, Tensor]
) -> Iterator[tuple[NameMatch, str]]:
    """Members that differ in rule or shape: layers repeat."""
    seen = set()
    for members in groups.values():
        for found, name in members:
            key = (found.rule.number, found.section, found.factor, tensors[name].spec.shape)
            if key not in seen:
                seen.add(key)
                yield found, name
