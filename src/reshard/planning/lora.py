"""Low-rank adapters: which A and B belong to which weight, by name and shape.

Adding one makes ``W + (B @ A) * scaling``. The last two dims count: A is [..., r, in], B [..., out, r] and
W [..., out, in], or [..., in, out] where the layer stores its weight transposed (``fan_in_fan_out``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Literal

from msgspec import Struct

from reshard.dtypes import FLOATING
from reshard.errors import PlanError, listed
from reshard.planning.catalog import Tensor
from reshard.planning.names import is_state, layer_numbers
from reshard.planning.quantised import Quantised, quantised

_SUFFIX = re.compile(
    r"(?P<module>.+)\.(?:mindpet_delta_lora_(?P<mindpet>[ab])|lora_(?P<peft>[ABab])(?:\.(?:[^.]+\.)?weight)?)"
)
_PREFIX = "base_model.model."
_ANY_LORA = re.compile(r"lora", re.IGNORECASE)
_NO_LORA = "an adapter elsewhere: reshard lora merge --adapter; where there is none: reshard merge, reshard convert"


class LoraName(Struct, frozen=True):
    """One factor's name taken apart. ``module`` is the layer it adapts, ``side`` is ``a`` or ``b``."""

    module: str
    side: str

    @property
    def layer(self) -> str:
        """The layer as its model calls it, without what PEFT puts in front."""
        return self.module.removeprefix(_PREFIX)


def bases_of(module: str, layer: str) -> tuple[str, ...]:
    """Names that the adapted weight may have, the likeliest first."""
    return tuple(name for m in dict.fromkeys((layer, module)) for name in (f"{m}.weight", m))


def lora_name(name: str) -> LoraName | None:
    """
    >>> lora_name("layers.0.wq.mindpet_delta_lora_a")
    LoraName(module='layers.0.wq', side='a')
    >>> lora_name("base_model.model.q_proj.lora_B.default.weight").layer
    'q_proj'
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


Stored = Literal["by shape", "in_out", "out_in"]
"""How layers store their weights: [in, out], [out, in], or as the shapes of weight and factors tell."""


class Rules(Struct, frozen=True):
    """How factors count.

    Attributes:
        scaling: name of a layer and rank of its factors → scaling. Raises ReshardError.
        stored: ``by shape`` leaves square weights to ``square_in_out``.
        rename: layer of the adapter → layer of the base.
    """

    scaling: Callable[[str, int], float]
    stored: Stored = "by shape"
    square_in_out: bool = False
    rename: Callable[[str], str] = str


def pair_factors(tensors: Mapping[str, Tensor], rules: Rules) -> LoraMerge:
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
        raise PlanError("no LoRA tensors", hint=_NO_LORA)
    pairing = _Pairing(tensors, rules)
    for module, found in sides.items():
        faults += pairing.add(module, found)
    faults += pairing.undecided()
    if faults:
        raise PlanError("the adapter does not fit:\n" + listed(faults), hint=pairing.hint())
    return LoraMerge(pairing.pairs, frozenset(t.name for p in pairing.pairs.values() for t in (p.a, p.b)))


class _Pairing:
    """Pairs as they are found, and what tells how layers store their weights."""

    def __init__(self, tensors: Mapping[str, Tensor], rules: Rules) -> None:
        self.pairs: dict[str, LoraPair] = {}
        self._tensors = tensors
        self._rules = rules
        self._square: list[str] = []
        self._told: dict[bool, str] = {}
        self._way_on = ""

    def add(self, module: str, found: Mapping[str, Tensor]) -> Iterator[str]:
        """Pair the factors of a layer; gives what does not fit."""
        layer = LoraName(module, "").layer
        for side, other in (("a", "b"), ("b", "a")):
            if side not in found:
                yield f"{found[other].name}: its factor {side.upper()} is missing"
                return
        a, b = found["a"], found["b"]
        wanted = bases_of(module, self._rules.rename(layer))
        base = next((name for name in wanted if name in self._tensors), None)
        if base is None:
            yield f"{a.name}: {self._no_base(wanted[0])}"
        elif base in self.pairs:
            yield f"{a.name}: a second adapter of {base}"
        elif len(a.spec.shape) < 2:
            yield f"{a.name}: {a.spec} is not a matrix"
        else:
            fault, transposed = self._orientation(self._tensors[base], a, b)
            scaling = 0.0 if fault else self._rules.scaling(layer, a.spec.shape[-2])
            self.pairs[base] = LoraPair(a, b, scaling, transposed)
            if fault:
                yield f"{module}: {fault}"

    def _orientation(self, weight: Tensor, a: Tensor, b: Tensor) -> tuple[str, bool]:
        """What does not fit, else ""; and whether the weight is stored [in, out]."""
        fitting = [t for t in (False, True) if _makes(a, b, transposed=t) == weight.spec.shape]
        if self._rules.stored != "by shape":
            fitting = [t for t in fitting if t == (self._rules.stored == "in_out")]
        elif len(fitting) == 2:
            self._square.append(weight.name)
            fitting = [self._rules.square_in_out]
        elif fitting:
            self._told.setdefault(fitting[0], weight.name)
        if not fitting:
            said = "; adapters of convolutions are not merged" if _of_convolution(weight, a, b) else ""
            shapes = f"A {list(a.spec.shape)} and B {list(b.spec.shape)}"
            return f"{shapes} do not make {weight.name} {list(weight.spec.shape)}{said}", False
        wrong = next((t for t in (weight, a, b) if t.spec.dtype not in FLOATING), None)
        return f"{wrong.name} is {wrong.spec.dtype}" if wrong else "", fitting[0]

    def undecided(self) -> Iterator[str]:
        """Square weights of which nothing tells how they are stored: other layers say that this model has both ways."""
        if not self._square:
            return
        other = not self._rules.square_in_out
        told = self._told.get(other)
        if told is None and other:
            told = _stored_in_out(self._tensors)
        if told is not None:
            way = "[in, out]" if other else "[out, in]"
            self._way_on = "reshard lora merge --fan-in-fan-out, or --no-fan-in-fan-out, says how all are stored"
            for name in self._square:
                yield f"{name}: nothing tells whether it is stored [out, in] or [in, out]; {told} is {way}"

    @cached_property
    def _codes(self) -> dict[str, Quantised]:
        return quantised({name: tensor.spec.dtype for name, tensor in self._tensors.items()})

    def _no_base(self, wanted: str) -> str:
        layer, missing = wanted.removesuffix(".weight"), f"its weight is missing, looked for {wanted}"
        if layer in self._codes:
            names = ", ".join(self._codes[layer].names[:4])
            return f"its weight is quantised, {names}: LoRA weights cannot be added to codes"
        near = "" if self._way_on else _nearest(wanted, self._tensors)
        if not near:
            return missing
        self._way_on = f"reshard lora merge --adapter-rename '{_renaming(wanted, near)}', if these are the same layers"
        return f"{missing}; the base has {near}"

    def hint(self) -> str:
        return self._way_on or "is it the adapter of this model, and whole?"


def _makes(a: Tensor, b: Tensor, *, transposed: bool) -> tuple[int, ...] | None:
    """The shape of ``B @ A``; None where they do not multiply. Four dims are a convolution's, not a stack of
    matrices.
    """
    left, right = b.spec.shape, a.spec.shape
    if not 2 <= len(left) == len(right) <= 3 or left[:-2] != right[:-2] or left[-1] != right[-2]:
        return None
    rows, columns = left[-2], right[-1]
    return (*left[:-2], columns, rows) if transposed else (*left[:-2], rows, columns)


def _of_convolution(weight: Tensor, a: Tensor, b: Tensor) -> bool:
    """A [r, in, k…], B [out, r, 1…] and W [out, in, k…], of one, two or three dims."""
    w, down, up = weight.spec.shape, a.spec.shape, b.spec.shape
    return len(w) == len(down) == len(up) > 2 and up[1] == down[0] and w[0] == up[0] and w[2:] == down[2:]


def _stored_in_out(tensors: Mapping[str, Tensor]) -> str | None:
    """A weight that is stored [in, out] by its bias, which is as long as a layer's output."""
    for name, tensor in tensors.items():
        if name.endswith(".weight") and len(tensor.spec.shape) == 2:
            bias = tensors.get(f"{name.removesuffix('weight')}bias")
            rows, columns = tensor.spec.shape
            if bias is not None and rows != columns and bias.spec.shape == (columns,):
                return name
    return None


