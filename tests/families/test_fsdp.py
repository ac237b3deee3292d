"""FSDP's files: which box of a tensor a rank holds, whose moments are whose, and what is told of missing ranks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

import reshard
from golden.cases import run_reshard
from golden_families.test_recorded import unpacked
from making import array, read_file, same, write_file
from reshard import NameRules, Options
from reshard.errors import CheckpointError, FormatError, PlanError, UsageError
from reshard.families.fsdp_values import local_of
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.formats.pickle_objects import Global, Record
from reshard.formats.torch_file import torch_bytes
from reshard.formats.torch_values import TensorRef, whole
from reshard.index import TensorSpec
from reshard.layout.box import Box

TENSOR = "torch.distributed.tensor"
WEIGHTS = Options(names=NameRules(weights_only=True), fsync=False)


def placed(kind: str, **fields: Any) -> Record:
    return Record(Global(f"{TENSOR}.placement_types", kind), (), fields)


ROWS, COLUMNS, COPIED = placed("Shard", dim=0), placed("Shard", dim=1), placed("Replicate")


def dtensor(local: TensorRef, shape: tuple[int, ...], placements: Sequence[Record], mesh: Mapping[str, Any]) -> Record:
    """As torch pickles one, with the attributes of a mesh as some release has them."""
    kind = Global(TENSOR, "DTensor")
    spec = {
        "placements": tuple(placements),
        "mesh": Record(Global("torch.distributed.device_mesh", "DeviceMesh"), (), mesh),
    }
    state = {"_local_tensor": local, "_spec": Record(Global(f"{TENSOR}._dtensor_spec", "DTensorSpec"), (), spec)}
    given = (kind, Global("torch", local.dtype), shape)
    wrapper = Global("torch._utils", "_rebuild_wrapper_subclass")
    return Record(Global("torch._tensor", "_rebuild_from_type_v2"), (wrapper, kind, given), state)


def old_mesh(*sizes: int, at: tuple[int, ...] | None = None) -> dict[str, Any]:
    """As torch 2.2 to 2.8 has it."""
    return {"mesh": whole("mesh", TensorSpec("int32", sizes)), "_coordinate_on_dim": at}


def local(shape: tuple[int, ...]) -> TensorRef:
    return whole("0", TensorSpec("float32", shape))


def box_of(
    shape: tuple[int, ...], mine: tuple[int, ...], placements: Sequence[Record], sizes: tuple[int, ...], rank: int
) -> Box:
    found = local_of(dtensor(local(mine), shape, placements, old_mesh(*sizes)), rank, int(np.prod(sizes)))
    assert found is not None
    ((box, _),) = found.parts
    return box


def test_fsdp_over_tensor_parallelism_cuts_what_that_has_cut() -> None:
    """30 rows, two of each: the answer is that of torch (reference: DCP's offsets of the same cut)."""
    places = (placed("_StridedShard", dim=0, split_factor=2), ROWS)
    rows = {0: (0, 8), 1: (15, 23), 2: (8, 15), 3: (23, 30)}
    for rank, (start, stop) in rows.items():
        assert box_of((30, 4), (stop - start, 4), places, (2, 2), rank) == Box((start, 0), (stop, 4))


def test_two_cuts_of_one_dim_nest() -> None:
    assert box_of((30,), (7,), (ROWS, ROWS), (2, 2), 1) == Box((8,), (15,))
    assert box_of((6, 10), (3, 5), (COLUMNS, ROWS), (2, 2), 2) == Box((0, 5), (3, 10))
    assert box_of((5, 4), (2, 4), (COPIED, ROWS), (2, 3), 4) == Box((2, 0), (4, 4))


def test_a_rank_may_hold_nothing() -> None:
    found = local_of(dtensor(local((0, 4)), (5, 4), (ROWS,), old_mesh(4)), 3, 4)
    assert found is not None
    assert found.parts == ()


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        (placed("Partial", reduce_op="sum"), "Partial"),
        (placed("_StridedShard", dim=0, split_factor=2), "stripes"),
        (placed("_MaskPartial"), "_MaskPartial"),
    ],
)
def test_what_is_no_block_is_refused(placement: Record, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        local_of(dtensor(local((4, 4)), (8, 4), (placement,), old_mesh(2)), 0, 2)


@pytest.mark.parametrize(
    "mesh",
    [
        old_mesh(2, at=(0,)),
        {
            "_layout": Record(Global("torch.distributed._mesh_layout", "_MeshLayout"), (), {"shape": 2, "stride": 1}),
            "_rank": 0,
        },
    ],
)
def test_the_file_of_another_rank_is_told(mesh: Mapping[str, Any]) -> None:
    with pytest.raises(FormatError, match="by its name it is of rank 1"):
        local_of(dtensor(local((4, 4)), (8, 4), (ROWS,), mesh), 1, 2)


@pytest.mark.parametrize(
    "mesh",
    [
        old_mesh(0),
        old_mesh(2, at=(2,)),
        old_mesh(2, at=(0, 0)),
        {"mesh": None, "_layout": None},
        {"_layout": Record(Global("m", "L"), ((((2,),),),), {})},
        {"_layout": Record(Global("m", "L"), (), {"axes": (3, None)})},
        {"_layout": Record(Global("m", "L"), (), {"shape": "two"})},
        old_mesh(3),
    ],
)
def test_a_mesh_that_is_none_is_told(mesh: Mapping[str, Any]) -> None:
    with pytest.raises(FormatError):
        local_of(dtensor(local((4, 4)), (8, 4), (ROWS,), mesh), 1, 2)


@pytest.mark.parametrize("order", [7, [[1]], ["a"], (0, 0), None])
def test_an_order_of_cuts_that_is_none_says_nothing(order: Any) -> None:
    made = dtensor(local((4, 4)), (8, 4), (ROWS,), old_mesh(2))
    entry = Record(Global(f"{TENSOR}._dtensor_spec", "ShardOrderEntry"), (0, order))
    made.state["_spec"].state["shard_order"] = (entry, entry, 3)
    assert local_of(made, 1, 2) is not None


@pytest.mark.parametrize("groups", [[{"params": 3}], [{"params": [[0]]}], [3], [{}]])
def test_groups_of_parameters_that_are_none(tmp_path: Path, groups: Any) -> None:
    source = write_ranks(tmp_path / "actor", FULL, list(FULL))
    Kept().write(source / "optim_world_size_2_rank_1.pt", {"state": {}, "param_groups": groups})
    with pytest.raises(FormatError, match="a group of its parameters"):
        reshard.plan(source, tmp_path / "m.safetensors")


def test_a_tensor_of_another_size_is_told() -> None:
    with pytest.raises(FormatError, match=r"should hold float32\[4, 4\]"):
        local_of(dtensor(local((5, 4)), (8, 4), (ROWS,), old_mesh(2)), 1, 2)


# ---- whole folders


class Kept:
    """Arrays of a torch file, and their references."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def __call__(self, value: np.ndarray) -> TensorRef:
        self.arrays.append(np.ascontiguousarray(value))
        return whole(str(len(self.arrays) - 1), TensorSpec(value.dtype.name, value.shape))

    def rows(self, value: np.ndarray, rank: int, world: int) -> Record:
        """A rank's rows of a tensor, as FSDP2 saves them."""
        part = -(-len(value) // world)
        mine = self(value[rank * part : (rank + 1) * part])
        mesh = {**old_mesh(world), "mesh": self(np.arange(world, dtype=np.int32))}
        read = dtensor(mine, value.shape, (ROWS,), mesh)
        return Record(read.factory, (*read.args, read.state))

    def write(self, path: Path, value: Any) -> None:
        path.write_bytes(torch_bytes(value, {str(key): kept.tobytes() for key, kept in enumerate(self.arrays)}))


def write_ranks(
    folder: Path, full: Mapping[str, np.ndarray], trained: Sequence[str], world: int = 2, uncut: Sequence[str] = ()
) -> Path:
    """A model whose weights named in ``trained`` have moments: those of weight w are -w and w from its last row on.
    Each rank has all of those named in ``uncut``.
    """

    def held(kept: Kept, of: str, value: np.ndarray, rank: int) -> Any:
        return kept(value) if of in uncut else kept.rows(value, rank, world)

    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(world):
        model = Kept()
        model.write(
            folder / f"model_world_size_{world}_rank_{rank}.pt",
            {name: held(model, name, value, rank) for name, value in full.items()},
        )
        optimizer = Kept()
        state = {
            number: {
                "step": optimizer(np.float32(3).reshape(())),
                "exp_avg": held(optimizer, name, -full[name], rank),
                "exp_avg_sq": held(optimizer, name, full[name][::-1], rank),
            }
            for number, name in enumerate(trained)
        }
        groups = [{"lr": 0.1, "params": list(range(len(trained)))}]
        optimizer.write(folder / f"optim_world_size_{world}_rank_{rank}.pt", {"state": state, "param_groups": groups})
    return folder


FULL = {
    "embed": array((5, 3), seed=1),
    "a.w": array((4, 3), seed=2),
    "b.w": array((4, 3), seed=3),
    "head": array((7, 2)),
}


def test_moments_have_their_weights_names(tmp_path: Path) -> None:
    source = write_ranks(tmp_path / "actor", FULL, list(FULL))
    reshard.convert(source, tmp_path / "m.safetensors", Options(fsync=False))
    found = read_file(tmp_path / "m.safetensors")
    for name, value in FULL.items():
        assert same(found[name], value)
        assert same(found[f"exp_avg.{name}"], -value)
        assert same(found[f"exp_avg_sq.{name}"], value[::-1])
        assert found[f"step.{name}"] == 3


SPARSE = Record(Global("torch._utils", "_rebuild_sparse_tensor"), (1, ()))


def test_a_weight_that_is_not_plain_numbers_does_not_go_missing(tmp_path: Path) -> None:
    source = write_ranks(tmp_path / "actor", FULL, list(FULL))
    Kept().write(source / "model_world_size_2_rank_1.pt", {"mask": SPARSE})
    with pytest.raises(FormatError, match="tensor 'mask' is a sparse tensor"):
        reshard.plan(source, tmp_path / "m.safetensors")


def test_states_that_are_not_plain_numbers_are_told(tmp_path: Path) -> None:
    source = write_ranks(tmp_path / "actor", FULL, list(FULL), world=1)
    group = {"params": list(range(len(FULL)))}
    path = source / "optim_world_size_1_rank_0.pt"
    Kept().write(path, {"state": {0: {"exp_avg": SPARSE}}, "param_groups": [group]})
    assert any("no plain tensors" in told and "exp_avg" in told for told in reshard.open(source).warnings)


def test_frozen_weights_have_none_where_shapes_tell(tmp_path: Path) -> None:
    source = write_ranks(tmp_path / "actor", FULL, ["a.w", "b.w", "head"])
    reshard.convert(source, tmp_path / "m.safetensors", Options(fsync=False))
    found = read_file(tmp_path / "m.safetensors")
    assert same(found["exp_avg.b.w"], -FULL["b.w"])
    assert "exp_avg.embed" not in found


def test_a_weight_that_is_called_as_a_state_is_one_all_the_same(tmp_path: Path) -> None:
    """``optimizer``, ``step`` and ``momentum`` are modules of the model here."""
    full = dict(zip(("optimizer.w", "step.w", "momentum.w", "head"), FULL.values(), strict=True))
    source = write_ranks(tmp_path / "actor", full, list(full))
    reshard.convert(source, tmp_path / "m.safetensors", replace(WEIGHTS, dtype="float16"))
    assert {name: one.dtype.name for name, one in read_file(tmp_path / "m.safetensors").items()} == dict.fromkeys(
        full, "float16"
    )


def test_moments_that_may_be_of_several_weights_are_refused(tmp_path: Path) -> None:
    """Nothing in the files says whether a.w or b.w was trained."""
    source = write_ranks(tmp_path / "actor", FULL, ["embed", "b.w", "head"])
    with pytest.raises(PlanError, match=r"exp_avg\..*nothing in the files says"):
        reshard.plan(source, tmp_path / "m.safetensors")
    reshard.convert(source, tmp_path / "m.safetensors", WEIGHTS)
    assert read_file(tmp_path / "m.safetensors").keys() == FULL.keys()
    (warned,) = open_source(Source(str(source))).warnings
    assert "exp_avg.<3 parameters of the optimizer>, exp_avg_sq." in warned
    told = Options(frozen=r"^a\.", fsync=False, overwrite=True)
    reshard.convert(source, tmp_path / "m.safetensors", told)
    found = read_file(tmp_path / "m.safetensors")
    assert same(found["exp_avg.b.w"], -FULL["b.w"])
    assert "exp_avg.a.w" not in found
    other = reshard.plan(source, tmp_path / "m.safetensors", Options(frozen=r"^b\."))
    assert other.identity != reshard.plan(source, tmp_path / "m.safetensors", told).identity


def test_moments_of_a_weight_that_fsdp_did_not_cut_are_not_those_of_one_that_it_cut(tmp_path: Path) -> None:
    """It left out one weight (``ignored_params``), which was trained, and one of the same shape was not."""
    full = {"embed": FULL["embed"], "a.w": FULL["a.w"], "own": FULL["a.w"] * 2, "b.w": FULL["b.w"]}
    source = write_ranks(tmp_path / "actor", full, ["embed", "own", "b.w"], uncut=["own"])
    with pytest.raises(PlanError, match="each rank holds 1 of them whole"):
        reshard.plan(source, tmp_path / "m.safetensors")
    reshard.convert(source, tmp_path / "m.safetensors", WEIGHTS)
    assert read_file(tmp_path / "m.safetensors").keys() == full.keys()


def test_ranks_that_have_all_have_moments_in_their_own_shapes(tmp_path: Path) -> None:
    """FSDP1's NO_SHARD with use_orig_params: nothing tells buffers from weights but their shapes."""
    full = {"freq": array((2,)), **FULL, "count": array((), "int64")}
    source = write_ranks(tmp_path / "actor", full, list(FULL), uncut=list(full))
    reshard.convert(source, tmp_path / "m.safetensors", Options(fsync=False))
    found = read_file(tmp_path / "m.safetensors")
    assert found.keys() == {*full, *(f"{kind}.{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in FULL)}
    assert all(same(found[f"exp_avg.{name}"], -value) for name, value in FULL.items())
    twin = write_ranks(tmp_path / "twin", {**FULL, "mean": FULL["head"]}, list(FULL), uncut=[*FULL, "mean"])
    with pytest.raises(PlanError, match=r"exp_avg\..*nothing in the files says; --frozen says"):
        reshard.plan(twin, tmp_path / "m.safetensors")
    told = open_source(Source(str(twin), frozen="^mean$")).tensors
    assert "exp_avg.head" in told
    assert "exp_avg.mean" not in told


def test_what_was_frozen_is_told_to_every_command_that_reads(tmp_path: Path) -> None:
    source, made = write_ranks(tmp_path / "actor", FULL, ["embed", "b.w", "head"]), tmp_path / "m.safetensors"
    reshard.convert(source, made, Options(frozen=r"^a\.", fsync=False))
    assert run_reshard(["verify", str(source), str(made)]) == 1
    moments = "exp_avg.b.w"
    for words in (["verify", source, made], ["fingerprint", source], ["explain", moments, source],
                  ["inspect", source, "--tensor", moments]):  # fmt: skip
        assert run_reshard([*map(str, words), "--frozen", r"^a\."]) == 0


LAYERS = {f"layers.{n}.{name}": FULL[name] * (n + 2) for n in range(3) for name in ("a.w", "b.w")}
LAYERS |= {"head": FULL["head"]}


@pytest.mark.parametrize("first", [1, 2])
def test_of_whole_layers_the_first_are_taken_for_frozen_and_that_is_said(tmp_path: Path, first: int) -> None:
    trained = [name for name in LAYERS if not any(name.startswith(f"layers.{n}.") for n in range(first))]
    source = write_ranks(tmp_path / "actor", LAYERS, trained)
    plan = reshard.plan(source, tmp_path / "m.safetensors")
    which = "layer 0" if first == 1 else "layers 0 to 1"
    assert any(f"those of {which} are taken for frozen" in warning for warning in plan.warnings)
    reshard.convert(source, tmp_path / "m.safetensors", Options(fsync=False))
    found = read_file(tmp_path / "m.safetensors")
    assert {n for n in LAYERS if f"exp_avg.{n}" in found} == set(trained)
    assert all(same(found[f"exp_avg.{name}"], -LAYERS[name]) for name in trained)


def test_a_part_of_a_layer_is_not_taken_for_frozen(tmp_path: Path) -> None:
    source = write_ranks(tmp_path / "actor", LAYERS, [name for name in LAYERS if name != "layers.0.a.w"])
    with pytest.raises(PlanError, match="nothing in the files says"):
        reshard.plan(source, tmp_path / "m.safetensors")


def test_the_optimizer_s_missing_file_is_told_where_states_are_wanted(tmp_path: Path) -> None:
    source = write_ranks(tmp_path / "actor", FULL, list(FULL))
    (source / "optim_world_size_2_rank_1.pt").unlink()
    with pytest.raises(PlanError, match=r"optim_world_size_2_rank_1\.pt"):
        reshard.plan(source, tmp_path / "m.safetensors")
    assert len(reshard.plan(source, tmp_path / "m.safetensors", WEIGHTS).tensors) == len(FULL)


def test_the_optimizer_s_file_of_another_rank_is_told(tmp_path: Path) -> None:
    """Its pieces are as long, and say not of which rank they are."""
    source = unpacked("cases", "fsdp1_mesh_r2", tmp_path) / "src" / "actor"
    shutil.copy(source / "optim_world_size_2_rank_0.pt", source / "optim_world_size_2_rank_1.pt")
    with pytest.raises(
        CheckpointError, match=r"optim_world_size_2_rank_1\.pt: it was saved as optim_world_size_2_rank_0"
    ):
        reshard.plan(source, tmp_path / "m.safetensors")


def test_files_of_two_saves_need_a_word(tmp_path: Path) -> None:
    source = write_ranks(tmp_path / "actor", FULL, list(FULL))
    write_ranks(source, FULL, list(FULL), world=1)
    with pytest.raises(CheckpointError, match="world size 1"):
        reshard.plan(source, tmp_path / "m.safetensors")
    (source / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 2}')
    assert len(reshard.plan(source, tmp_path / "m.safetensors", WEIGHTS).sources) == 4


def test_a_rank_beyond_the_world_is_told(tmp_path: Path) -> None:
    source = write_ranks(tmp_path / "actor", FULL, list(FULL))
    shutil.copy(source / "model_world_size_2_rank_1.pt", source / "model_world_size_2_rank_2.pt")
    plan = reshard.plan(source, tmp_path / "m.safetensors", WEIGHTS)
    assert any("rank_2.pt: of no rank of 2" in warning for warning in plan.warnings)


def test_a_folder_of_steps_and_roles(tmp_path: Path) -> None:
    for step in (10, 20):
        write_ranks(tmp_path / "run" / f"global_step_{step}" / "actor", FULL, list(FULL))
    run = tmp_path / "run"
    with pytest.raises(UsageError, match="global_step_20/actor"):
        reshard.plan(run, tmp_path / "m.safetensors")
    assert "global_step_10" in reshard.plan(run, "m.safetensors", Options(iteration=10)).sources[0].path
    (run / "latest_checkpointed_iteration.txt").write_text("20")
    (run / "global_step_20" / "data.pt").write_bytes(b"where the trainer was in its data")
    assert "actor" in reshard.plan(run / "global_step_20", "m.safetensors").sources[0].path
    assert "global_step_20" in reshard.plan(run, "m.safetensors").sources[0].path
    write_ranks(run / "global_step_20" / "critic", FULL, list(FULL))
    with pytest.raises(UsageError, match="critic"):
        reshard.plan(run, "m.safetensors")
    shutil.rmtree(run / "global_step_20")
    with pytest.raises(CheckpointError, match=r"global_step_20 is what is meant; there are: global_step_10/actor"):
        reshard.plan(run, "m.safetensors")


def test_what_was_not_trained_is_asked_of_fsdp_alone(tmp_path: Path) -> None:
    source = write_file(tmp_path / "m.safetensors", FULL)
    with pytest.raises(UsageError, match="--frozen is for optimizers"):
        reshard.plan(source, "out.safetensors", Options(frozen="a"))


def test_one_file_alone_is_a_part(tmp_path: Path) -> None:
    source = unpacked("cases", "fsdp2_r4_uneven", tmp_path) / "src" / "actor"
    with pytest.raises(CheckpointError, match="alone it is a part"):
        reshard.plan(source / "model_world_size_4_rank_0.pt", "out.safetensors")
