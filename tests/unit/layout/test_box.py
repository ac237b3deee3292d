from __future__ import annotations

from itertools import product

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


def test_place_in_is_where_the_elements_lie_together() -> None:
    """All boxes of a small one that does not begin at 0, against the numbers of its elements."""
    outer = Box((1, 5, 2), (3, 8, 4))
    numbers = np.arange(outer.size).reshape(outer.shape)
    sides = zip(outer.start, outer.stop, strict=True)
    ranges = [[(a, b) for a in range(s, e) for b in range(a + 1, e + 1)] for s, e in sides]
    for dims in product(*ranges):
        box = Box(tuple(a for a, _ in dims), tuple(b for _, b in dims))
        held = numbers[box.within(outer)].reshape(-1)
        together = np.array_equal(held, np.arange(held[0], held[0] + box.size))
        assert box.place_in(outer) == (held[0] if together else None)


def test_a_box_that_reaches_out_has_no_place() -> None:
    assert A.place_in(Box((0, 0), (4, 7))) is None
    assert SCALAR.place_in(SCALAR) == 0
