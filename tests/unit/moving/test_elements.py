"""Rounding to another dtype: what fits, what does not, and what becomes of it. PyTorch 2.13 gave the values of fp8."""

from __future__ import annotations

import numpy as np
import pytest

from making import dtype_named
from reshard.dtypes import ITEMSIZE
from reshard.moving.elements import INFINITE, LARGEST, NAN, all_finite, round_to, widened

INF = float("inf")
VALUES = [1.0, 448, 464, 465, 1e30, INF, -1e30, float("nan"), 57344, 61440]
BECOME = {
    "float8_e4m3fn": ([1, 448, 448, 448, 448, 448, -448, NAN, 448, 448], {3, 4, 5, 6, 8, 9}, LARGEST),
    "float8_e4m3fnuz": ([1] + [NAN] * 9, {1, 2, 3, 4, 5, 6, 8, 9}, NAN),
    "float8_e5m2": ([1, 448, 448, 448, INF, INF, -INF, NAN, 57344, INF], {4, 6, 9}, INFINITE),
    "float8_e5m2fnuz": ([1, 448, 448, 448, NAN, NAN, NAN, NAN, 57344, NAN], {4, 5, 6, 9}, NAN),
    "float16": ([1, 448, 464, 465, INF, INF, -INF, NAN, 57344, 61440], {4, 6}, INFINITE),
}


def rounded(values: np.ndarray, dtype: str, *, computed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The values in another dtype, and the kinds."""
    out = np.zeros(values.shape, dtype_named(dtype))
    kinds = round_to(out, values, computed=computed)
    return out, np.zeros(values.shape, np.uint8) if kinds is None else kinds


@pytest.mark.parametrize("dtype", BECOME)
@pytest.mark.parametrize("of", ["float32", "float64"])
def test_what_is_too_large(dtype: str, of: str) -> None:
    out, kinds = rounded(np.array(VALUES, of), dtype)
    wanted, places, kind = BECOME[dtype]
    wanted = [float("nan") if w is NAN and i != 0 else w for i, w in enumerate(wanted)]
    np.testing.assert_array_equal(out.astype(np.float64), wanted)
    assert kinds.tolist() == [kind if i in places else 0 for i in range(len(VALUES))]


def test_what_is_too_large_for_float32_too_becomes_the_largest() -> None:
    out, kinds = rounded(np.array([1e300, -1e300, 1]), "float8_e4m3fn")
    assert out.astype(np.float32).tolist() == [448, -448, 1]
    assert kinds.tolist() == [LARGEST, LARGEST, 0]


def test_bfloat16_has_an_end_too() -> None:
    out, kinds = rounded(np.array([3.4e38, 3.3e38, INF, np.nan], np.float32), "bfloat16")
    assert kinds.tolist() == [INFINITE, 0, 0, 0]
    assert np.isinf(out.astype(np.float32)).tolist() == [True, False, True, False]


@pytest.mark.parametrize(("of", "to"), [("bfloat16", "float32"), ("float16", "bfloat16"), ("float8_e5m2", "float16")])
def test_a_wider_dtype_is_not_looked_at(of: str, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reshard.moving.elements.all_finite", None)
    values = np.array([1, INF, np.nan], dtype_named(of))
    assert round_to(np.zeros(3, dtype_named(to)), values) is None


def test_of_what_is_computed_all_is_told() -> None:
    values = np.array([1, INF, np.nan, 1e6], np.float32)
    assert rounded(values, "float32", computed=True)[1].tolist() == [0, INFINITE, NAN, 0]
    assert rounded(values, "float8_e4m3fn", computed=True)[1].tolist() == [0, LARGEST, NAN, LARGEST]


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1, 1)])
def test_shapes_of_few_elements(shape: tuple[int, ...]) -> None:
    out, kinds = rounded(np.full(shape, 1e6, np.float32), "float16")
    assert kinds.shape == shape
    assert np.isinf(out).all()
    assert (kinds == INFINITE).all()


@pytest.mark.parametrize("dtype", [*BECOME, "bfloat16"])
def test_bits_tell_what_is_finite(dtype: str) -> None:
    kind = dtype_named(dtype)
    every = np.arange(1 << 8 * kind.itemsize).astype(f"u{kind.itemsize}").view(kind)
    finite = np.isfinite(every.astype(np.float32))
    assert all_finite(every[finite])
    assert not any(all_finite(every[i : i + 1]) for i in np.flatnonzero(~finite))


def test_elements_that_do_not_lie_together() -> None:
    values = np.full((4, 6), 1e6, np.float32)
    out = np.zeros((4, 12), np.float16)[:, ::2]
    kinds = round_to(out, values.T.copy().T)
    assert kinds is not None
    assert (kinds == INFINITE).all()


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", *(name for name in ITEMSIZE if name.startswith("float8"))])
@pytest.mark.parametrize("to", ["float32", "float64"])
@pytest.mark.parametrize("whole", [True, False])
def test_widened_is_what_ml_dtypes_gives_bit_for_bit(dtype: str, to: str, whole: bool) -> None:
    """NaN of either sign and with any payload among them; beside one another, and in rows that lie apart."""
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype_named(dtype)).reshape(64, -1)
    values = every if whole else every[:, 1:]
    with np.errstate(invalid="ignore"):  # a signalling NaN is no more than a NaN
        made, wanted = widened(values, np.dtype(to)), values.astype(to)
        assert made.dtype == to
        assert made.tobytes() == wanted.tobytes()
        made[...] = 0  # the caller's own
        assert widened(values, np.dtype(to)).tobytes() == wanted.tobytes()
