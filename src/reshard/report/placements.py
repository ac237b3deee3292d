"""Where the tensors of a source and of a plan lie, equal places counted once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from math import prod

from reshard.drawing import spans
from reshard.layout.tensor import Cell, Sharding
from reshard.planning.catalog import Catalog, Tensor
from reshard.planning.plan import Plan
from reshard.report.values import Placement


def flat(cell: Cell, parts: tuple[int, ...]) -> int:
    """The number of a part in row-major order.

    >>> flat((1, 0), (2, 4))
    4
    """
    number = 0
    for place, n in zip(cell, parts, strict=True):
        number = number * n + place
    return number


class _Numbered:
    """Placements by what they are made of; each is made once."""

    def __init__(self) -> None:
        self.by_key: dict[Hashable, int] = {}
        self.all: list[Placement] = []

    def add(self, key: Hashable, placement: Placement) -> int:
        self.by_key[key] = len(self.all)
        self.all.append(placement)
        return self.by_key[key]


class SourcePlacements(_Numbered):
    def __init__(self, source: Catalog) -> None:
        super().__init__()
        self._source = source

    def number(self, tensor: Tensor) -> int:
        cells = tuple((cell, *(h.file for h in held)) for cell, held in tensor.cells.items())
        key = (tensor.layout.sharding, tensor.laid_out, cells)
        known = self.by_key.get(key)
        return known if known is not None else self.add(key, self._made(tensor))

    def _made(self, tensor: Tensor) -> Placement:
        parts = tensor.layout.sharding.parts
        held = {h.file: flat(cell, parts) for cell, holders in tensor.cells.items() for h in holders}
        present = {self._source.files[file].rank for file in held}
        absent = sorted({r for ranks in tensor.expected.values() for r in ranks} - present)
        missing = tuple(flat(cell, parts) for cell in tensor.missing())
        return _placement(tensor.layout.sharding, held, missing, absent)


class TargetPlacements(_Numbered):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        self._files: dict[int, list[int]] = {}
        for i, file in enumerate(plan.files):
            self._files.setdefault(file.form, []).append(i)
        self._slots: dict[str, list[tuple[int, int]]] = {}
        for number, form in enumerate(plan.forms):
            for slot in form.slots:
                self._slots.setdefault(plan.tensors[slot.tensor].name, []).append((slot.layout, number))

    def numbers(self, name: str) -> tuple[int, ...]:
        """One for each way in which the tensor is cut."""
        forms: dict[Sharding, list[int]] = {}
        for layout, form in self._slots.get(name, ()):
            forms.setdefault(self._plan.layouts[layout].sharding, []).append(form)
        return tuple(self._number(sharding, tuple(found)) for sharding, found in forms.items())

    def _number(self, sharding: Sharding, forms: tuple[int, ...]) -> int:
        known = self.by_key.get((sharding, forms))
        return known if known is not None else self.add((sharding, forms), self._made(sharding, forms))

    def _made(self, sharding: Sharding, forms: tuple[int, ...]) -> Placement:
        cells = sharding.cells()
        files = (i for form in dict.fromkeys(forms) for i in self._files.get(form, ()))
        held = {i: flat(cells[self._plan.files[i].local_rank], sharding.parts) for i in files}
        missing = set(range(prod(sharding.parts))) - set(held.values())
        return _placement(sharding, held, tuple(sorted(missing)), ())


def _placement(
    sharding: Sharding, held: Mapping[int, int], missing: tuple[int, ...], absent_ranks: Iterable[int]
) -> Placement:
    files = sorted(held)
    opt = sharding.opt_parts if sharding.parts else 1
    cells = tuple(held[f] for f in files)
    return Placement(sharding.parts, opt, spans(files), cells, missing, spans(absent_ranks))
