"""How a tensor is made: pieces of files that are put together, and steps that compute. They are data, as a plan is."""

from __future__ import annotations

from itertools import chain
from typing import Literal

from msgspec import Struct

from reshard.index import MADE, ZEROS, Extent, TensorSpec, cut_extents
from reshard.layout.box import Box, ordered


class Piece(Struct, frozen=True, omit_defaults=True, gc=False):  # very many, and never part of a circle
    """One box of a tensor, row-major, in the extents of one file.

    Attributes:
        file: counts the plan's or the task's files; ``ZEROS`` where no file holds it and it is filled with zeros,
            ``MADE - n`` where the n-th part of its step makes it, whose elements count as bytes of a file.
        outer: what the extents hold, where that is more than ``box``.
        order: which dim of the tensor each dim of what the extents hold is; ``()`` where they are the tensor's own.
    """

    file: int
    box: Box
    extents: tuple[Extent, ...]
    outer: Box | None = None
    order: tuple[int, ...] = ()

    @property
    def stored(self) -> Box:
        """What the extents hold; ``box`` lies in it."""
        return self.outer or self.box

    def extents_of(self, part: Box, itemsize: int) -> tuple[Extent, ...]:
        """The bytes of a box that lies in what the extents hold, in the order in which they lie there.

        >>> Piece(0, Box((0, 0), (2, 4)), (Extent(100, 8),)).extents_of(Box((0, 1), (2, 3)), 1)
        (Extent(offset=101, nbytes=2), Extent(offset=105, nbytes=2))
        """
        if part == self.stored:
            return self.extents
        part, stored = (ordered(box, self.order) if self.order else box for box in (part, self.stored))
        runs = (cut_extents(self.extents, at * itemsize, n * itemsize) for at, n in part.runs_in(stored))
        return tuple(chain.from_iterable(runs))


class Assembly(Struct, frozen=True, omit_defaults=True, tag="copy"):
    """A tensor put together: the pieces tile ``shape``. As a step it is the copy of its elements.

    ``shape`` is the tensor's, or a view of it: some dims as several (``layout.view``).
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def base(self) -> Assembly:
        return self

    @property
    def beside(self) -> tuple[Assembly, ...]:
        return ()


Form = Literal["out_in", "in_out", "convolution", "experts_out_in", "experts_in_out", "vector"]
"""How a weight lies: which of its dims the rows of B and the columns of A are.

``out_in``, ``in_out``: matrices, or stacks of them and of factors. ``convolution``: its kernel is A's. ``experts_…``:
A is viewed as [expert, rank, in], B as [out, rank, expert]. ``vector``: no product, as long as what it is added to.
"""


class Product(Struct, frozen=True):
    """What is added to a weight: B @ A, or a vector alone, times ``scaling``. ``factors``: B and A, or the vector."""

    factors: tuple[Assembly, ...]
    scaling: float
    form: Form


class Scaled(Struct, frozen=True, tag="scaled"):
    """The step ``of * scale``: one element of ``scale`` counts for a block of so many elements in each dim.

    Blocks and scales are those of the results, whose last blocks may be shorter.
    """

    of: Assembly
    scale: Assembly
    block: tuple[int, ...]

    @property
    def base(self) -> Assembly:
        return self.of

    @property
    def beside(self) -> tuple[Assembly, ...]:
        return (self.scale,)


class LoraAdd(Struct, frozen=True, omit_defaults=True, tag="lora"):
    """The step ``W + B @ A * scaling + …``, of all products in order. ``magnitude``: the length that the weights of
    each output get after that (DoRA). ``allow_nan``: a sum may be no finite number, though all that it is made of is.
    ``in_steps``: each step of a sum of 32 bits is rounded, as MindSpore does where factors lie beside their weights.
    """

    weight: Assembly | Scaled
    products: tuple[Product, ...]
    magnitude: Assembly | None = None
    allow_nan: bool = False
    in_steps: bool = False

    @property
    def base(self) -> Assembly:
        return self.weight.base

    @property
    def beside(self) -> tuple[Assembly, ...]:
        factors = (*(f for product in self.products for f in product.factors), self.magnitude)
        return (*self.weight.beside, *filter(None, factors))


class Rows(Struct, frozen=True, tag="rows"):
    """The step that puts ``rows`` in place of those of ``of`` whose numbers are ``at``."""

    of: Assembly
    rows: Assembly
    at: tuple[int, ...]

    @property
    def base(self) -> Assembly:
        return self.of

    @property
    def beside(self) -> tuple[Assembly, ...]:
        return (self.rows,)


class MadeTensor(Struct, frozen=True):
    """A tensor of which others are put together: ``step`` makes it, in the dtype of ``spec``."""

    name: str
    spec: TensorSpec
    step: Assembly | LoraAdd | Rows | Scaled


class Joint(Struct, frozen=True, tag="joint"):
    """The step that puts ``of`` together of files and of ``parts``, which are made themselves."""

    of: Assembly
    parts: tuple[MadeTensor, ...]

    @property
    def base(self) -> Assembly:
        return self.of

    @property
    def beside(self) -> tuple[Assembly, ...]:
        return tuple(each for part in self.parts for each in (part.step.base, *part.step.beside))


Step = Assembly | LoraAdd | Rows | Scaled | Joint
"""How a tensor is made. ``base`` is what it is made of block by block, ``beside`` what is read for it besides."""


def file_of(step: Step, piece: Piece) -> int:
    """The file that holds a piece of a step's base; of one that is made, the file of the first piece of its base."""
    if piece.file > MADE or not isinstance(step, Joint):
        return piece.file
    of = step.parts[MADE - piece.file].step.base.pieces
    return of[0].file if of else ZEROS
