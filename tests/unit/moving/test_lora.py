"""The bits of a LoRA sum are those of a loop, whatever the shape, the blocks and the order in memory."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from reshard.moving.lora import add_lora
from reshard.planning.steps import Assembly, LoraAdd, Product

RNG = np.random.default_rng(11)


def step(rank: int, shape: tuple[int, ...], *, transposed: bool = False) -> LoraAdd:
    *lead, rows, columns = shape
    if transposed:
        rows, columns = columns, rows
    a = Assembly("float32", (*lead, rank, columns), ())
    b = Assembly("float32", (*lead, rows, rank), ())
    product = Product((b, a), 0.75, "in_out" if transposed else "out_in")
    return LoraAdd(Assembly("float32", shape, ()), (product,))


def looped(weight: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    product = np.zeros(weight.shape)
    for k in range(a.shape[0]):
        for i in range(weight.shape[0]):
            for j in range(weight.shape[1]):
                product[i, j] += np.float64(b[i, k]) * np.float64(a[k, j])
    return (weight.astype(np.float64) + product * 0.75).astype(weight.dtype)


@pytest.mark.parametrize("factors", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rank", [1, 4, 33])
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 9), (8, 16), (1, 31), (3, 64)])
@pytest.mark.parametrize("transposed", [False, True])
def test_bits(shape: tuple[int, int], rank: int, factors: type, transposed: bool) -> None:
    weight = RNG.standard_normal(shape).astype(ml_dtypes.bfloat16 if factors is ml_dtypes.bfloat16 else np.float32)
    a, b = (RNG.standard_normal(s).astype(factors) for s in ((rank, shape[1]), (shape[0], rank)))
    made = np.empty_like(weight)
    given = (np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)) if transposed else (b, a)
    add_lora(step(rank, shape, transposed=transposed), made, weight, [given], None)
    np.testing.assert_array_equal(made.view(np.uint8), looped(weight, a, b).view(np.uint8))


@pytest.mark.parametrize("factors", [np.float32, ml_dtypes.bfloat16])
def test_a_part_has_the_bits_of_the_whole(factors: type) -> None:
    weight = RNG.standard_normal((2, 70, 900)).astype(np.float32)
    a, b = (RNG.standard_normal(s).astype(factors) for s in ((2, 16, 900), (2, 70, 16)))
    whole, part = np.empty_like(weight), np.empty((1, 11, 37), np.float32)
    add_lora(step(16, weight.shape), whole, weight, [(b, a)], None)
    rows, columns = slice(50, 61), slice(400, 437)
    add_lora(step(16, part.shape), part, weight[1:, rows, columns], [(b[1:, rows], a[1:, :, columns])], None)
    np.testing.assert_array_equal(part, whole[1:, rows, columns])
