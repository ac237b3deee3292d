"""The forms of a plan's files: each kind of file is laid out once, however many ranks have one of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.formats.base import Format
from reshard.index import TensorSpec
from reshard.layout.tensor import Layout
from reshard.planning.plan import FileForm, PlannedTensor, Slot

Cut = tuple[int, int]
"""The numbers of a planned tensor and of the layout that says what each rank's file holds of it."""
Texts = tuple[tuple[str, str], ...]


class Forms:
    """Forms and layouts, numbered as they are asked for. ``tensors`` are the planned ones, by number."""

    def __init__(self, tensors: Sequence[PlannedTensor], format: Format, notes: Mapping[str, str]) -> None:
        self.made: list[FileForm] = []
        self.layouts: dict[Layout, int] = {}
        self._tensors = tensors
        self._format = format
        self._notes = dict(notes)
        self._numbers: dict[tuple[tuple[Cut, ...], Texts], int] = {}
        self._shapes: list[tuple[int, ...]] = []

    def layout(self, layout: Layout) -> int:
        if layout not in self.layouts:
            self.layouts[layout] = len(self.layouts)
            self._shapes.append(layout.shard_shape)
        return self.layouts[layout]

    def form(self, cuts: tuple[Cut, ...], texts: Texts) -> int:
        """The number of the form of files that hold these. Raises FormatError for what the format cannot hold."""
        if (cuts, texts) not in self._numbers:
            specs = {self._tensors[t].name: TensorSpec(self._tensors[t].spec.dtype, self._shapes[n]) for t, n in cuts}
            frame = self._format.frame(specs, dict(texts), self._notes)
            slots = tuple(Slot(t, n, frame.holes[self._tensors[t].name]) for t, n in cuts)
            self._numbers[cuts, texts] = len(self.made)
            self.made.append(FileForm(frame.nbytes, frame.pieces, slots, frame.checksums, dict(texts), self._notes))
        return self._numbers[cuts, texts]

    def of_content(self, content: bytes) -> int:
        """The number of the form of a small file of known bytes."""
        self.made.append(FileForm(len(content), ((0, content),), ()))
        return len(self.made) - 1
