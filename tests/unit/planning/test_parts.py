from __future__ import annotations

import pytest

from reshard.families.parts import split_parts


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ({}, [[]]),
        ({0: 8}, [[0]]),
        ({0: 9}, [[0]]),
        ({0: 4, 1: 4}, [[0, 1]]),
        ({0: 4, 1: 5}, [[0], [1]]),
        ({0: 9, 1: 1}, [[0], [1]]),
        ({0: 1, 1: 9, 2: 1}, [[0], [1], [2]]),
        ({3: 1, 1: 7, 2: 1}, [[3, 1], [2]]),
        ({0: 0, 1: 8, 2: 0}, [[0, 1, 2]]),
    ],
)
def test_parts_of_at_most_eight_bytes(sizes: dict[int, int], parts: list[list[int]]) -> None:
    assert split_parts(sizes, 8) == parts