def _nearest(wanted: str, tensors: Iterable[str]) -> str:
    """The weight of the same layer numbers whose name has the longest end in common with ``wanted``; "" without one."""
    numbers = layer_numbers(wanted)
    best, length = "", 1 + wanted.endswith(".weight")
    for name in tensors:
        same = len(_common(wanted.split(".")[::-1], name.split(".")[::-1]))
        if same > length and layer_numbers(name) == numbers and lora_name(name) is None and not is_state(name):
            best, length = name, same
    return best


def _common(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """What two sequences begin with alike."""
    return [x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))]


def _renaming(wanted: str, near: str) -> str:
    """What turns ``wanted`` into ``near``, for every layer, as ``--adapter-rename`` takes it.

    >>> _renaming("language_model.model.layers.0.q.weight", "model.layers.0.q.weight")
    '^language_model\\\\.=>'
    >>> _renaming("model.layers.0.q.weight", "model.text.layers.0.q.weight")
    '^model\\\\.=>model.text.'
    >>> _renaming("model.layers.0.attn.q.weight", "model.layers.0.self_attn.q.weight")
    '\\\\.attn\\\\.=>.self_attn.'
    """
    old, new = wanted.split("."), near.split(".")
    end = len(_common(old[::-1], new[::-1]))
    old, new = old[: len(old) - end], new[: len(new) - end]
    front = len(_common(old, new))
    if front == len(old) and front:
        front -= 1  # what is put in needs a place: behind the last that both have
    lead = "." if front else ""
    pattern = "".join(re.escape(part) + r"\." for part in old[front:])
    return ("\\." if front else "^") + f"{pattern}=>{lead}" + "".join(f"{part}." for part in new[front:])
