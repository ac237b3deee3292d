"""What is found near a part of a tensor is all that looking through its pieces finds, whatever order they are in."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_boxes import seeded, shapes, tiling

from reshard.families.dcp_target import DcpTarget
from reshard.families.planner import make_plan
from reshard.index import Contents, Extent, TensorSpec
from reshard.layout.box import Box
from reshard.planning import tasks
from reshard.planning.catalog import Catalog, Held, IndexedFile, Shard, tensor_of_shards
from reshard.planning.steps import Assembly, Piece, Step
from reshard.planning.target import Choices, Target
from reshard.planning.tasks import Near, needed
from thorough import examples


@examples(60)
@given(shapes, st.booleans(), seeded)
def test_all_that_is_needed_is_found(shape: tuple[int, ...], in_order: bool, random: Random) -> None:
    whole, near = Box.whole(shape), Near()
    boxes = tiling(random, whole, 12)
    pieces = tuple(Piece(n, box, ()) for n, box in enumerate(sorted(boxes) if in_order else boxes))
    step = Assembly("uint8", shape, pieces)
    for box in tiling(random, whole, 12):
        assert near.needed(0, step, box) == needed(step, box)


COUNT, NAMES = 256, ("a", "b", "c")


@pytest.mark.parametrize("dim", [0, 1])
def test_as_many_files_as_there_were_look_at_few_pieces_each(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each tensor, which has as many pieces: 1,024 files took a minute for 50 tensors."""
    looked: list[int] = []

    def counting(step: Step, hull: Box) -> Step:
        looked.append(len(step.base.pieces))
        return needed(step, hull)

    monkeypatch.setattr(tasks, "needed", counting)
    shape = (4 * COUNT, 2) if dim == 0 else (2, 4 * COUNT)
    plan = make_plan(_cut(shape, dim), Target(DcpTarget(COUNT)), Choices())
    made = list(tasks.tasks(plan, together="in any order"))
    assert len(made) == COUNT
    assert max(looked) == 1
    assert all(len(task.sources) == 1 for task in made)


def _cut(shape: tuple[int, ...], dim: int) -> Catalog:
    """Tensors cut along a dim, each part in a file of its own."""
    files = [IndexedFile(f"{n}", f"{n}", 1 << 20, 0, n, "distcp", Contents({})) for n in range(COUNT)]
    tensors = {}
    for number, name in enumerate(NAMES):
        shards = []
        for n in range(COUNT):
            start = (4 * n, 0) if dim == 0 else (0, 4 * n)
            stop = (4 * n + 4, shape[1]) if dim == 0 else (shape[0], 4 * n + 4)
            shards.append(Shard(Box(start, stop), (Held(n, (Extent(8 * number, 8),)),), (n,)))
        tensors[name] = tensor_of_shards(name, TensorSpec("uint8", shape), shards)
    return Catalog(tuple(files), tensors, {}, {})
