"""What the command line refuses, a script's options are refused for as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from making import write_file
from reshard.auto import load
from reshard.errors import UsageError
from reshard.ops.options import Options


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"workers": -3}, "--workers -3"),
        ({"workers": 10**6}, "--workers 1000000"),
        ({"max_rate_nbytes": -1}, "--max-rate -1"),
        ({"max_memory_nbytes": 0}, "--max-memory 0"),
        ({"max_shard_nbytes": -5}, "--max-shard-size -5"),
        ({"dst_iteration": -2}, "--dst-iteration -2"),
        ({"select": "newest"}, "--select 'newest'"),
    ],
)
def test_it_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Options(**wrong)


def test_so_are_those_of_one_that_opens_and_loads(tmp_path: Path) -> None:
    """They counted for nothing: the newest by another rule, an error as if it was asked for, one rank of none."""
    full = write_file(tmp_path / "m.safetensors", {"w": np.zeros(3, np.float32)})
    with pytest.raises(UsageError, match="--select 'newest'"):
        reshard.open(full, select="newest")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--missing 'dropped'"):
        reshard.open(full).load(missing="dropped")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="rank 0 of 0"):
        load({"load_checkpoint": str(full)}, rank=0, world_size=0)
