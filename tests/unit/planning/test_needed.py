"""Which source ranks a target rank needs: lists that MindSpore 2.7.2 gave for compiled strategies."""

from __future__ import annotations

from pathlib import Path

import pytest

from reshard.compat.mindspore.needed_ranks import needed_ranks
from reshard.strategy.folder import read_strategy

GOLDEN = Path(__file__).parents[2] / "golden" / "strategies"


@pytest.mark.parametrize(
    ("source", "target", "first", "last"),
    [
        ("llama_dp4mp2_optshard", "llama_dp1mp2pp2", (0, 2, 4, 6), (1, 3, 5, 7)),
        ("llama_dp4mp2_allopt", "llama_dp4mp2", (0, 2, 4, 6), (1, 3, 5, 7)),
        ("llama_dp4mp2_allopt", "llama_dp4mp2_optshard", (0, 2, 4, 6), (1, 3, 5, 7)),
        ("llama_dp4mp2_allopt", "llama_dp4mp2_allopt", (0,), (7,)),
        ("llama_dp4mp2_allopt", "llama_dp2mp4", tuple(range(8)), tuple(range(8))),
        ("layout_tuple_opt", "layout_tuple", (0, 4), (3, 7)),
        ("llama_mp8", "llama_dp4mp2", tuple(range(8)), tuple(range(8))),
        ("llama_dp2mp4", "llama_dp4mp2", (0, 1, 2, 3), (4, 5, 6, 7)),
    ],
)
def test_no_more_than_mindspore_lists(source: str, target: str, first: tuple[int, ...], last: tuple[int, ...]) -> None:
    """Where only the optimizer shard is gathered, the ranks of one shard are enough."""
    ours, theirs = read_strategy(GOLDEN / source), read_strategy(GOLDEN / target)
    assert needed_ranks(ours, theirs, 0) == first
    assert needed_ranks(ours, theirs, theirs.world - 1) == last
