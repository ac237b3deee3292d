"""A target that is being filled is told as one, whatever family it is of, and not as one that lacks files."""

from __future__ import annotations

from pathlib import Path

import pytest

import reshard
from making import array, write_file, write_strategy
from reshard.errors import CheckpointError
from reshard.layout.tensor import Sharding
from reshard.ops.inspect import opened
from reshard.ops.options import Options
from reshard.planning.shares import Share


@pytest.mark.parametrize(
    "options",
    [
        {"to": "dcp", "files": 3},
        {"to": "parts", "max_shard_nbytes": 200},
        {"to": "parts", "format": "torch", "max_shard_nbytes": 200},
    ],
    ids=["dcp", "parts", "torch parts"],
)
def test_it_is_no_source(tmp_path: Path, options: dict[str, object]) -> None:
    full = write_file(tmp_path / "m.safetensors", {f"w{n}": array((8, 4), seed=n) for n in range(6)})
    reshard.convert(full, tmp_path / "out", Options(**options, share=Share(0, 2)))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="a conversion into it has not ended") as caught:
        opened(str(tmp_path / "out"))
    assert "--resume" in caught.value.hint


def test_inspect_shows_its_ranks_and_says_so(tmp_path: Path) -> None:
    full = write_file(tmp_path / "m.safetensors", {"w": array((4, 4))})
    strategy = write_strategy(tmp_path / "s", [{"w": Sharding((4,), ((0,), ()))}])
    reshard.convert(full, tmp_path / "out", Options(dst_strategy=str(strategy), share=Share(0, 2)))
    assert "a conversion into it has not ended: it is not whole" in opened(str(tmp_path / "out")).warnings
