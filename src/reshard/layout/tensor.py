"""How the devices of one pipeline stage cut a tensor.

The convention is MindSpore's, checked against vectors that its compiler wrote: ranks run row-major over the device
matrix, outermost axis
first; tensor maps number the axes from the right; an optimizer shard cuts dim 0 once more, among the ranks that
would otherwise hold the same shard, in ascending rank order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from math import prod
from types import MappingProxyType

from msgspec import Struct

from reshard.errors import LayoutError
from reshard.layout.box import Box

MAX_DEVICES = 1 << 17
"""Ranks of a pipeline stage. A damaged file must not make us count to a billion."""

_MAX_AXES = 64
Cell = tuple[int, ...]
"""Which of the equal parts of each dim: ``(1, 0)`` is the second part of dim 0 and the first of dim 1."""


class Sharding(Struct, frozen=True):
    """A cut without a shape, for tensors of ``len(tensor_map)`` dims.

    Attributes:
        device_matrix: sizes of the device axes, outermost first.
        tensor_map: for each tensor dim the axes that cut it, outermost first, numbered from the right; ``()`` is uncut.
        opt_shard: 0 for none, -1 to share dim 0 among all replicas, n to share it among n consecutive replicas.

    >>> Sharding((2, 2), ((0,), ())).cells()
    ((0, 0), (1, 0), (0, 0), (1, 0))
    """

    device_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    opt_shard: int = 0

    def __post_init__(self) -> None:
        axes = [a for dim in self.tensor_map for a in dim]
        if any(n < 1 for n in self.device_matrix):
            raise LayoutError(f"device matrix {list(self.device_matrix)} has a size below 1")
        if any(n > MAX_DEVICES for n in self.device_matrix) or len(self.device_matrix) > _MAX_AXES:
            raise LayoutError(f"a device matrix of more than {MAX_DEVICES:,} ranks or {_MAX_AXES} axes")
        if self.devices > MAX_DEVICES:
            raise LayoutError(f"a device matrix of {self.devices:,} ranks, at most {MAX_DEVICES:,} are supported")
        if any(not 0 <= a < len(self.device_matrix) for a in axes):
            raise LayoutError(
                f"tensor map {self.tensor_map} names an axis outside the device matrix {list(self.device_matrix)}"
            )
        if len(set(axes)) != len(axes):
            raise LayoutError(f"tensor map {self.tensor_map} uses a device axis twice")
        if self.opt_shard < -1:
            raise LayoutError(f"optimizer shard size {self.opt_shard}, expected -1, 0 or more")
        replicas = self.devices // prod(self._axis(a) for a in axes)
        if self.opt_shard > 0 and replicas % self.opt_shard:
            raise LayoutError(f"optimizer shard size {self.opt_shard} does not divide the {replicas} replicas")
        if self.opt_shard and not self.tensor_map and self.opt_parts > 1:
            raise LayoutError("optimizer shard of a 0-d tensor")

    @staticmethod
    @lru_cache(maxsize=256)
    def whole(devices: int, ndim: int) -> Sharding:
        """Every one of ``devices`` ranks holds the whole tensor."""
        return Sharding((devices,), ((),) * ndim)

    def _axis(self, axis: int) -> int:
        return self.device_matrix[len(self.device_matrix) - 1 - axis]

    @property
    def devices(self) -> int:
        return prod(self.device_matrix)

    @property
    def opt_parts(self) -> int:
        """Into how many parts the optimizer shard cuts what the tensor map leaves; 1 when it does not."""
        if self.opt_shard == -1:
            return self.devices // prod(self._axis(a) for dim in self.tensor_map for a in dim)
        return max(self.opt_shard, 1)

    @property
    def parts(self) -> tuple[int, ...]:
        """Into how many equal parts each dim is cut, optimizer shard included."""
        parts = [prod(self._axis(a) for a in axes) for axes in self.tensor_map]
        if parts:
            parts[0] *= self.opt_parts
        return tuple(parts)

    def cells(self) -> tuple[Cell, ...]:
        """The cell that each rank of the stage holds, in rank order."""
        return _cells(self)

    def holders(self) -> Mapping[Cell, tuple[int, ...]]:
        """The ranks of the stage that hold each cell, ascending: the replica groups."""
        return _holders(self)


@lru_cache(maxsize=4096)
def _cells(sharding: Sharding) -> tuple[Cell, ...]:
    matrix = sharding.device_matrix
    strides = [prod(matrix[i + 1 :]) for i in range(len(matrix))]
    mapped: list[Cell] = []
    for rank in range(sharding.devices):
        cell = []
        for axes in sharding.tensor_map:
            part = 0
            for axis in axes:
                i = len(matrix) - 1 - axis
                part = part * matrix[i] + rank // strides[i] % matrix[i]
            cell.append(part)
        mapped.append(tuple(cell))
    if sharding.opt_parts == 1:
        return tuple(mapped)
    seen: dict[Cell, int] = {}
    for rank, cell_ in enumerate(mapped):
        place = seen.get(cell_, 0)
        seen[cell_] = place + 1
        mapped[rank] = (cell_[0] * sharding.opt_parts + place % sharding.opt_parts, *cell_[1:])
    return tuple(mapped)


@lru_cache(maxsize=4096)
def _holders(sharding: Sharding) -> Mapping[Cell, tuple[int, ...]]:
    groups: dict[Cell, list[int]] = {}
    for rank, cell in enumerate(_cells(sharding)):
        groups.setdefault(cell, []).append(rank)
    return MappingProxyType({cell: tuple(ranks) for cell, ranks in groups.items()})


class Layout(Struct, frozen=True):
    """A tensor of ``shape`` cut by ``sharding``. Raises LayoutError where a cut does not divide a dim.

    A notebook shows it as a picture.

    >>> Layout((4, 6), Sharding((2, 3), ((1,), (0,))))
    <layout: [4, 6] in [2, 3] parts on 6 ranks>
    """

    shape: tuple[int, ...]
    sharding: Sharding

    def __post_init__(self) -> None:
        parts = self.sharding.parts
        if len(parts) != len(self.shape):
            raise LayoutError(f"the layout cuts {len(parts)} dims, the tensor has {len(self.shape)} {list(self.shape)}")
        for dim, (size, n) in enumerate(zip(self.shape, parts, strict=True)):
            if size % n:
                raise LayoutError(f"dim {dim} of {list(self.shape)} has {size}, not divisible into {n} parts")

    def __repr__(self) -> str:
        return f"<layout: {list(self.shape)} in {list(self.sharding.parts)} parts on {self.sharding.devices} ranks>"

    def _repr_html_(self) -> str:
        sharding = self.sharding
        return self.drawn([sharding.holders().get(cell, ()) for cell in product(*map(range, sharding.parts))])

    def drawn(self, holders: Sequence[tuple[int, ...]]) -> str:
        """A picture of the cells with the ranks that hold each, in order."""
        from reshard.drawing import svg  # for notebooks alone

        return svg(self.shape, self.sharding.parts, self.sharding.opt_parts if self.shape else 1, holders)

    @property
    def shard_shape(self) -> tuple[int, ...]:
        return tuple(s // n for s, n in zip(self.shape, self.sharding.parts, strict=True))

    def box_of(self, cell: Cell) -> Box:
        shard = self.shard_shape
        return Box(
            tuple(c * n for c, n in zip(cell, shard, strict=True)),
            tuple((c + 1) * n for c, n in zip(cell, shard, strict=True)),
        )

    def cells_of(self, box: Box) -> Iterable[Cell]:
        """The cells that meet a box, in order; of an empty tensor all of them.

        >>> list(Layout((8, 6), Sharding((4,), ((0,), ()))).cells_of(Box((3, 0), (5, 6))))
        [(1, 0), (2, 0)]
        """
        shard = self.shard_shape
        if 0 in shard:
            return self.boxes()
        return product(*(range(a // n, -(-b // n)) for a, b, n in zip(box.start, box.stop, shard, strict=True)))

    def box(self, rank: int) -> Box:
        """What ``rank`` of the stage holds."""
        return self.box_of(self.sharding.cells()[rank])

    def boxes(self) -> Mapping[Cell, Box]:
        """The box of every cell; of equal layouts the same objects."""
        return _boxes(self)


@lru_cache(maxsize=1024)
def _boxes(layout: Layout) -> Mapping[Cell, Box]:
    return MappingProxyType({cell: layout.box_of(cell) for cell in sorted(layout.sharding.holders())})
