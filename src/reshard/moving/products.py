"""``left @ right``, summed over the rank from first to last; by BLAS where it is seen to sum so."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_UNTHREADED = 1 << 18  # multiplications: of more, OpenBLAS makes threads, which wait for each other and for ours
_FEW, _MORE = 16, 32  # rows of a tile: it takes its columns anew each time
_APART = 2  # in fp32, OpenBLAS sums ranks of even and of odd number apart: those between have to be zeros


class RightSide:
    """What rows of a left side are multiplied by, in any portions.

    Each element is what a loop over the rank gives, whatever else is computed with it: in fp64, or in fp32 with each
    step rounded once (``in_steps``), as a fused multiply-add is. The product of two numbers of 24 bits is exact in
    fp64: whether a processor fuses it with the sum does not matter.
    """

    def __init__(self, right: Array, *, in_steps: bool = False) -> None:
        self._in_steps = in_steps
        self._dtype = np.dtype(np.float32 if in_steps else np.float64)
        self._right = right
        self._rank, self._columns = right.shape
        rank = self._rank * (_APART if in_steps else 1)
        self._rows = _FEW if rank <= _FEW else _MORE
        wanted = max(_UNTHREADED // (self._rows * max(rank, 1)), 1)
        self._count = -(-self._columns // wanted)

    def portion(self, rows: int) -> int:
        """How many rows, of about so many, are best multiplied at once."""
        return max(rows // self._rows, 1) * self._rows

    def times(self, left: Array) -> Array:
        """``left @ right`` as an array of its own."""
        rows = len(left)
        whole = rows - rows % self._rows if left.dtype.itemsize <= 4 else 0
        if not whole or self._tiles is None:
            return in_order(left.astype(np.float64), self._wide, in_steps=self._in_steps)
        made = by_tiles(_spread(left[:whole], self._dtype), self._tiles, self._rows)[:, : self._columns]
        if whole == rows:
            return made
        rest = in_order(left[whole:].astype(np.float64), self._wide, in_steps=self._in_steps)
        return np.concatenate((made, rest))

    @cached_property
    def _wide(self) -> Array:
        return self._right.astype(np.float64, order="C")

    @cached_property
    def _tiles(self) -> Array | None:
        """``right`` cut for BLAS; None where its sums are others."""
        columns = -(-self._columns // max(self._count, 1))
        if self._right.dtype.itemsize > 4 or not _sums_in_order(self._rows, self._rank, columns, self._dtype):
            return None
        return _cut(self._right, columns, self._dtype)


def _spread(left: Array, dtype: np.dtype[Any]) -> Array:
    """``left`` as tiles see it."""
    if dtype == np.float64:
        return left.astype(dtype)
    spread = np.zeros((len(left), left.shape[1] * _APART), dtype)
    spread[:, ::_APART] = left
    return spread


def _cut(right: Array, columns: int, dtype: np.dtype[Any]) -> Array:
    """Tiles [tile, rank, columns of one], the last filled up with zeros."""
    apart = _APART if dtype == np.float32 else 1
    rank, count = right.shape[0] * apart, -(-right.shape[1] // columns)
    padded = np.zeros((rank, count * columns), dtype)
    padded[::apart, : right.shape[1]] = right
    return np.ascontiguousarray(padded.reshape(rank, count, columns).swapaxes(0, 1))


def by_tiles(left: Array, tiles: Array, rows: int) -> Array:
    """``left`` [some times ``rows``, rank] @ ``tiles`` [tile, rank, columns of one]: each tile of the product by one
    call of BLAS, of one size whatever is asked for.
    """
    portions, (count, rank, columns) = len(left) // rows, tiles.shape
    total = np.empty((portions * rows, count * columns), left.dtype)
    out = total.reshape(portions, rows, count, columns).swapaxes(1, 2)
    np.matmul(left.reshape(portions, 1, rows, rank), tiles, out=out)
    return total


def in_order(left: Array, right: Array, *, in_steps: bool) -> Array:
    """The same of numbers in fp64, slowly, whatever BLAS does."""
    if in_steps:
        total = np.zeros((len(left), right.shape[1]), np.float32)
        for k in range(len(right)):
            total = _fused(total, left[:, k, None] * right[k])
        return total
    if right.shape[1] == 1:  # of a single column it would sum in another order
        return np.asarray(np.einsum("ok,ki->oi", left, np.repeat(right, 2, 1))[:, :1])
    return np.asarray(np.einsum("ok,ki->oi", left, right))


def _fused(total: Array, product: Array) -> Array:
    """The sum of fp32 and fp64, rounded to fp32 as if once: before that to odd, which is never the middle of two."""
    wide = total.astype(np.float64)
    near = wide + product
    of_product = near - wide
    error = (wide - (near - of_product)) + (product - of_product)
    bits = near.view(np.int64)
    bits += np.where((error > 0) == (near > 0), 1, -1) * ((abs(error) > 0) & (bits % 2 == 0))
    return near.astype(np.float32)


@cache
def _sums_in_order(rows: int, rank: int, columns: int, dtype: np.dtype[Any]) -> bool:
    """Whether BLAS sums tiles of that size from first to last: tried on numbers whose sums in other orders are others,
    and on zeros of either sign.
    """
    random = np.random.default_rng(rank)
    left = random.standard_normal((2 * rows, rank), np.float32)
    right = random.standard_normal((rank, 2 * columns), np.float32)
    left[::3] *= 0
    right[:, ::5] = -abs(right[:, ::5])
    wanted = in_order(left.astype(np.float64), right.astype(np.float64), in_steps=dtype == np.float32)
    return by_tiles(_spread(left, dtype), _cut(right, columns, dtype), rows).tobytes() == wanted.tobytes()
