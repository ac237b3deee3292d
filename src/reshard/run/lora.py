"""The LoRA step on one block: summed wide, rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from reshard.errors import CheckpointError
from reshard.layout.box import Box
from reshard.planning.plan import LoraAdd
from reshard.run.cast import cast_into

Array = npt.NDArray[Any]
Range = tuple[int, int]


def factor_boxes(lora: LoraAdd, box: Box) -> tuple[Box, Box]:
    """The parts of A and B that a block of the weight needs."""
    rank = (0, lora.a.spec.shape[-2])
    *lead, rows, columns = zip(box.start, box.stop, strict=True)
    if lora.transposed:
        rows, columns = columns, rows
    return _box(*lead, rank, columns), _box(*lead, rows, rank)


def _box(*ranges: Range) -> Box:
    return Box(tuple(a for a, _ in ranges), tuple(b for _, b in ranges))


def add_lora(lora: LoraAdd, weight: Array, a: Array, b: Array) -> Array:
    """``weight + (b @ a) * scaling`` in fp32, in fp64 for an fp64 weight."""
    wide = np.dtype(np.float64 if weight.dtype.itemsize == 8 else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        total: Array = np.matmul(b.astype(wide), a.astype(wide))
        total *= wide.type(lora.scaling)
        if lora.transposed:
            total = np.ascontiguousarray(np.swapaxes(total, -1, -2))
        total += _widened(weight, wide)
    return total


def _widened(values: Array, wide: np.dtype[Any]) -> Array:
    out = np.empty(values.shape, wide)
    cast_into(out, values)
    return out


def check_finite(name: str, lora: LoraAdd, box: Box, inputs: tuple[Array, Array, Array], made: Array) -> None:
    """Raises CheckpointError naming the first element of ``made`` that is NaN or infinite though its inputs are finite.

    Args:
        box: where in the tensor ``made`` lies.
        inputs: weight, A and B of the block.
        made: the sum, rounded to the target's dtype.
    """
    if _all_finite(made):
        return
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


def _all_finite(values: Array) -> bool:
    if values.dtype.name == "bfloat16":  # its exponent is all ones, or not: ml_dtypes is slow to say
        return not np.any((values.view(np.uint16) & np.uint16(0x7F80)) == np.uint16(0x7F80))
    return bool(np.isfinite(values).all())
