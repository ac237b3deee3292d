"""Tensors that are alike but for their names and for where in its files each lies: layers repeat, and what is worked
out of one holds of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from msgspec import Struct

from reshard.index import TensorSpec
from reshard.planning.steps import Step


class _OneTensor(Protocol):
    @property
    def spec(self) -> TensorSpec: ...
    @property
    def step(self) -> Step: ...


class Alike(Struct, frozen=True):
    """The number of each tensor's kind, and of each kind the number of its first tensor."""

    kinds: Sequence[int]
    first: Sequence[int]


def kinds_of(tensors: Iterable[_OneTensor]) -> Alike:
    """Kinds are numbered in the order of their first tensors."""
    numbers: dict[object, int] = {}
    kinds = [numbers.setdefault(_in_common(tensor), len(numbers)) for tensor in tensors]
    first: list[int] = []
    for number, kind in enumerate(kinds):
        if kind == len(first):
            first.append(number)
    return Alike(kinds, first)


def _in_common(tensor: _OneTensor) -> tuple[object, ...]:
    """What all tensors of a kind have."""
    spec, step = tensor.spec, tensor.step
    base = step.base
    found: list[object] = [step.__class__, len(step.beside), base.dtype, base.shape, spec.dtype, spec.shape]
    for piece in base.pieces:
        extents = piece.extents
        coded = bool(extents) and extents[0].coded is not None
        found += (piece.file, piece.box, piece.outer, piece.order, coded)
    return tuple(found)
