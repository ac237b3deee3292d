"""Low-rank adapters: which A and B belong to which weight, by name and shape.

Adding one makes ``W + (B @ A) * scaling``. The last two dims count: A is [..., r, in], B [..., out, r] and
W [..., out, in], or [..., in, out] where the layer stores its weight transposed (``fan_in_fan_out``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from reshard.dtypes import FLOATING
from reshard.errors import PlanError, listed
from reshard.planning.catalog import Tensor
from reshard.planning.names import is_state

_SUFFIX = re.compile(
    r"(?P<module>.+)\.(?:mindpet_delta_lora_(?P<mindpet>[ab])|lora_(?P<peft>[ABab])(?:\.(?:[^.]+\.)?weight)?)"
)
_PREFIX = "base_model.model."
_ANY_LORA = re.compile(r"lora", re.IGNORECASE)


class LoraName(Struct, frozen=True):
    """One factor's name taken apart. ``module`` is the layer it adapts, ``side`` is ``a`` or ``b``."""

    module: str
    side: str

    @property
    def bases(self) -> tuple[str, ...]:
        """Names that the adapted weight may have, the likeliest first."""
        bare = self.module.removeprefix(_PREFIX)
        modules = dict.fromkeys((bare, self.module))
        return tuple(name for m in modules for name in (f"{m}.weight", m))


def lora_name(name: str) -> LoraName | None:
    """
    >>> lora_name("layers.0.wq.mindpet_delta_lora_a").bases[0]
    'layers.0.wq.weight'
    >>> lora_name("base_model.model.q_proj.lora_B.default.weight")
    LoraName(module='base_model.model.q_proj', side='b')
    """
    found = _SUFFIX.fullmatch(name)
    if found is None or is_state(name):
        return None
    return LoraName(found["module"], (found["mindpet"] or found["peft"]).lower())


class LoraPair(Struct, frozen=True):
    """The factors of one weight, and by what their product counts."""

    a: Tensor
    b: Tensor
    scaling: float
    transposed: bool


class LoraMerge(Struct, frozen=True):
    """``pairs`` by the name of the weight that each is added to; ``factors`` are the names used up."""

    pairs: Mapping[str, LoraPair]
    factors: frozenset[str]


Scaling = Callable[[str, int], float]
"""Module name and rank of its factors → scaling. Raises ReshardError."""


def pair_factors(tensors: Mapping[str, Tensor], scaling: Scaling, *, transposed: bool) -> LoraMerge:
    """Find every A with its B and its weight. Raises PlanError that lists all that do not fit."""
    sides: dict[str, dict[str, Tensor]] = {}
    faults = []
    for name, tensor in tensors.items():
        parsed = lora_name(name)
        if parsed is None:
            if _ANY_LORA.search(name) and not is_state(name):
                faults.append(f"{name}: an adapter tensor of a kind that cannot be merged")
            continue
        if parsed.side in sides.setdefault(parsed.module, {}):
            faults.append(f"{name}: a second factor {parsed.side.upper()} of {parsed.module}")
        sides[parsed.module][parsed.side] = tensor
    if not sides and not faults:
        raise PlanError("no LoRA tensors", hint="give the adapter with --adapter, or use reshard merge")
    pairs: dict[str, LoraPair] = {}
    for module, found in sides.items():
        fault = _fault(module, found, tensors, pairs)
        if fault:
            faults.append(fault)
            continue
        base = _base(module, tensors) or ""
        pairs[base] = LoraPair(found["a"], found["b"], scaling(module, found["a"].spec.shape[-2]), transposed)
        shapes = _shape_fault(tensors[base], pairs[base])
        if shapes:
            faults.append(f"{module}: {shapes}")
    if faults:
        raise PlanError(
            "the adapter does not fit:\n" + listed(faults), hint="is it the adapter of this model, and whole?"
        )
    return LoraMerge(pairs, frozenset(t.name for p in pairs.values() for t in (p.a, p.b)))


def _base(module: str, tensors: Iterable[str]) -> str | None:
    return next((n for n in LoraName(module, "a").bases if n in tensors), None)


def _fault(module: str, found: Mapping[str, Tensor], tensors: Iterable[str], pairs: Iterable[str]) -> str | None:
    for side, other in (("a", "b"), ("b", "a")):
        if side not in found:
            return f"{found[other].name}: its factor {side.upper()} is missing"
    base = _base(module, tensors)
    if base is None:
        return f"{found['a'].name}: its weight is missing, looked for {LoraName(module, 'a').bases[0]}"
    if base in pairs:
        return f"{found['a'].name}: a second adapter of {base}"
    if len(found["a"].spec.shape) < 2:
        return f"{found['a'].name}: {found['a'].spec} is not a matrix"
    return None


def _shape_fault(weight: Tensor, pair: LoraPair) -> str | None:
    """What does not fit, None when [..., out, r] @ [..., r, in] has the weight's shape."""
    a, b, w = pair.a.spec.shape, pair.b.spec.shape, weight.spec.shape
    made = (*b[:-2], a[-1], b[-2]) if pair.transposed else (*b[:-2], b[-2], a[-1])
    fits = len(a) == len(b) >= 2 and a[:-2] == b[:-2] and a[-2] == b[-1] and made == w
    if not fits:
        return f"A {list(a)} and B {list(b)} do not make {weight.name} {list(w)}"
    wrong = next((t for t in (weight, pair.a, pair.b) if t.spec.dtype not in FLOATING), None)
    return f"{wrong.name} is {wrong.spec.dtype}" if wrong else None
