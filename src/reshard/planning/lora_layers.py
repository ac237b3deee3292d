"""The layers of one adapter, each with the weight that it changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from msgspec import Struct

from reshard.dtypes import FLOATING
from reshard.errors import PlanError
from reshard.planning.catalog import Tensor, is_viewed
from reshard.planning.lora_experts import saved_as
from reshard.planning.lora_forms import Fit, fits_of, flat, multiplied, viewed
from reshard.planning.lora_hints import Hints
from reshard.planning.lora_names import EXPERTS, LoraPart, model_name
from reshard.planning.lora_replaced import Replacing, is_head
from reshard.planning.lora_sums import LoraSums
from reshard.planning.lora_values import COUNTS_WHOLE, Adapter, NewRows, Term
from reshard.planning.steps import Form

LayerParts = Mapping[LoraPart, Tensor]
Pair = tuple[Tensor, Tensor]
_LAYER: tuple[LoraPart, LoraPart] = ("a", "b")
_EMBEDDING: tuple[LoraPart, LoraPart] = ("embedding_a", "embedding_b")


class _FittedWeight(Struct, frozen=True):
    """The weight of a layer, how factors make it, and what the adapter's patterns call it."""

    weight: Tensor
    fit: Fit
    called: str


class Layers:
    """Gives ``sums`` and ``rows`` what the parts of each layer change.

    Args:
        modules, initial: the parts of each, those that the training began with by the model's names.
    """

    def __init__(
        self,
        adapter: Adapter,
        modules: Mapping[str, LayerParts],
        initial: Mapping[str, LayerParts],
        base: Replacing,
        hints: Hints,
    ) -> None:
        self.rows: dict[str, NewRows] = {}
        self.warnings: list[str] = []
        self.multiplied: list[str] = []
        self._adapter = adapter
        self._rules = adapter.rules
        self._modules = modules
        self._initial = initial
        self._base = base
        self._hints = hints

    def add(self, module: str, parts: LayerParts, sums: LoraSums) -> Iterator[str]:
        """Find what the parts of a layer change; gives what does not fit."""
        layer = model_name(module)
        try:
            if "tokens" in parts:
                self._add_rows(layer, parts["tokens"])
            if "times" in parts:
                self.multiplied += self._multiply(layer, parts["times"])
            if parts.keys() - {"tokens", "times"}:
                self._add_sum(module, layer, parts, sums)
        except PlanError as misfit:
            yield misfit.message

    def _add_sum(self, module: str, layer: str, parts: LayerParts, sums: LoraSums) -> None:
        pair = self._pair(module, parts)
        found = self._weight(layer, pair, embedding=_EMBEDDING[0] in parts, module=module)
        weight, fit = found.weight, found.fit
        if sums.has(weight.name) and weight.name != self._base.embedding:  # which a head may be, too
            raise PlanError(f"{pair[0].name}: a second adapter of {weight.name}")
        scaling = self._rules.scaling(found.called, fit.rank) * self._adapter.weight
        sums.add(weight.name, Term(viewed(fit, weight, *pair), scaling, fit.form))
        if self._adapter.initial:
            first = self._pair(module, self._initial.get(layer, {}), "the initial adapter lacks it")
            if any(one.spec.shape != two.spec.shape for one, two in zip(pair, first, strict=True)):
                raise PlanError(f"{first[0].name}: the initial adapter's factors have other shapes")
            sums.add(weight.name, Term(viewed(fit, weight, *first), -scaling, fit.form))
        if "bias" in parts:
            bias = self._bias_of(weight, parts["bias"])
            sums.add(bias, Term((parts["bias"],), scaling, "vector"))
        if "magnitude" in parts:
            sums.scale(weight.name, self._magnitude(fit, weight, parts["magnitude"]))
        elif self._rules.dora:
            raise PlanError(f"{pair[0].name}: use_dora says that it has a magnitude, which is missing")

    def _pair(self, module: str, parts: LayerParts, lacking: str = "") -> Pair:
        """A and B of a layer."""
        sides = _EMBEDDING if any(kind in parts for kind in _EMBEDDING) else _LAYER
        if lacking and not any(kind in parts for kind in sides):
            raise PlanError(f"{module}: {lacking}")
        for side in sides:
            if side not in parts:
                which = "other factor" if module.endswith(EXPERTS) else f"factor {side[-1].upper()}"
                raise PlanError(f"{next(iter(parts.values())).name}: its {which} is missing")
        a, b = parts[sides[0]], parts[sides[1]]
        wrong = next((t for t in (a, b) if t.spec.dtype not in FLOATING), None)
        if wrong is not None:
            raise PlanError(f"{wrong.name} is {wrong.spec.dtype}")
        if min(len(a.spec.shape), len(b.spec.shape)) < 2:
            raise PlanError(f"{a.name}: {a.spec} and {b.spec} are no matrices")
        return a, b

    def _weight(self, layer: str, pair: Pair, *, embedding: bool, module: str) -> _FittedWeight:
        base = self._base.tensors
        renamed = self._rules.rename(layer)
        name = self._called(renamed)
        if name is not None:
            form: Form | None = "in_out" if embedding else "out_in" if is_head(f"{renamed}.weight") else None
            fitting = self._fitting(base[name], pair, form)
            if not fitting:
                shapes = f"A {list(pair[0].spec.shape)} and B {list(pair[1].spec.shape)}"
                raise PlanError(f"{module}: {shapes} do not make {name} {list(base[name].spec.shape)}")
            called = f"{layer}.weight" if self._is_parameter(f"{layer}.weight") else layer
            return _FittedWeight(base[name], fitting[0] if form else self._one_fit(base[name], fitting), called)
        found = self._fitting_inside(renamed, pair)
        if not found:
            of = f" (target_parameters: {', '.join(self._rules.parameters)})" if self._rules.parameters else ""
            raise PlanError(f"{pair[0].name}: {self._hints.no_base(f'{renamed}.weight')}{of}")
        if len(found) > 1:
            if len({fit.in_out for fits in found.values() for fit in fits}) > 1:
                self._hints.say_how_stored()
            raise PlanError(f"{pair[0].name}: nothing tells of which parameter it is, {' or '.join(found)}")
        ((name, fitting),) = found.items()
        return _FittedWeight(base[name], self._one_fit(base[name], fitting), f"{layer}.{name.rpartition('.')[2]}")

    def _fitting_inside(self, renamed: str, pair: Pair) -> dict[str, list[Fit]]:
        """The parameters of a layer that factors may be of, and how they make each."""
        base = self._base.tensors
        inside = self._inside.get(renamed, [])
        if self._rules.parameters:
            inside = [n for n in inside if self._is_parameter(n)]
        inside = [n for n in inside if base[n].scales or base[n].spec.dtype in FLOATING]
        return {n: fits for n in inside if (fits := self._fitting(base[n], pair))}

    @cached_property
    def _stored_inside(self) -> dict[str, set[bool]]:
        """By what they lie in, whether parameters whose factors leave no choice are stored [in, out]: PEFT takes all of
        a layer alike.
        """
        found: dict[str, set[bool]] = {}
        for module, parts in self._modules.items():
            renamed = self._rules.rename(model_name(module))
            if renamed in self._inside and parts.keys() >= {*_LAYER}:
                ways = list(self._fitting_inside(renamed, (parts["a"], parts["b"])).values())
                if len(ways) == len(ways[0] if ways else ()) == 1:
                    found.setdefault(renamed, set()).add(ways[0][0].in_out)
        return found

    @cached_property
    def _inside(self) -> dict[str, list[str]]:
        """The base's tensors by what they lie in."""
        found: dict[str, list[str]] = {}
        for name in self._base.tensors:
            within, dot, _ = name.rpartition(".")
            if dot:
                found.setdefault(within, []).append(name)
        return found

    def _called(self, renamed: str) -> str | None:
        """The weight of a layer."""
        names = (f"{renamed}.weight", renamed, f"{saved_as(renamed)}.weight")
        return next((n for n in names if n in self._base.tensors), None) or self._tied_weight(renamed)

    def _multiply(self, layer: str, by: Tensor) -> Iterator[str]:
        """Let the weight of a layer, and of its outputs the bias, count by what (IA)³ trained; gives their names."""
        renamed = self._rules.rename(layer)
        name = self._called(renamed)
        if name is None:
            raise PlanError(f"{by.name}: {self._hints.no_base(f'{renamed}.weight')}")
        if self._adapter.weight != 1:
            raise PlanError(f"{by.name}: (IA)³ is merged whole and alone")
        dim, bias = self._multiplied_dim(self._base.tensors[name], by), f"{name.removesuffix('weight')}bias"
        both = (name, bias) if by.spec.shape[1] == 1 and bias in self._base.tensors else (name,)
        for each in both:
            self._base.tensors[each] = multiplied(self._base.tensors[each], by, 0 if each == bias else dim)
            yield each

    def _multiplied_dim(self, weight: Tensor, by: Tensor) -> int:
        """Which dim of a weight are the outputs or inputs that are multiplied: (outputs, 1) or (1, inputs) tells."""
        shape, of = weight.spec.shape, by.spec.shape
        ways = (False, True) if self._rules.stored == "by shape" else (self._rules.stored == "in_out",)
        fitting: dict[bool, int] = {}
        if len(shape) == len(of) == 2 and of.count(1) == 1:
            dims = {in_out: int((of[0] == 1) != in_out) for in_out in ways}
            fitting = {in_out: dim for in_out, dim in dims.items() if shape[dim] == of[0] * of[1]}
        if not fitting:
            raise PlanError(f"{by.name}: {by.spec} does not multiply {weight.name} {list(shape)}")
        if len(fitting) > 1:
            self._hints.square(weight.name, in_out=self._rules.square_in_out)
            return fitting[self._rules.square_in_out]
        ((in_out, dim),) = fitting.items()
        self._hints.told(weight.name, in_out=in_out)
        return dim

    def _is_parameter(self, name: str) -> bool:
        """Whether it has factors as a parameter, by whose name patterns know it."""
        return f".{name}".endswith(tuple(f".{end}" for end in self._rules.parameters))

    def _fitting(self, weight: Tensor, pair: Pair, form: Form | None = None) -> list[Fit]:
        """Ways in which factors make a weight, and that the rules do not rule out.

        Args:
            form: the one that all models have for it: embeddings and heads are stored alike, whatever layers are.
        """
        if weight.scales is None and weight.spec.dtype not in FLOATING:
            raise PlanError(f"{weight.name} is {weight.spec.dtype}")
        if weight.scales and is_viewed(weight):
            raise PlanError(f"{weight.name}: its codes are put together on the way; convert the base first")
        fitting = list(fits_of(weight.spec.shape, *(t.spec.shape for t in pair)))
        if form:
            return [fit for fit in fitting if fit.form == form]
        if self._rules.stored != "by shape":
            return [f for f in fitting if f.form == "convolution" or f.in_out == (self._rules.stored == "in_out")]
        return fitting

    def _one_fit(self, weight: Tensor, fitting: list[Fit]) -> Fit:
        """The way in which the weight is stored. Only square ones leave it open."""
        if len(fitting) == 1:
            if fitting[0].told:
                self._hints.told(weight.name, in_out=fitting[0].in_out)
            return fitting[0]
        chosen = next((f for f in fitting if f.told and f.in_out == self._rules.square_in_out), None)
        if chosen is None:
            told = self._stored_inside.get(weight.name.rpartition(".")[0])
            chosen = next((f for f in fitting if {f.in_out} == told), None)
            if chosen is not None:
                return chosen
            self._hints.say_how_stored()
            raise PlanError(f"{weight.name}: nothing tells whether it is stored [expert, out, in] or [expert, in, out]")
        self._hints.square(weight.name, in_out=chosen.in_out)
        return chosen

    def _tied_weight(self, layer: str) -> str | None:
        """The embedding that a head without a weight of its own is tied to."""
        if not self._base.is_tied(f"{layer}.weight"):
            return None
        embedding = self._base.embedding
        self.warnings.append(f"{layer} is tied to {embedding}: what is added to one changes both sides, as in PEFT")
        return embedding

    def _bias_of(self, weight: Tensor, bias: Tensor) -> str:
        name = f"{weight.name.removesuffix('weight')}bias"
        own = self._base.tensors.get(name)
        if own is None:
            raise PlanError(f"{bias.name}: it is added to {name}, which the base does not have; nor does PEFT merge it")
        if own.spec.shape != bias.spec.shape or own.spec.dtype not in FLOATING:
            raise PlanError(f"{bias.name}: {bias.spec} is added to {name}, which is {own.spec}")
        return name

    def _magnitude(self, fit: Fit, weight: Tensor, magnitude: Tensor) -> Tensor:
        if self._adapter.initial or self._adapter.weight != 1:
            raise PlanError(f"{magnitude.name}: DoRA is merged whole and alone")
        if len(weight.spec.shape) == 3 and fit.form != "convolution":
            raise PlanError(f"{magnitude.name}: DoRA of stacked experts")
        outs = weight.spec.shape[1 if fit.form == "in_out" else 0]
        lengths = flat(magnitude)
        if lengths.spec.shape != (outs,):
            raise PlanError(f"{magnitude.name}: {magnitude.spec} for {outs} outputs of {weight.name}")
        return lengths

    def _add_rows(self, layer: str, rows: Tensor) -> None:
        if self._adapter.weight != 1:
            raise PlanError(f"{rows.name} {COUNTS_WHOLE}")
        renamed = self._rules.rename(layer)
        wanted = renamed if renamed in self._base.tensors else f"{renamed}.weight"
        weight = self._base.tensors.get(wanted)
        if weight is None and self._adapter.keeps_tied and self._base.is_tied(wanted):
            return  # the embedding's once more
        if weight is None:
            raise PlanError(f"{rows.name}: {self._hints.no_base(wanted)}")
        keys = [key for key in self._rules.tokens if f".{layer}".endswith(f".{key}") or not key]
        if not keys:
            raise PlanError(f"{rows.name}: which rows of {wanted} these are, trainable_token_indices does not say")
        at = self._rules.tokens[keys[0]]
        shape = weight.spec.shape
        if rows.spec.shape != (len(at), *shape[1:]) or len(shape) != 2:
            raise PlanError(f"{rows.name}: {rows.spec} for {len(at)} rows of {wanted} {list(shape)}")
        if len(set(at)) != len(at) or min(at, default=0) < 0 or max(at, default=0) >= shape[0]:
            raise PlanError(f"{rows.name}: trainable_token_indices has rows that {wanted} has not, or some twice")
        if weight.scales or weight.spec.dtype not in FLOATING:
            raise PlanError(f"{rows.name}: {wanted} is {weight.spec.dtype}, or scaled")
        self.rows[wanted] = NewRows(rows, at)
