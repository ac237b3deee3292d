"""Where the tensors of a source and of a plan lie, equal places counted once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import prod

from reshard.drawing import spans
from reshard.index import ZEROS
from reshard.layout.tensor import Cell, Sharding
from reshard.planning.catalog import Catalog, Grid, Shard, Tensor
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


class Numbered:
    """Placements by what they are made of; each is made once."""

    def __init__(self) -> None:
        self.by_key: dict[Hashable, int] = {}
        self.all: list[Placement] = []
        self.cells = 0

    def add(self, key: Hashable, placement: Placement) -> int:
        self.by_key[key] = len(self.all)
        self.all.append(placement)
        self.cells += len(placement.cells)
        return self.by_key[key]


class SourcePlacements(Numbered):
    def __init__(self, source: Catalog) -> None:
        super().__init__()
        self._source = source

    def number(self, tensor: Tensor) -> int:
        shards = tensor.shards
        if isinstance(shards, Grid):
            cells = tuple((cell, *(h.file for h in held)) for cell, held in shards.cells.items())
            key: Hashable = (shards.layout.sharding, tensor.known, cells)
        else:
            lie = tuple((shard.box, shard.expected, *(h.file for h in shard.held)) for shard in shards)
            key = (lie, tensor.known)
        known = self.by_key.get(key)
        return known if known is not None else self.add(key, self._made(tensor))

    def _made(self, tensor: Tensor) -> Placement:
        shards = tuple(tensor.shards)
        parts = _drawn_parts(tensor)
        numbers = _numbers(shards, parts)
        held = {h.file: n for n, shard in zip(numbers, shards, strict=True) for h in shard.held if h.file > ZEROS}
        present = {self._source.files[file].rank for file in held}
        absent = sorted({rank for shard in shards for rank in shard.expected} - present)
        missing = tuple(n for n, shard in zip(numbers, shards, strict=True) if not shard.held)
        opt = tensor.cut.sharding.opt_parts if tensor.cut and parts else 1
        return _placement(parts, opt, held, missing, absent)


class TargetPlacements(Numbered):
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
        opt = sharding.opt_parts if sharding.parts else 1
        return _placement(sharding.parts, opt, held, tuple(sorted(missing)), ())


def _placement(
    parts: tuple[int, ...], opt: int, held: Mapping[int, int], missing: tuple[int, ...], absent_ranks: Iterable[int]
) -> Placement:
    files = sorted(held)
    cells = tuple(held[f] for f in files)
    return Placement(parts, opt, spans(files), cells, missing, spans(absent_ranks))


def _drawn_parts(tensor: Tensor) -> tuple[int, ...]:
    """The parts that are drawn: uneven ones as if they were even; one, where boxes lie in no grid at all."""
    parts = tensor.parts
    return parts if tensor.cut or prod(parts) == sum(1 for _ in tensor.shards) else (1,) * len(parts)


def _numbers(shards: Sequence[Shard], parts: tuple[int, ...]) -> Sequence[int]:
    """Which part each shard is, of shards in row-major order."""
    return range(len(shards)) if prod(parts) == len(shards) else [0] * len(shards)
