from __future__ import annotations

import pytest
from catalogs import ROWS, WHOLE, file, full, ranks, strategy

from reshard.errors import CheckpointError
from reshard.families.rank_folders import catalog
from reshard.layout.box import Box
from reshard.layout.tensor import Sharding


def test_full_shape_comes_from_shard_and_cut() -> None:
    cut = Sharding((2, 2), ((1,), (0,)))
    found = ranks(strategy({"w": cut}, devices=4), *[{"w": (3, 5)}] * 4)
    assert found.tensors["w"].spec.shape == (6, 10)


def test_replicas_are_held_in_rank_order() -> None:
    found = ranks(strategy({"w": WHOLE}), {"w": (2,)}, {"w": (2,)})
    assert [h.file for h in next(iter(found.tensors["w"].shards)).held] == [0, 1]


def test_missing_cells_name_the_ranks_that_should_hold_them() -> None:
    found = catalog([file(0, {"w": (2,)})], strategy({"w": ROWS}))
    tensor = found.tensors["w"]
    assert [shard.box for shard in tensor.shards.missing()] == [Box((2,), (4,))]
    assert [shard.expected for shard in tensor.shards.missing()] == [(1,)]


def test_a_rank_without_file_is_warned_of() -> None:
    (warning,) = catalog([file(1, {"w": (2,)})], strategy({"w": WHOLE})).warnings
    assert "rank_0" in warning


def test_ranks_beyond_the_strategy_are_refused() -> None:
    with pytest.raises(CheckpointError, match="rank_2 to rank_3 are beyond the 2 ranks"):
        ranks(strategy({"w": ROWS}), *[{"w": (2,)}] * 4)


def test_a_tensor_in_a_stage_that_does_not_have_it_is_refused() -> None:
    plan = strategy({"w": ROWS}, {"x": ROWS})
    with pytest.raises(CheckpointError, match="w: held by rank 2"):
        catalog([file(2, {"w": (2,)})], plan)


def test_a_tied_tensor_is_taken_from_the_stage_that_holds_it_whole() -> None:
    plan = strategy({"w": ROWS}, {"w": ROWS})
    found = catalog([file(0, {"w": (2,)}), file(2, {"w": (2,)}), file(3, {"w": (2,)})], plan)
    assert {h.file for shard in found.tensors["w"].shards for h in shard.held} == {1, 2}


def test_shards_that_differ_are_all_told() -> None:
    plan = strategy({"v": ROWS, "w": ROWS})
    with pytest.raises(CheckpointError) as caught:
        ranks(plan, {"v": (2,), "w": (2,)}, {"v": (3,), "w": (4,)})
    assert caught.value.message.count("its shards differ") == 2
    assert "float32[2] on rank 0, float32[3] on rank 1" in caught.value.message


def test_a_shard_of_other_ndim_than_its_cut_is_refused() -> None:
    with pytest.raises(CheckpointError, match="w: the strategy cuts 1 dims, the shard has 2"):
        ranks(strategy({"w": ROWS}), *[{"w": (2, 2)}] * 2)


def test_a_full_checkpoint_holds_each_tensor_once() -> None:
    with pytest.raises(CheckpointError, match=r"w: in .* and again in"):
        catalog([file(0, {"w": (2,)}), file(0, {"w": (2,)})], None)


def test_unknown_names_are_asked_about_only_where_a_strategy_is() -> None:
    assert not full({"w": (2,)}).compared()
    found = ranks(strategy({"w": ROWS}), *[{"w": (2,), "step": ()}] * 2)
    assert [t.name for t in found.compared()] == ["step"]


def test_texts_are_kept_by_rank() -> None:
    files = [file(r, {"w": (2,)}, {"append": str(r)}) for r in range(2)]
    assert catalog(files, strategy({"w": ROWS})).texts == {"append": {0: "0", 1: "1"}}
