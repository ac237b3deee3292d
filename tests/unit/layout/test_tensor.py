"""Cuts, each with the cells that a reader can check by hand."""

from __future__ import annotations

import numpy as np
import pytest

from making import shard_of
from reshard.errors import LayoutError
from reshard.layout.box import Box
from reshard.layout.tensor import Layout, Sharding


def test_axes_are_numbered_from_the_right() -> None:
    inner = Sharding((2, 3), ((0,),))
    outer = Sharding((2, 3), ((1,),))
    assert inner.cells() == ((0,), (1,), (2,), (0,), (1,), (2,))
    assert outer.cells() == ((0,), (0,), (0,), (1,), (1,), (1,))


def test_of_several_axes_on_a_dim_the_first_cuts_coarsest() -> None:
    assert [c for (c,) in Sharding((2, 2), ((1, 0),)).cells()] == [0, 1, 2, 3]
    assert [c for (c,) in Sharding((2, 2), ((0, 1),)).cells()] == [0, 2, 1, 3]


def test_axes_of_size_one_change_nothing() -> None:
    bare = Sharding((2, 2), ((1,), (0,)))
    padded = Sharding((1, 2, 1, 2), ((2, 3), (0, 1)))
    assert padded.cells() == bare.cells()
    assert padded.parts == bare.parts == (2, 2)


def test_uncut() -> None:
    whole = Sharding.whole(3, 2)
    assert whole.parts == (1, 1)
    assert whole.holders() == {(0, 0): (0, 1, 2)}


def test_scalar() -> None:
    scalar = Sharding((4,), ())
    assert scalar.parts == ()
    assert scalar.cells() == ((),) * 4
    assert Layout((), scalar).box(3) == Box((), ())


def test_replica_groups_come_from_the_matrix_and_not_from_a_step() -> None:
    assert Sharding((2, 2, 2, 2), ((2,), (1,), ())).holders()[(0, 0, 0)] == (0, 1, 8, 9)


def test_optimizer_shard_among_all_replicas() -> None:
    sharding = Sharding((2, 2, 2, 2), ((2,), (1,), ()), -1)
    assert sharding.parts == (8, 2, 1)
    ranks = [0, 1, 8, 9]
    assert [sharding.cells()[r] for r in ranks] == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)]


def test_optimizer_shard_of_some_replicas_begins_anew_after_them() -> None:
    sharding = Sharding((4, 2), ((0,),), 2)
    assert [c for (c,) in sharding.cells()] == [0, 2, 1, 3, 0, 2, 1, 3]
    assert sharding.holders() == {(0,): (0, 4), (2,): (1, 5), (1,): (2, 6), (3,): (3, 7)}


@pytest.mark.parametrize("opt_shard", [0, 1])
def test_no_optimizer_shard(opt_shard: int) -> None:
    assert Sharding((2, 2), ((0,),), opt_shard).cells() == Sharding((2, 2), ((0,),)).cells()


@pytest.mark.parametrize(
    "sharding",
    [
        Sharding((2, 3, 2), ((0, 2), (1,))),
        Sharding((2, 2, 2, 2), ((2,), (1,)), -1),
        Sharding((3, 2, 2), ((1,), ()), 3),
        Sharding((1, 4, 1), ((), (1,))),
    ],
)
def test_box_of_every_rank_is_the_convention_by_hand(sharding: Sharding) -> None:
    layout = Layout((24, 24), sharding)
    full = np.arange(24 * 24).reshape(24, 24)
    for rank in range(sharding.devices):
        box = layout.box(rank)
        assert np.array_equal(full[box.within(Box.whole((24, 24)))], shard_of(full, sharding, rank))


def test_the_boxes_of_the_cells_tile_the_tensor() -> None:
    layout = Layout((8, 6), Sharding((2, 2, 3), ((1, 2), (0,))))
    boxes = [layout.box_of(cell) for cell in layout.sharding.holders()]
    assert sum(b.size for b in boxes) == 48
    assert not any((a & b).size for a in boxes for b in boxes if a != b)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((6, 5), "dim 1 of [6, 5] has 5, not divisible into 2 parts"),
        ((7, 4), "dim 0 of [7, 4] has 7, not divisible into 3 parts"),
        ((6,), "the layout cuts 2 dims, the tensor has 1 [6]"),
    ],
)
def test_a_cut_that_does_not_divide_is_refused_with_dim_and_numbers(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(LayoutError) as caught:
        Layout(shape, Sharding((3, 2), ((1,), (0,))))
    assert caught.value.message == said


def test_an_empty_dim_is_cut_into_empty_parts() -> None:
    assert Layout((0, 4), Sharding((2,), ((0,), ()))).box(1) == Box((0, 0), (0, 4))


@pytest.mark.parametrize(
    ("matrix", "tensor_map", "opt_shard", "said"),
    [
        ((2, 0), ((0,),), 0, "size below 1"),
        ((2,), ((1,),), 0, "outside the device matrix"),
        ((2,), ((-1,),), 0, "outside the device matrix"),
        ((2, 2), ((0,), (0,)), 0, "uses a device axis twice"),
        ((2, 2), ((0, 0),), 0, "uses a device axis twice"),
        ((2, 2), ((0,),), -2, "optimizer shard size -2"),
        ((2, 3), ((0,),), 4, "does not divide the 2 replicas"),
        ((2,), (), -1, "0-d"),
    ],
)
def test_impossible_cuts(matrix: tuple[int, ...], tensor_map: tuple, opt_shard: int, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        Sharding(matrix, tensor_map, opt_shard)
