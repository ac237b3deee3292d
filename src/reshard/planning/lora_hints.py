"""What to say where an adapter does not fit its base: the nearest name, and what leads to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile

from reshard.planning.catalog import Tensor
from reshard.planning.lora_names import lora_name
from reshard.planning.names import NameRules, is_state, layer_numbers
from reshard.planning.other_names import of_hugging_face
from reshard.planning.quantised import Quantised, quantised, quantiser

_MOST_RENAMINGS = 4


class Hints:
    """What was seen of how a base names and stores its weights."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._square: dict[tuple[str, bool], None] = {}
        self._told: dict[bool, str] = {}
        self._renamings: dict[str, tuple[str, str]] = {}
        self.way_on = ""

    def square(self, weight: str, *, in_out: bool) -> None:
        """Shapes leave open how it is stored, and it is taken as stored so."""
        self._square[weight, in_out] = None

    def told(self, weight: str, *, in_out: bool) -> None:
        """Shapes tell how it is stored."""
        self._told.setdefault(in_out, weight)

    def undecided(self) -> Iterator[str]:
        """Square weights of which nothing tells how they are stored: other layers say that this model has both ways."""
        by_bias = None if all(in_out for _, in_out in self._square) else stored_in_out(self._tensors)
        for name, in_out in self._square:
            told = self._told.get(not in_out) or (None if in_out else by_bias)
            if (name, not in_out) in self._square:
                told = None if in_out else "another adapter says it"
            if told is not None:
                self.say_how_stored()
                way = "[out, in]" if in_out else "[in, out]"
                yield f"{name}: nothing tells whether it is stored [out, in] or [in, out]; {told} is {way}"

    def say_how_stored(self) -> None:
        self.way_on = "reshard lora merge --fan-in-fan-out, or --no-fan-in-fan-out, says how all are stored"

    def no_base(self, wanted: str) -> str:
        """What to say where no weight has this name."""
        layer, missing = wanted.removesuffix(".weight"), f"its weight is missing, looked for {wanted}"
        if layer in self._codes:
            found = self._codes[layer].names
            whose = f" by {tool}" if (tool := quantiser(found)) else ""
            return f"its weight is quantised{whose}, {', '.join(found[:4])}: LoRA weights cannot be added to codes"
        return missing + self.near(wanted)

    def near(self, wanted: str) -> str:
        """The nearest name of the base, to go on with; "" where there is none, or what was said before leads to it."""
        led = self._led_by(wanted)
        near = "" if led else nearest(wanted, self._weights.get(tuple(layer_numbers(wanted)), ()))
        if not (near and self._leads(wanted, near)):
            if not self.way_on and of_hugging_face([wanted]) and not of_hugging_face(self._tensors):
                self.way_on = "--dst-names hf puts the base under the names that the adapter has, in the same pass"
            return ""
        options = " ".join(f"--adapter-rename '{old}=>{new}'" for old, new in self._renamings.values())
        self.way_on = f"reshard lora merge {options}, if these are the same layers"
        return f"; the base has {near}"

    def _led_by(self, wanted: str) -> bool:
        """Whether a way on is known that is another, or renames it to what the base has, or is long enough."""
        if not self._renamings:
            return bool(self.way_on)
        known = NameRules(rename=tuple(self._renamings.values())).renamed(wanted) in self._tensors
        return known or len(self._renamings) == _MOST_RENAMINGS

    def _leads(self, wanted: str, near: str) -> bool:
        """Note what renames one to the other, and leaves where they lead those that other renamings are for."""
        for common in range(3):
            renamings = {**self._renamings, wanted: renaming(wanted, near, common)}
            rules = NameRules(rename=tuple(renamings.values()))
            if all(rules.renamed(each) in self._tensors for each in renamings):
                self._renamings = renamings
                return True
        return False

    @cached_property
    def _weights(self) -> dict[tuple[str, ...], list[str]]:
        """The model's own by the numbers of their layers."""
        found: dict[tuple[str, ...], list[str]] = {}
        for name in self._tensors:
            if lora_name(name) is None and not is_state(name):
                found.setdefault(tuple(layer_numbers(name)), []).append(name)
        return found

    @cached_property
    def _codes(self) -> dict[str, Quantised]:
        return quantised({name: tensor.spec.dtype for name, tensor in self._tensors.items()})


def stored_in_out(tensors: Mapping[str, Tensor]) -> str | None:
    """A weight that is stored [in, out] by its bias, which is as long as a layer's output."""
    for name, tensor in tensors.items():
        if name.endswith(".weight") and len(tensor.spec.shape) == 2:
            bias = tensors.get(f"{name.removesuffix('weight')}bias")
            rows, columns = tensor.spec.shape
            if bias is not None and rows != columns and bias.spec.shape == (columns,):
                return name
    return None


def nearest(wanted: str, weights: Iterable[str]) -> str:
    """The weight whose name has the longest end in common with ``wanted``; "" without one."""
    best, length = "", 1 + wanted.endswith(".weight")
    for name in weights:
        same = len(_common(wanted.split(".")[::-1], name.split(".")[::-1]))
        if same > length:
            best, length = name, same
    return best


def _common(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """What two sequences begin with alike."""
    return [x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))]


def renaming(wanted: str, near: str, common: int = 0) -> tuple[str, str]:
    """What turns ``wanted`` into ``near``, for every layer: a regular expression, and what stands in its place.

    Args:
        common: how many of the parts behind that both have it shall name, too.

    >>> renaming("language_model.model.layers.0.q.weight", "model.layers.0.q.weight")
    ('^language_model\\\\.', '')
    >>> renaming("model.layers.0.q.weight", "model.text.layers.0.q.weight")
    ('^model\\\\.', 'model.text.')
    >>> renaming("model.layers.0.attn.q.weight", "model.layers.0.self_attn.q.weight")
    ('\\\\.attn\\\\.', '.self_attn.')
    >>> renaming("model.visual.merger.weight", "visual.merger.weight", common=1)
    ('^model\\\\.visual\\\\.', 'visual.')
    """
    old, new = wanted.split("."), near.split(".")
    end = max(len(_common(old[::-1], new[::-1])) - common, 0)
    old, new = old[: len(old) - end], new[: len(new) - end]
    front = len(_common(old, new))
    if front == len(old) and front:
        front -= 1  # what is put in needs a place: behind the last that both have
    lead = "." if front else ""
    pattern = "".join(re.escape(part) + r"\." for part in old[front:])
    return ("\\." if front else "^") + pattern, lead + "".join(f"{part}." for part in new[front:])
