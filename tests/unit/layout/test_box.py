from __future__ import annotations

import numpy as np
import pytest

from reshard.layout.box import Box

A = Box((0, 0), (4, 8))
SCALAR = Box((), ())


def test_overlap() -> None:
    assert A & Box((2, 4), (6, 12)) == Box((2, 4), (4, 8))


def test_a_box_overlaps_itself() -> None:
    assert A & A == A
    assert SCALAR & SCALAR == SCALAR


@pytest.mark.parametrize("other", [Box((4, 0), (8, 8)), Box((9, 9), (10, 10)), Box((0, 8), (4, 9))])
def test_boxes_that_do_not_meet_have_an_empty_overlap(other: Box) -> None:
    assert (A & other).size == 0
    assert (other & A).size == 0


def test_size_of_scalar_and_empty() -> None:
    assert (SCALAR.size, Box((3,), (3,)).size, Box((0, 0), (5, 0)).size) == (1, 0, 0)


def test_contains() -> None:
    assert Box((1, 1), (2, 2)) in A
    assert A in A
    assert Box((1, 1), (2, 9)) not in A


def test_hull() -> None:
    assert Box((0, 2), (1, 3)).hull(Box((4, 0), (5, 1))) == Box((0, 0), (5, 3))


def test_within_selects_the_same_elements() -> None:
    whole = np.arange(32).reshape(4, 8)
    outer, inner = Box((1, 2), (4, 8)), Box((2, 3), (3, 6))
    held = whole[1:4, 2:8]
    assert np.array_equal(held[inner.within(outer)], whole[2:3, 3:6])


def test_within_gives_a_view_of_a_scalar() -> None:
    held = np.zeros(())
    held[SCALAR.within(SCALAR)][...] = 5
    assert held == 5
