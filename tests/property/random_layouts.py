"""Random layouts and tensors."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

from hypothesis import strategies as st

from making import Stages
from reshard.layout.tensor import Sharding

DTYPES = ("float32", "bfloat16", "float16", "int8", "int64", "bool")
_NAMES = ("embedding", "layers.0.wq", "layers.1.w-q", "a/b c", "权重", "bias")


@dataclass(frozen=True)
class Job:
    """One side: its strategy, or None for one full checkpoint."""

    stages: Stages | None
    suffix: str

    @property
    def devices(self) -> int:
        return next(iter(self.stages[0].values())).devices if self.stages else 1

    @property
    def world(self) -> int:
        return self.devices * len(self.stages) if self.stages else 1

    def shardings(self, name: str) -> list[Sharding]:
        return [s[name] for s in self.stages or [] if name in s]


@dataclass(frozen=True)
class Case:
    source: Job
    target: Job
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    @property
    def reads_once(self) -> bool:
        """Whether no tensor stands in two target stages, whose files are made apart."""
        return all(len(self.target.shardings(name)) < 2 for name in self.shapes)


@st.composite
def device_matrices(draw: st.DrawFn, devices: int) -> tuple[int, ...]:
    """A factorization of the devices in any order, axes of size 1 among them."""
    left, matrix = devices, []
    while left > 1:
        factor = draw(st.sampled_from([n for n in range(2, left + 1) if left % n == 0]))
        matrix.append(factor)
        left //= factor
    matrix += [1] * draw(st.integers(0 if matrix else 1, 2))
    return tuple(draw(st.permutations(matrix)))


@st.composite
def shardings(draw: st.DrawFn, devices: int, ndim: int) -> Sharding:
    matrix = draw(device_matrices(devices))
    tensor_map: list[list[int]] = [[] for _ in range(ndim)]
    used = 1
    for axis in draw(st.permutations(range(len(matrix)))):
        dim = draw(st.integers(-1, ndim - 1))
        if dim >= 0:
            tensor_map[dim].append(axis)
            used *= matrix[len(matrix) - 1 - axis]
    replicas = devices // used
    sizes = [n for n in range(1, replicas + 1) if replicas % n == 0]
    opt_shard = draw(st.sampled_from([0, -1, *sizes])) if ndim else 0
    return Sharding(matrix, tuple(map(tuple, tensor_map)), opt_shard)


@st.composite
def jobs(draw: st.DrawFn, names: list[str], ndims: dict[str, int]) -> Job:
    suffix = draw(st.sampled_from([".ckpt", ".safetensors"]))
    if draw(st.integers(0, 4)) == 0:
        return Job(None, suffix)
    devices = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 8]))
    count = draw(st.integers(1, min(3, len(names))))
    stages: Stages = [{} for _ in range(count)]
    for i, name in enumerate(names):
        homes = {i} if i < count else draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=2))
        for stage in sorted(homes):
            stages[stage][name] = draw(shardings(devices, ndims[name]))
    return Job(stages, suffix)


def _lcm(numbers: list[int]) -> int:
    made = 1
    for n in numbers:
        made = made * n // gcd(made, n)
    return made


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Two sides and tensors whose shapes both can cut."""
    names = list(draw(st.permutations(_NAMES)))[: draw(st.integers(1, 4))]
    ndims = {name: draw(st.integers(0, 3)) for name in names}
    source, target = draw(jobs(names, ndims)), draw(jobs(names, ndims))
    shapes = {}
    for name in names:
        cuts = [s.parts for s in source.shardings(name) + target.shardings(name)]
        shape = []
        for dim in range(ndims[name]):
            least = _lcm([parts[dim] for parts in cuts])
            sizes = [1, 1, 2, 3] if ndims[name] == 1 else [1, 1, 2, 3, 0]  # no .ckpt holds a tensor of shape [0]
            shape.append(least * draw(st.sampled_from(sizes)))
        shapes[name] = tuple(shape)
    for name, shape in shapes.items():  # keep them small
        if prod(shape) > 200_000:
            shapes[name] = tuple(n if i == 0 else _lcm([s.parts[i] for s in source.shardings(name) +
                                 target.shardings(name)]) for i, n in enumerate(shape))  # fmt: skip
    return Case(source, target, shapes, {name: draw(st.sampled_from(DTYPES)) for name in names})
