"""What a manifest says of one file: its runs, and where in it every tensor lies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

from msgspec import Meta, Struct

from reshard.errors import FormatError, InputError
from reshard.index import Extent, TensorSpec
from reshard.layout.box import Box
from reshard.planning.misfits import ShardMisfits
from reshard.planning.plan import Run

Natural = Annotated[int, Meta(ge=0)]


class ShardForm(Struct, frozen=True, omit_defaults=True):
    """What shards of a file have in common: ``shape`` elements from ``start`` of a tensor of ``full_shape``; all of it
    where neither is said.
    """

    dtype: str
    full_shape: tuple[int, ...]
    start: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None

    @property
    def box(self) -> Box:
        if self.start is None or self.shape is None:
            return Box.whole(self.full_shape)
        return Box(self.start, tuple(a + n for a, n in zip(self.start, self.shape, strict=True)))


class ToldCut(Struct, frozen=True):
    """What a file holds of some tensors: ``box`` of ``full_shape``. One object for all of a file that are cut alike,
    another in each file.
    """

    spec: TensorSpec
    full_shape: tuple[int, ...]
    box: Box


class ToldShard(Struct, frozen=True, gc=False):
    """What a file holds of a tensor, and where."""

    cut: ToldCut
    extents: tuple[Extent, ...]


TensorPlaces = dict[str, tuple[Natural, ...]]
"""Of each tensor the number of its form and where it begins; or where each of its extents does, and its length. There
may be very many small ones, for which the manifest shall not take more room than the files.
"""


class ManifestFile(Struct, frozen=True, omit_defaults=True):
    """What was noted of a file that is whole.

    Attributes:
        tensors: one object for all files that hold theirs at the same places.
        texts, notes: what its header says besides its tensors; None where that was not noted.
        misfits: the values that did not fit when the file was made.
        shared_nbytes: what it then had in common with source files.
    """

    path: str
    rank: Natural
    nbytes: Natural
    runs: tuple[Run, ...]
    forms: tuple[ShardForm, ...] = ()
    tensors: TensorPlaces = {}
    texts: dict[str, str] | None = None
    notes: dict[str, str] | None = None
    misfits: tuple[ShardMisfits, ...] = ()
    shared_nbytes: int = 0

    def shards(self) -> dict[str, ToldShard]:
        """By name. Raises InputError where it is damaged."""
        cuts = self.cuts()
        return {name: ToldShard(cuts[number], extents) for name, (number, extents) in self.places(cuts).items()}

    def cuts(self) -> tuple[ToldCut, ...]:
        """What it holds of tensors of each form. Raises InputError where it is damaged."""
        with self._damaged():
            return tuple(
                [ToldCut(TensorSpec(form.dtype, form.box.shape), form.full_shape, form.box) for form in self.forms]
            )

    def places(self, cuts: Sequence[ToldCut]) -> dict[str, tuple[int, tuple[Extent, ...]]]:
        """Of each tensor the number of its cut, and where it lies. Raises InputError where it is damaged."""
        with self._damaged():
            sizes = [cut.spec.nbytes for cut in cuts]
            return {
                name: (number, self._extents(sizes[number], places)) for name, (number, *places) in self.tensors.items()
            }

    @contextmanager
    def _damaged(self) -> Iterator[None]:
        try:
            yield
        except (IndexError, ValueError, FormatError) as error:
            raise InputError(f"the manifest is damaged: of {self.path}, {error}") from None

    def _extents(self, nbytes: int, places: Sequence[int]) -> tuple[Extent, ...]:
        if len(places) == 1 and places[0] + nbytes <= self.nbytes:
            return (Extent(places[0], nbytes),)
        pairs = zip(places[::2], places[1::2], strict=True) if len(places) != 1 else ((places[0], nbytes),)
        extents = tuple([Extent(*pair) for pair in pairs])
        held = sum([extent.nbytes for extent in extents])
        if held != nbytes or any(extent.end > self.nbytes for extent in extents):
            raise ValueError(f"{nbytes} in {held} bytes, at {places} of {self.nbytes}")
        return extents
