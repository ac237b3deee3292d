"""MindSpore's conditions for optimizer parallel, each at its edge; the numbers are those that were compiled."""

from __future__ import annotations

import pytest

from reshard.index import TensorSpec
from reshard.layout.tensor import Sharding
from reshard.strategy.optimizer_shard import OptimizerParallel, has_group, with_optimizer_shard

COLUMN = Sharding((4, 2), ((0,), ()))
WHOLE = Sharding((8,), ((), ()))


def shared(sharding: Sharding, shape: tuple[int, ...], dtype: str = "float32", kb: int = 0, size: int = -1) -> int:
    settings = OptimizerParallel(enabled=True, threshold_nbytes=kb << 10, size=size)
    return with_optimizer_shard(sharding, TensorSpec(dtype, shape), settings).opt_shard


@pytest.mark.parametrize(
    ("shape", "dtype", "kb", "expected"),
    [
        ((64, 64), "float32", 16, -1),  # 16 KB is not below 16 KB
        ((64, 64), "float32", 17, 0),
        ((64, 64), "bfloat16", 16, 0),  # the weight's own dtype counts
        ((192, 64), "float32", 40, -1),  # 48 KB whole, 24 KB cut: the whole counts
    ],
)
def test_the_threshold_is_of_the_whole_weight(shape: tuple[int, ...], dtype: str, kb: int, expected: int) -> None:
    assert shared(COLUMN, shape, dtype, kb) == expected


def test_what_the_tensor_map_leaves_of_dim_0_is_divided() -> None:
    assert shared(COLUMN, (8, 64)) == -1
    assert shared(COLUMN, (12, 64)) == 0
    assert shared(WHOLE, (6, 64)) == 0
    assert shared(Sharding((4, 2), ((), (0,))), (4, 64)) == -1


@pytest.mark.parametrize(
    ("sharding", "size", "expected"),
    [(COLUMN, 2, 2), (COLUMN, 4, 4), (COLUMN, 8, 4), (COLUMN, 3, 0), (COLUMN, 1, 0), (WHOLE, 8, 8), (WHOLE, 6, 0)],
)
def test_a_size_larger_than_the_replicas_is_clamped_one_that_does_not_divide_them_is_passed_over(
    sharding: Sharding, size: int, expected: int
) -> None:
    assert shared(sharding, (512, 64), size=size) == expected


def test_nothing_is_shared_where_nobody_holds_the_same() -> None:
    assert shared(Sharding((8,), ((0,), ())), (512, 64)) == 0
    assert shared(Sharding((8,), ()), ()) == 0


def test_a_group_that_mindspore_cannot_open_leaves_the_weight() -> None:
    six = Sharding((6, 4), ((0,), ()))
    assert shared(six, (48, 64)) == -1
    assert shared(six, (48, 64), size=3) == 0  # ranks 0, 4, 8


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ((5,), True),
        ((0, 1, 2, 3, 4, 5, 6, 7), True),
        ((4, 5, 6, 7), True),
        ((0, 1, 4, 5), True),
        ((0, 2, 4, 6), True),
        ((0, 1, 2, 4), False),
        ((2, 6), True),
        ((1, 3), True),
        ((3, 4), False),
        ((0, 1, 2), False),
        ((0, 8, 16), True),
        ((0, 9), False),
        ((0, 12), False),
        ((0, 4, 8, 12), True),
    ],
)
def test_groups(ranks: tuple[int, ...], expected: bool) -> None:
    assert has_group(ranks) is expected
