"""What the command line refuses, a script's options are refused for as well."""

from __future__ import annotations

from typing import Any

import pytest

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
