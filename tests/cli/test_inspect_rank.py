"""``inspect --on-rank`` of what has no such rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from making import array, write_file
from reshard.errors import CheckpointError
from reshard.ops.inspect import opened


def test_a_full_checkpoint_has_its_own_rank_alone(tmp_path: Path) -> None:
    model = str(write_file(tmp_path / "model.safetensors", {"w": array((4,))}))
    assert list(opened(model, rank=0).tensors) == ["w"]
    with pytest.raises(CheckpointError, match="no file of rank 3") as caught:
        opened(model, rank=3)
    assert caught.value.hint == "ranks 0 are there"
