"""Checkpoint 2.0: which iteration is taken, what its metadata says, and what contradicts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from checkpoint2 import write_checkpoint2, write_json
from making import array, read_file, same, write_file
from reshard.errors import CheckpointError, InputError, PlanError, UsageError
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.layout.tensor import Sharding
from reshard.ops.options import Options
from reshard.planning.catalog import Catalog
from reshard.planning.names import NameRules

ROWS, WHOLE = Sharding((2, 2), ((0,), ())), Sharding((2, 2), ((),))
FULL = {"l.0.w": array((8, 6), seed=1), "norm": array((5,), seed=2), "adam_m.l.0.w": array((8, 6), seed=3)}
STAGE = {"l.0.w": ROWS, "norm": WHOLE, "adam_m.l.0.w": ROWS}
METADATA, TRACKER = "metadata.json", "latest_checkpointed_iteration.txt"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_checkpoint2(tmp_path / "ckpt", FULL, [STAGE])
    return tmp_path / "ckpt"


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "iteration_00000007"


def change(folder: Path, how: Callable[[dict[str, Any]], None]) -> None:
    metadata = json.loads((folder / METADATA).read_text())
    how(metadata)
    write_json(folder / METADATA, metadata)


def opened(path: Path, **given: Any) -> Catalog:
    return open_source(Source(str(path), **given))


def refused(path: Path, kind: type[Exception] = CheckpointError, **given: Any) -> str:
    with pytest.raises(kind) as caught:
        opened(path, **given)
    return str(caught.value)


def values(path: Path) -> dict[str, np.ndarray]:
    found = reshard.open(path)
    return {name: np.asarray(found[name].read()) for name in found}


def check_whole(path: Path) -> None:
    found = values(path)
    assert [name for name, a in FULL.items() if not same(found[name], a)] == []


# --- which iteration


def test_the_tracker_says_which(root: Path, tmp_path: Path) -> None:
    other = {name: array(a.shape, seed=9) for name, a in FULL.items()}
    write_checkpoint2(root, other, [STAGE], iteration=12)
    assert "iteration 12" in opened(root).family
    (root / TRACKER).write_text("7")
    check_whole(root)
    check_whole(root / "iteration_00000007")
    assert opened(root, iteration=12).iteration == 12
    reshard.convert(root, tmp_path / "m.safetensors", Options(iteration=12, fsync=False))
    assert same(values(tmp_path / "m.safetensors")["norm"], other["norm"])


def test_one_that_is_not_there(root: Path) -> None:
    said = refused(root, iteration=8)
    assert "iteration_00000008" in said
    assert "iteration_00000007" in said
    assert "one iteration, 7" in refused(root / "iteration_00000007", UsageError, iteration=8)


def test_several_and_no_tracker(root: Path) -> None:
    write_checkpoint2(root, FULL, [STAGE], iteration=12)
    (root / TRACKER).unlink()
    said = refused(root)
    assert "iteration_00000012" in said
    assert "--iteration" in said
    assert opened(root, iteration=7).iteration == 7


def test_one_that_the_tracker_has_not_come_to(root: Path, folder: Path) -> None:
    (root / TRACKER).write_text("5")
    assert any("may not have ended" in warning for warning in opened(folder).warnings)
    (root / TRACKER).write_text("9")
    assert opened(folder).warnings == ()


def test_hugging_face_weights_beside_have_to_be_told_apart(folder: Path) -> None:
    write_json(folder / "model.safetensors.index.json", {"weight_map": {}})
    assert "--from" in refused(folder, UsageError)
    assert opened(folder, family="checkpoint2").tensors.keys() == FULL.keys()


def test_other_metadata_is_no_checkpoint2(tmp_path: Path) -> None:
    write_file(tmp_path / "model.safetensors", FULL)
    write_json(tmp_path / METADATA, {"author": "me"})
    assert opened(tmp_path).family == "a full checkpoint"


# --- files


def test_a_missing_file_is_told_and_replicas_stand_in(folder: Path) -> None:
    (folder / "CKP-model-0000003-0000004.safetensors").unlink()
    source = opened(folder)
    assert ["CKP-model-0000003-0000004.safetensors is missing" in w for w in source.warnings] == [True]
    check_whole(folder)


def test_a_missing_file_without_replicas_is_refused(folder: Path, tmp_path: Path) -> None:
    for rank in (1, 3):
        (folder / f"CKP-opt-000000{rank}-0000004.safetensors").unlink()
    with pytest.raises(PlanError) as caught:
        reshard.convert(folder, tmp_path / "m.safetensors")
    assert "adam_m.l.0.w: 50% missing" in str(caught.value)
    assert "ranks 1, 3" in str(caught.value)
    assert "CKP-opt-0000001-0000004.safetensors is missing" in str(caught.value)


@pytest.mark.parametrize("swapped", [(0, 1), (2, 3), (0, 3)])
def test_files_under_each_other_s_names_are_told_by_their_replicas(swapped: tuple[int, int], tmp_path: Path) -> None:
    full = FULL | {"l.1.w": array((8, 6), seed=4)}
    folder = write_checkpoint2(tmp_path / "two", full, [STAGE | {"l.1.w": ROWS}])
    one, other = (folder / f"CKP-model-000000{rank}-0000004.safetensors" for rank in swapped)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"CKP-model-\d+-0000004\.safetensors.* should hold the same"):
        values(folder)


def test_a_replica_that_differs_in_one_tensor_is_told(folder: Path) -> None:
    path = folder / "CKP-model-0000002-0000004.safetensors"
    held = read_file(path)
    write_file(path, held | {"l.0.w": held["l.0.w"] + 1}, {"format": "ms"})
    found = reshard.open(folder)
    assert same(np.asarray(found["l.0.w"].read()), FULL["l.0.w"])
    assert any("should hold the same, and do not: --check-replicas" in w for w in found.warnings)


def test_weights_alone_need_no_optimizer_files(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*opt*"):
        path.unlink()
    options = Options(names=NameRules(weights_only=True), fsync=False)
    reshard.convert(folder, tmp_path / "m.safetensors", options)
    assert values(tmp_path / "m.safetensors").keys() == {"l.0.w", "norm"}


def test_files_of_another_save_are_left_out(folder: Path) -> None:
    write_file(folder / "CKP-model-0000004-0000008.safetensors", {"l.0.w": array((4, 6), seed=8)})
    (folder / "tmpab12cd").write_text("{")
    assert any("CKP-model-0000004-0000008.safetensors: left out" in w for w in opened(folder).warnings)
    check_whole(folder)


def test_a_file_that_lacks_what_it_should_hold(folder: Path) -> None:
    write_file(folder / "CKP-model-0000001-0000004.safetensors", {"norm": FULL["norm"]})
    assert any("does not hold l.0.w" in warning for warning in opened(folder).warnings)
    check_whole(folder)
    write_file(folder / "CKP-model-0000003-0000004.safetensors", {"norm": FULL["norm"]})
    with pytest.raises(PlanError, match=r"l\.0\.w: 50% missing"):
        reshard.plan(folder, "m.safetensors")


def test_files_elsewhere_are_refused(folder: Path) -> None:
    change(folder, lambda m: m["storage_data"]["('norm', (0,))"][0].update(file_name="../other.safetensors"))
    assert "../other.safetensors" in refused(folder)


def test_metadata_lost_by_several_devices(folder: Path) -> None:
    (folder / METADATA).unlink()
    assert "metadata.json is missing" in refused(folder)
    for path in folder.glob("*-000000[123]-*"):
        path.unlink()
    assert "metadata.json is missing" in refused(folder)


def test_one_file_of_several_is_no_checkpoint(folder: Path) -> None:
    assert "a part of the model" in refused(folder / "CKP-model-0000000-0000004.safetensors")


def test_an_iteration_without_weights(root: Path, folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert "none of the files that metadata.json names is there" in refused(root)
    (folder / METADATA).unlink()
    assert "without weight files" in refused(root)


# --- what metadata says


def test_a_slice_of_another_rank_is_a_contradiction(folder: Path) -> None:
    def swap(metadata: dict[str, Any]) -> None:
        storage = metadata["storage_data"]
        storage["('l.0.w', (0,))"], storage["('l.0.w', (1,))"] = (
            storage["('l.0.w', (1,))"],
            storage["('l.0.w', (0,))"],
        )

    change(folder, swap)
    said = refused(folder)
    assert "slice 0 in CKP-model-0000001-0000004.safetensors is said to be of rank 1, which holds slice 1" in said


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda p: p.update(global_shape=[16, 6]), "slice 0 is [4, 6] in CKP-model-0000000"),
        (lambda p: p.update(global_shape=[7, 6]), "not divisible into 2 parts"),
        (lambda p: p["layout"].update(rank_list=[0, 1]), "rank_list of 2 ranks for 4 devices"),
        (lambda p: p["layout"].update(tensor_map=[0]), "the layout cuts 1 dims"),
        (lambda p: p["layout"].update(device_matrix=[4]), "slice 0"),
    ],
    ids=["other shape", "uneven", "ranks", "dims", "devices"],
)
def test_a_layout_that_is_not_that_of_the_files(folder: Path, how: Callable[[Any], None], said: str) -> None:
    change(folder, lambda m: how(m["state_dict_metadata"]["l.0.w"]))
    told = refused(folder)
    assert "l.0.w: " in told
    assert said in told


@pytest.mark.parametrize("rank", [-1, 1 << 40])
def test_ranks_that_cannot_be(folder: Path, rank: int) -> None:
    change(folder, lambda m: m["storage_data"]["('norm', (0,))"][0].update(storage_rank=rank))
    assert f"CKP-model-0000000-0000004.safetensors is of rank 0 and {rank:,}" in refused(folder)
    change(folder, lambda m: m["state_dict_metadata"]["norm"]["layout"].update(rank_list=[0, 1, 2, rank]))
    change(folder, lambda m: m["storage_data"]["('norm', (0,))"][0].update(storage_rank=0))
    assert f"it names rank {rank:,}" in refused(folder)


def test_every_fault_is_listed(folder: Path) -> None:
    def lie(metadata: dict[str, Any]) -> None:
        for name in ("l.0.w", "norm"):
            metadata["state_dict_metadata"][name]["global_shape"][0] = 64

    change(folder, lie)
    assert all(f"{name}: " in refused(folder) for name in ("l.0.w", "norm"))


def test_storage_of_what_nobody_describes(folder: Path) -> None:
    change(folder, lambda m: m["state_dict_metadata"].pop("norm"))
    assert "('norm', (0,)): in storage_data" in refused(folder)


def test_a_tensor_that_metadata_forgot_is_no_slice_taken_for_whole(folder: Path) -> None:
    def forget(metadata: dict[str, Any]) -> None:
        del metadata["state_dict_metadata"]["l.0.w"]
        for key in [key for key in metadata["storage_data"] if key.startswith("('l.0.w'")]:
            del metadata["storage_data"][key]

    change(folder, forget)
    with pytest.raises(InputError, match=r"l\.0\.w: .*its ranks disagree"):
        reshard.plan(folder, "m.safetensors")
    for path in folder.glob("CKP-model-000000[123]-*"):
        write_file(path, {"norm": FULL["norm"]})
    assert "l.0.w: only CKP-model-0000000-0000004.safetensors holds it" in refused(folder)


def test_gradients_that_were_not_saved_are_no_fault(folder: Path, tmp_path: Path) -> None:
    def name_gradients(metadata: dict[str, Any]) -> None:
        metadata["state_dict_metadata"]["accu_grads.l.0.w"] = metadata["state_dict_metadata"]["l.0.w"]
        for number in (0, 1):
            entry = {"file_name": f"CKP-opt-000000{number}-0000004.safetensors", "storage_rank": number}
            metadata["storage_data"][f"('accu_grads.l.0.w', ({number},))"] = [entry]

    change(folder, name_gradients)
    assert opened(folder).warnings == ()
    check_whole(folder)
    plan = reshard.plan(folder, "m.safetensors")
    assert [left.names for left in plan.left_out] == [("accu_grads.l.0.w",)]


@pytest.mark.parametrize("name", ["norm", "adam_m.l.0.w"])
def test_what_is_described_and_lies_nowhere_is_missing(folder: Path, name: str) -> None:
    """But for gradients: neither a weight nor a state is left out in silence."""

    def lose(metadata: dict[str, Any]) -> None:
        for key in [key for key in metadata["storage_data"] if key.startswith(f"('{name}'")]:
            del metadata["storage_data"][key]

    change(folder, lose)
    for path in folder.glob("*.safetensors"):
        kept = {n: a for n, a in read_file(path).items() if n != name}
        write_file(path, kept)
    with pytest.raises(PlanError, match=f"{name}: 100% missing"):
        reshard.plan(folder, "m.safetensors")


def test_what_no_compiler_knows_is_whole_everywhere(folder: Path) -> None:
    change(folder, lambda m: m["state_dict_metadata"]["norm"].update(layout=None))
    check_whole(folder)
    (shard,) = opened(folder).tensors["norm"].shards
    assert len(shard.held) == 4


def test_names_with_quotes_and_ranks_in_any_order(tmp_path: Path) -> None:
    full = {"it's": array((8, 6), seed=1), "plain": array((8, 6), seed=2)}
    folder = write_checkpoint2(tmp_path / "c", full, [dict.fromkeys(full, ROWS)])

    def turned(metadata: dict[str, Any]) -> None:
        """Places 0 and 3 hold other ranks' halves: the same files, said in another order."""
        for name in full:
            metadata["state_dict_metadata"][name]["layout"]["rank_list"] = [2, 3, 0, 1]

    change(folder, turned)
    found = values(folder)
    assert [name for name, a in full.items() if not same(found[name], a)] == []


