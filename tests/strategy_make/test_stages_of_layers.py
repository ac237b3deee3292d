"""Layers on pipeline stages, by hand."""

from __future__ import annotations

import pytest

from reshard.errors import StrategyError
from reshard.strategy.placing import stages_of_layers


@pytest.mark.parametrize(
    ("layers", "stages", "offset", "chunks", "expected"),
    [
        (4, 1, 0, 1, (0, 0, 0, 0)),
        (0, 1, 0, 1, ()),
        (6, 3, 0, 1, (0, 0, 1, 1, 2, 2)),
        (7, 2, [0, 1], 1, (0, 0, 0, 1, 1, 1, 1)),
        (7, 2, [1, 0], 1, (0, 0, 0, 0, 1, 1, 1)),
        (6, 2, [1, -1], 1, (0, 0, 0, 0, 1, 1)),
        (6, 4, [0, 1, 1, 0], 1, (0, 1, 1, 2, 2, 3)),
        (8, 2, 0, 2, (0, 0, 1, 1, 0, 0, 1, 1)),
        (5, 2, [[0, 0], [1, 0]], 2, (0, 1, 0, 0, 1)),
        (6, 2, [[1, 0]], 2, (0, 0, 1, 0, 0, 1)),
        (6, 2, [1, 0], 2, (0, 0, 1, 0, 0, 1)),
    ],
)
def test_by_hand(layers: int, stages: int, offset: object, chunks: int, expected: tuple[int, ...]) -> None:
    assert stages_of_layers(layers, stages, offset, chunks) == expected


@pytest.mark.parametrize(
    ("layers", "offset", "expected"),
    [
        (4, 0, (0, 1, 1, 0)),
        (6, [[1, 0], [0, 1]], (0, 0, 1, 1, 1, 0)),  # the second chunk counts from the last stage
        (6, [[0, 1], [1, 0]], (0, 1, 1, 1, 0, 0)),
    ],
)
def test_the_second_chunk_of_zero_bubble_v_runs_backwards(
    layers: int, offset: object, expected: tuple[int, ...]
) -> None:
    assert stages_of_layers(layers, 2, offset, 2, zero_bubble_v=True) == expected


@pytest.mark.parametrize(
    "offset", [1, [0, 0], [1, 1], [[0, 1], [0, 1]], [0], [], "0", [0, "1"], [[0], [1]], None, True]
)
def test_an_offset_that_does_not_fit_is_refused(offset: object) -> None:
    with pytest.raises(StrategyError, match=r"layers do not come out even|offset"):
        stages_of_layers(5, 2, offset)


def test_zero_bubble_v_needs_two_chunks() -> None:
    with pytest.raises(StrategyError, match="pp_interleave_num"):
        stages_of_layers(4, 2, 0, 1, zero_bubble_v=True)
