"""Sums over the rank from first to last, whoever computes them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from reshard.moving import products
from reshard.moving.products import RightSide, in_order

SHAPES = [(1, 1, 1), (40, 16, 3), (16, 5, 2100), (71, 64, 130), (33, 1, 7), (16, 700, 4), (0, 2, 3), (4, 3, 0)]


def random_sides(rows: int, rank: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    left, right = rng.standard_normal((rows, rank), np.float32), rng.standard_normal((rank, columns), np.float32)
    left[::3] *= -0.0
    return left, right


def loop(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    total = np.zeros((len(left), right.shape[1]))
    for k in range(len(right)):
        total = total + left[:, k, None].astype(np.float64) * right[k].astype(np.float64)
    return total


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_fp64_it_is_the_loop(shape: tuple[int, int, int]) -> None:
    left, right = random_sides(*shape)
    assert RightSide(right).times(left).tobytes() == loop(left, right).tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_steps_portions_do_not_count(shape: tuple[int, int, int]) -> None:
    left, right = random_sides(*shape)
    wanted = in_order(left.astype(np.float64), right.astype(np.float64), in_steps=True)
    assert RightSide(right, in_steps=True).times(left).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("in_steps", [False, True])
def test_tiles_are_used_where_blas_sums_in_order_and_not_where_it_does_not(
    in_steps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = random_sides(32, 6, 90)
    wanted = in_order(left.astype(np.float64), right.astype(np.float64), in_steps=in_steps)
    calls = []

    def from_last_to_first(left: Any, tiles: Any, rows: int) -> Any:
        calls.append(rows)
        return np.matmul(left[:, ::-1], tiles[:, ::-1]).swapaxes(0, 1).reshape(len(left), -1) + 0.0

    monkeypatch.setattr(products, "by_tiles", from_last_to_first)
    products._sums_in_order.cache_clear()
    assert RightSide(right, in_steps=in_steps).times(left).tobytes() == wanted.tobytes()
    products._sums_in_order.cache_clear()
    assert calls == [16]


def test_a_step_is_rounded_once() -> None:
    """What lies near the middle of two numbers of fp32 goes where it is nearer, not where fp64 sees the middle."""
    total, tiny = np.float32([1, 1, -1, 1, np.inf]), 2.0**-60
    product = np.array([2.0**-24 + tiny, 2.0**-24 - tiny, -(2.0**-24) - tiny, 2.0**-24, 1.0])
    with np.errstate(invalid="ignore"):
        found = products._fused(total, product)
    for one, two, made in zip(total[:4], product[:4], found[:4], strict=True):
        exact, grid = Fraction(float(one)) + Fraction(float(two)), Fraction(1, 2**23)
        assert Fraction(float(made)) == round(exact / grid) * grid
    assert found[4] == np.inf
