"""How the factors of an adapter make a weight, by their shapes; and views of factors of several experts."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from reshard.dtypes import FLOATING
from reshard.errors import PlanError
from reshard.layout.box import Box
from reshard.planning.catalog import Scales, Tensor, is_viewed, seen_as
from reshard.planning.steps import Form

Shape = tuple[int, ...]


class Fit(Struct, frozen=True):
    """A way in which factors make a weight. ``rank`` is that of one matrix."""

    form: Form
    rank: int

    @property
    def in_out(self) -> bool:
        return self.form.endswith("in_out")

    @property
    def told(self) -> bool:
        """Whether it says how weights of layers are stored."""
        return self.form in ("out_in", "in_out")


def fits_of(weight: Shape, a: Shape, b: Shape) -> Iterator[Fit]:
    """Every way in which these make a weight of that shape.

    >>> [fit.form for fit in fits_of((6, 4), (2, 4), (6, 2))]
    ['out_in']
    >>> list(fits_of((3, 6, 4), (6, 4), (6, 6)))
    [Fit(form='experts_out_in', rank=2)]
    """
    if 2 <= len(a) == len(b) == len(weight) <= 3 and a[:-2] == b[:-2] == weight[:-2] and b[-1] == a[-2]:
        if weight[-2:] == (b[-2], a[-1]):
            yield Fit("out_in", a[-2])
        if weight[-2:] == (a[-1], b[-2]):
            yield Fit("in_out", a[-2])
    if len(a) == len(b) == len(weight) > 2:
        kernel = (1,) * (len(weight) - 2)
        if b == (weight[0], a[0], *kernel) and weight[1:] == a[1:]:
            yield Fit("convolution", a[0])
    if len(a) == len(b) == 2 and len(weight) == 3 and a[0] == b[1] and weight[0] and a[0] % weight[0] == 0:
        if weight[1:] == (b[0], a[1]):
            yield Fit("experts_out_in", a[0] // weight[0])
        if weight[1:] == (a[1], b[0]):
            yield Fit("experts_in_out", a[0] // weight[0])


def viewed(fit: Fit, weight: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The factors B and A as the form of a product sees them. Raises PlanError."""
    if not fit.form.startswith("experts"):
        return b, a
    experts = weight.spec.shape[0]
    return (
        seen_as(b, (b.spec.shape[0], fit.rank, experts)),
        seen_as(a, (experts, fit.rank, a.spec.shape[1])),
    )


def multiplied(tensor: Tensor, by: Tensor, dim: int) -> Tensor:
    """A tensor whose elements count by one number for each of that dim. Raises PlanError."""
    shape = tensor.spec.shape
    if is_viewed(tensor):
        raise PlanError(f"{by.name}: {tensor.name} is put together on the way; convert the base first")
    if tensor.scales or tensor.spec.dtype not in FLOATING or by.spec.dtype not in FLOATING:
        already = ", multiplied already" if tensor.scales else ""
        raise PlanError(f"{by.name} is {by.spec.dtype}, {tensor.name} {tensor.spec.dtype}{already}")
    one_by_one = tuple(n if d == dim else 1 for d, n in enumerate(shape))
    block = tuple(1 if d == dim else max(n, 1) for d, n in enumerate(shape))
    return replace(tensor, scales=Scales(seen_as(by, one_by_one), block))


def flat(tensor: Tensor) -> Tensor:
    """A tensor of one dim that counts, as a vector. Raises PlanError."""
    return seen_as(tensor, (Box.whole(tensor.spec.shape).size,))
