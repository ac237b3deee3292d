"""What is put together of what is made: any blocks, any portions of what a block needs, give the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from families.steps import STEPS, kept_in
from reshard.index import Extent
from reshard.layout.box import Box
from reshard.moving import joint
from reshard.moving.mover import Mover
from reshard.moving.scratch import Scratch
from reshard.moving.task_inputs import Sources
from reshard.ops.options import Options
from reshard.planning.blocks import Access
from reshard.planning.plan import Move
from reshard.planning.steps import Joint, Piece


@pytest.mark.parametrize("name", ["joint", "joint, turned"])
@pytest.mark.parametrize(("block_nbytes", "at_once"), [(24, 8), (50, 100), (72, 40), (1 << 20, 4), (1 << 20, 1 << 20)])
def test_blocks_and_portions(
    name: str, block_nbytes: int, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "_AT_ONCE_NBYTES", at_once)
    made = STEPS[name](kept_in(tmp_path))
    plan = made.plan("out", Options())
    (tensor,) = plan.tensors
    assert isinstance(tensor.step, Joint)
    whole = Box.whole(tensor.step.of.shape)
    move = Move("w", tensor.step, "float32", (Piece(0, whole, (Extent(0, made.wanted.nbytes),)),))
    out = np.zeros(made.wanted.size, np.float32)

    def take(access: Access, data: memoryview) -> None:
        start = access.ranges[0].offset // 4
        out[start : start + len(data) // 4] = np.frombuffer(data, np.float32)

    sources = Sources(plan.sources)
    mover = Mover(move, sources, Scratch(), block_nbytes)
    mover.run(range(len(mover.blocks)), take)
    sources.close()
    np.testing.assert_array_equal(out.reshape(made.wanted.shape), made.wanted)
