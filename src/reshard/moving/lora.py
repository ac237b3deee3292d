"""The LoRA step on one block: summed wide, rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from reshard.errors import CheckpointError
from reshard.layout.box import Box
from reshard.moving.elements import round_to
from reshard.planning.plan import LoraAdd

Array = npt.NDArray[Any]
_CHUNK = (
    262144  # elements that are summed at once: in the cache, and so many that threads seldom wait for Python's lock
)
Range = tuple[int, int]


def factor_boxes(lora: LoraAdd, box: Box) -> tuple[Box, Box]:
    """The parts of A and B that a block of the weight needs."""
    rank = (0, lora.a.shape[-2])
    *lead, rows, columns = zip(box.start, box.stop, strict=True)
    if lora.transposed:
        rows, columns = columns, rows
    return _box(*lead, rank, columns), _box(*lead, rows, rank)


def _box(*ranges: Range) -> Box:
    return Box(tuple(a for a, _ in ranges), tuple(b for _, b in ranges))


def add_lora(lora: LoraAdd, made: Array, weight: Array, a: Array, b: Array) -> Array | None:
    """Set ``made`` to ``weight + (b @ a) * scaling``, rounded to its dtype once. Gives what did not fit, as
    ``round_to`` does.

    All is computed in fp32, in fp64 for an fp64 weight. The bits depend neither on blocks nor on the machine.
    """
    kinds: Array | None = None
    wide = np.dtype(np.float64 if weight.dtype.itemsize == 8 else np.float32)
    left, right = (a.swapaxes(-1, -2), b.swapaxes(-1, -2)) if lora.transposed else (b, a)
    rows = max(_CHUNK // weight.shape[-1], 1)
    with np.errstate(over="ignore", invalid="ignore"):
        for matrix in np.ndindex(weight.shape[:-2]):
            for start in range(0, weight.shape[-2], rows):
                part = (*matrix, slice(start, start + rows))
                total = _product(left[part], right[matrix], wide)
                total *= wide.type(lora.scaling)
                total += weight[part].astype(wide)
                odd = round_to(made[part], total, computed=True)
                if odd is not None:
                    kinds = np.zeros(made.shape, np.uint8) if kinds is None else kinds
                    kinds[part] = odd
    return kinds


def _product(left: Array, right: Array, wide: np.dtype[Any]) -> Array:
    """``left @ right``, summed over the rank from first to last, each step rounded to ``wide`` as a fused multiply-add
    is. So do the inner parts of most BLAS kernels; their margins, which lie elsewhere for every size, do not.
    """
    exact = wide if left.dtype.itemsize == right.dtype.itemsize == 2 else np.dtype(np.float64)
    left, right = left.astype(exact), right.astype(exact, order="C")
    if exact == wide and right.shape[1] > 1:  # of a single column it would sum in another order
        return np.asarray(np.einsum("ok,ki->oi", left, right))
    total = np.zeros((len(left), right.shape[1]), wide)
    for k in range(len(right)):
        np.add(total, left[:, k, None] * right[k], out=total, casting="same_kind")
    return total


def check_finite(name: str, lora: LoraAdd, box: Box, inputs: tuple[Array, Array, Array], made: Array) -> None:
    """Raises CheckpointError naming the first element of ``made`` that is NaN or infinite though its inputs are finite.

    Args:
        box: where in the tensor ``made`` lies.
        inputs: weight, A and B of the block.
        made: the sum, rounded to the target's dtype.
    """
    weight, a, b = inputs
    finite_a: Array = np.all(np.isfinite(a), axis=-2)[..., None, :]
    finite_b: Array = np.all(np.isfinite(b), axis=-1)[..., :, None]
    finite = finite_a & finite_b
    if lora.transposed:
        finite = np.swapaxes(finite, -1, -2)
    new = np.argwhere(~np.isfinite(made) & np.isfinite(weight) & finite)
    if len(new):
        index = [int(i) + start for i, start in zip(new[0], box.start, strict=True)]
        raise CheckpointError(
            f"adding the LoRA weights makes {made[tuple(new[0])]} at {index} of {name}",
            hint="check the scaling; a wider --dtype holds larger values",
        )
