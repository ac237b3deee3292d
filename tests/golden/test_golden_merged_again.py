"""What we made of a golden case is merged again with no strategy, into what MindSpore's own slices make with theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from golden.cases import arguments, faults, run_reshard, unpack
from golden.readers import Value, read_weights

SAMPLE = (
    "dp2mp4_to_dp8",
    "full_to_dp4mp2_optshard",
    "full_to_layout_tuple_opt",
    "layout_tuple_opt_to_layout_interleave",
    "pp4_to_pp4",
    "sliced_ckpt_dp2mp4_to_full",
    "st_dp2mp2pp2_to_dp2mp4",
)
"""Targets of each kind of cut."""


@pytest.mark.parametrize("name", SAMPLE)
def test_no_strategy_is_needed(name: str, tmp_path: Path) -> None:
    def merged(path: Path, *strategy: str) -> Mapping[str, Value]:
        made = path.with_suffix(".safetensors")
        assert run_reshard(["merge", str(path), str(made), *strategy]) == 0
        return read_weights(made)

    case = unpack(name, tmp_path / "case")
    ours = tmp_path / "ours"
    assert run_reshard(arguments(case, ours)) == 0
    theirs = min(p.parent for p in case.expected.rglob("rank_0"))
    target = case.strategy("dst")
    given = ("--src-strategy", str(target), "--missing", "drop") if target else ()
    assert not faults(merged(ours), merged(theirs, *given))
