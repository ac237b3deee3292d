"""Adapters, what they count by, and what a merge makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from msgspec import Struct

from reshard.errors import UsageError
from reshard.planning.catalog import Tensor
from reshard.planning.steps import Form

StoredOrder = Literal["by shape", "in_out", "out_in"]
"""How layers store their weights: [in, out], [out, in], or as the shapes of weight and factors tell."""
Combination = Literal["cat", "linear"]
"""How several adapters are put together, in PEFT's words: their products are added, or their factors before that."""
COUNTS_WHOLE = "counts whole: leave the weight of its adapter at 1"
"""Of what stands in place of the base's own: no part of it can be added."""


_HEADLESS = ("Classification", "QuestionAnswering", "MultipleChoice", "Model")  # so architectures without a head end
_WITH_HEAD = ("HeadModel", "HeadsModel")


def combination_named(text: str) -> Combination:
    """Raises UsageError."""
    if text in ("cat", "linear"):
        return "cat" if text == "cat" else "linear"
    raise UsageError(f"--combination {text!r}", hint="cat or linear")


class Rules(Struct, frozen=True):
    """How the tensors of an adapter count.

    Attributes:
        scaling: name of a layer and rank of its factors → scaling. Raises ReshardError.
        stored: ``by shape`` leaves square weights to ``square_in_out``.
        rename: layer of the adapter → layer of the base.
        tokens: rows of embeddings that were trained, by the end of the layer's name; "" is any embedding.
        parameters: ends of the names of parameters that have factors and are not a layer's ``weight``.
        dora: every layer has magnitudes.
        targets: ends of the names of layers, all of which have factors.
        saved: modules that were trained whole.
    """

    scaling: Callable[[str, int], float]
    stored: StoredOrder = "by shape"
    square_in_out: bool = False
    rename: Callable[[str], str] = str
    tokens: Mapping[str, tuple[int, ...]] = {}
    parameters: tuple[str, ...] = ()
    dora: bool = False
    targets: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()


class Adapter(Struct, frozen=True):
    """What one adapter holds.

    Attributes:
        tensors: by the names that its files give them.
        weight: by what all that it adds counts besides.
        initial: the factors that it began with, where the training took these out of the base.
        keeps_tied: its embedding and its head, or its rows of both, are the same, byte for byte.
    """

    tensors: Mapping[str, Tensor]
    rules: Rules
    weight: float = 1.0
    initial: Mapping[str, Tensor] = {}
    keeps_tied: bool = False


class Model(Struct, frozen=True):
    """What the base's configuration says: its class, and whether embedding and head are one weight; "" and None where
    it says nothing.
    """

    architecture: str = ""
    tied: bool | None = None

    @property
    def has_tied_head(self) -> bool:
        """Of a base that has no weight of a head."""
        name = self.architecture
        return self.tied is not False and not (name.endswith(_HEADLESS) and not name.endswith(_WITH_HEAD))

    @property
    def is_unknown(self) -> bool:
        return not self.architecture and self.tied is None


class How(Struct, frozen=True):
    """How adapters are put together, and what is known of the base. ``own_names``: it has no others by now."""

    combination: Combination = "cat"
    allow_nan: bool = False
    model: Model = Model()
    own_names: bool = True


class Term(Struct, frozen=True):
    """What is added to a weight; ``factors`` are B and A as ``form`` sees them, or a vector alone."""

    factors: tuple[Tensor, ...]
    scaling: float
    form: Form


class Sum(Struct, frozen=True):
    """All that is added to a weight, and the length of its outputs after that (DoRA)."""

    terms: tuple[Term, ...]
    magnitude: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        factors = tuple(factor for term in self.terms for factor in term.factors)
        return (*factors, self.magnitude) if self.magnitude else factors


class NewRows(Struct, frozen=True):
    """Rows that take the place of those ``at`` these numbers."""

    rows: Tensor
    at: tuple[int, ...]


class MadeAs(Struct, frozen=True):
    """A tensor of a merge of which others are made: its name there, and the dtype in which it is made."""

    name: str
    dtype: str


class LoraMerge(Struct, frozen=True):
    """What becomes of weights.

    Attributes:
        tensors: of the base, by the names that the model gives them, some replaced.
        sums, rows: by the names of weights, what changes them.
        used: by name, why a tensor of an adapter does not reach the target as it is.
        replaced: names of weights of the base that the adapter's stand in place of.
        copies: weights that the adapter has a copy of, each held by both.
        config: what the model's configuration has to say from now on.
        inside: the factors lie in the base itself.
        made: tensors of which those of the target are made by now; ``MADE - n`` of a ``Held`` is the n-th.
    """

    tensors: Mapping[str, Tensor]
    sums: Mapping[str, Sum]
    rows: Mapping[str, NewRows]
    used: Mapping[str, str]
    replaced: tuple[str, ...] = ()
    copies: tuple[Tensor, ...] = ()
    config: Mapping[str, int] = {}
    warnings: tuple[str, ...] = ()
    allow_nan: bool = False
    inside: bool = False
    made: tuple[MadeAs, ...] = ()

    @property
    def changed(self) -> frozenset[str]:
        """Names of weights that something is added to or put into."""
        return frozenset((*self.sums, *self.rows))