def test_a_tied_tensor_keeps_the_layout_of_its_first_stage(tmp_path: Path) -> None:
    full = {"embedding": array((8, 6), seed=1), "l.0.w": array((8, 6), seed=2), "l.1.w": array((8, 6), seed=3)}
    stages = [{"embedding": ROWS, "l.0.w": ROWS}, {"embedding": ROWS, "l.1.w": ROWS}]
    folder = write_checkpoint2(tmp_path / "c", full, stages)
    found = values(folder)
    assert [name for name, a in full.items() if not same(found[name], a)] == []
    source = opened(folder)
    assert (source.ranks.stages, source.ranks.devices) == (2, 4)
    assert {source.files[h.file].rank for s in source.tensors["embedding"].shards for h in s.held} == {0, 1, 2, 3}


# --- common.json


def test_where_the_training_was(root: Path) -> None:
    (root / "iteration_00000007" / "common.json").write_text('{"global_step": 6, "loss_scale": Infinity, "new": []}')
    source = opened(root)
    assert source.progress["global_step"] == 6
    assert source.progress["loss_scale"] == float("inf")
    assert source.iteration == 7


def test_a_damaged_one_is_refused(folder: Path) -> None:
    (folder / "common.json").write_text('{"global_step": ')
    assert "common.json" in refused(folder)
