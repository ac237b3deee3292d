"""DeepSpeed folders from which files are missing, or that hold those of another save: told by name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from msgspec.structs import replace

import reshard
from golden_families.test_recorded import unpacked
from making import same
from reshard.errors import CheckpointError, FormatError, ReshardError, UsageError
from reshard.families import zero_proof, zero_states
from reshard.formats.pickled import Global, Record
from reshard.formats.torch_file import torch_bytes
from reshard.formats.torch_records import read_torch_records
from reshard.formats.torch_values import StorageRef, TensorRef
from reshard.ops.checkup import checkup
from reshard.ops.inspect import inspect
from reshard.ops.options import Options
from reshard.storage.disk import Disk, DiskFile
from reshard.storage.storage import Entry


def folder(name: str, tmp_path: Path) -> Path:
    return unpacked("cases", name, tmp_path / name) / "src" / "global_step2"


@pytest.mark.parametrize(
    ("case", "missing"),
    [
        ("tp2_z0_bf16", "mp_rank_01_model_states.pt"),
        ("tp2_z1_bf16", "mp_rank_01_model_states.pt"),
        ("tp2_z1_bf16", "mp_rank_00_model_states.pt"),
        ("z2_bf16_r3_paramalign", "mp_rank_00_model_states.pt"),
        ("z2_bf16_r3_paramalign", "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"),
        ("z3_bf16_r3_frozen", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        ("z3_fp16_r2_tied", "zero_pp_rank_0_mp_rank_00_model_states.pt"),
        ("pp2_z0_fp16", "layer_05-model_states.pt"),
        ("pp2_z0_fp16", "layer_01-model_states.pt"),
        ("moe2_ep2_z0_bf16", "layer_1_expert_1_mp_rank_00_model_states.pt"),
        ("moe2_ep2_z0_bf16", "layer_0_expert_0_mp_rank_00_model_states.pt"),
    ],
)
def test_a_missing_file_is_told(case: str, missing: str, tmp_path: Path) -> None:
    source = folder(case, tmp_path)
    (source / missing).unlink()
    with pytest.raises(CheckpointError) as caught:
        reshard.plan(source, "out.safetensors")
    assert "missing" in str(caught.value) or "bring" in str(caught.value)


@pytest.mark.parametrize(
    ("case", "one", "other"),
    [
        (
            "z3_bf16_r2",
            "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
            "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
        ),
        ("z3_bf16_r3_frozen", "zero_pp_rank_1_mp_rank_00_model_states.pt", "zero_pp_rank_2_mp_rank_00_model_states.pt"),
        ("pp2_z0_fp16", "layer_01-model_states.pt", "layer_02-model_states.pt"),
        ("tp2_z0_bf16", "mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"),
    ],
)
def test_files_that_stand_under_each_other_s_names_are_told(case: str, one: str, other: str, tmp_path: Path) -> None:
    """They are as long and hold the same shapes: only what they were called when they were saved tells."""
    source = folder(case, tmp_path)
    (source / one).rename(source / "kept")
    (source / other).rename(source / one)
    (source / "kept").rename(source / other)
    with pytest.raises(CheckpointError, match=rf"{other}: it was saved as {one[:-3]}"):
        reshard.plan(source, "out.safetensors")


def test_optimizer_files_alone_are_no_model(tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path)
    (source / "mp_rank_00_model_states.pt").unlink()
    (source / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(CheckpointError, match="model states"):
        reshard.plan(source, "out.safetensors")


def test_files_of_two_saves_under_one_name_are_refused(tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path)
    other = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shutil.copy(source / f"bf16_{other}", source / other)
    with pytest.raises(CheckpointError, match="two files of one rank"):
        reshard.plan(source, "out.safetensors")


def test_full_weights_beside_have_to_be_told_apart(tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path).parent
    full = tmp_path / "model.safetensors"
    reshard.convert(source, full, Options(names=reshard.NameRules(weights_only=True)))
    shutil.copy(full, source)
    with pytest.raises(UsageError, match="lie here"):
        reshard.plan(source, "out.safetensors")
    zero = reshard.plan(source, "out.safetensors", Options(family="deepspeed"))
    assert len(zero.tensors) > len(reshard.plan(source, "out.safetensors", Options(family="full")).tensors) > 0


def test_an_iteration_is_a_tag(tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path).parent
    assert reshard.plan(source, "out.safetensors", Options(iteration=2)).tensors
    with pytest.raises(CheckpointError, match=r"global_step3 is asked for.*global_step2"):
        reshard.plan(source, "out.safetensors", Options(iteration=3))


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("z2_bf16_r2_groups", "mp_rank_00_model_states.pt"),
        ("z2_bf16_r2_groups", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        ("z3_bf16_r3_frozen", "zero_pp_rank_0_mp_rank_00_model_states.pt"),
        ("pp2_z0_fp16", "layer_01-model_states.pt"),
        ("moe2_ep2_z0_bf16", "layer_0_expert_0_mp_rank_00_model_states.pt"),
        ("moe2_ep2_z0_bf16", "expp_rank_0_mp_rank_00_optim_states.pt"),
    ],
)
def test_one_file_of_many_does_not_pass_for_the_model(case: str, name: str, tmp_path: Path) -> None:
    source = folder(case, tmp_path)
    for refused in (reshard.plan, lambda path, _: reshard.open(path)):
        with pytest.raises(CheckpointError, match=r"one file of a checkpoint") as caught:
            refused(source / name, "out.safetensors")
        assert str(source) in str(caught.value)
    assert reshard.plan(source / name, "out.safetensors", Options(family="full")).tensors


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("z2_bf16_r2_groups", ["iteration (1 value)", "no tensor: step"]),
        ("z2_bf16_r2_exclude_frozen", ["exclude_frozen_parameters"]),
        ("pp2_z0_fp16", ["36 states of its optimizer are left out", "20 states"]),
        ("moe2_ep2_z0_bf16", ["2 files of experts' optimizer states left out: expp_rank_0"]),
    ],
)
def test_what_is_left_out_is_counted(case: str, told: list[str], tmp_path: Path) -> None:
    source = folder(case, tmp_path)
    said = "\n".join(inspect(str(source)).warnings)
    assert all(part in said for part in told), said
    assert len(set(inspect(str(source)).warnings)) == len(inspect(str(source)).warnings)


def rewritten(path: Path, change: Callable[[Any], None]) -> None:
    """A torch file with another object, its storages as they are; of a pickle as torch writes it."""
    source = DiskFile(str(path))
    records = read_torch_records(source)
    change(records.pickled.value)
    storages = {key: source.read(place.offset, place.nbytes) for key, place in records.places.items()}
    path.write_bytes(torch_bytes(records.pickled.value, storages))


@pytest.mark.parametrize(
    ("case", "name"),
    [("z3_bf16_r3_frozen", "zero_pp_rank_2_mp_rank_00_model_states.pt"), ("tp2_z0_bf16", "mp_rank_01_model_states.pt")],
)
def test_a_model_s_file_of_another_step_is_told(case: str, name: str, tmp_path: Path) -> None:
    source = folder(case, tmp_path)
    rewritten(source / name, lambda value: value.update(global_steps=value["global_steps"] + 1))
    with pytest.raises(CheckpointError, match=f"of different steps: .*in {name}"):
        reshard.open(source)


def test_states_that_are_not_cut_as_weights_do_not_move_these(tmp_path: Path) -> None:
    """1-bit optimizers keep errors of other lengths; others call states as nobody else does."""
    source = folder("z2_bf16_r2_groups", tmp_path)
    opened = reshard.open(source)
    wanted = {name: np.array(opened[name].read()) for name in opened}  # no map of a file that is written anew

    def change(value: Any) -> None:
        for state in value["optimizer_state_dict"]["base_optimizer_state"]["state"].values():
            state["sum"] = state.pop("exp_avg_sq")
            state["worker_error"] = replace(state["exp_avg"], shape=(2,))

    for path in source.glob("*optim_states.pt"):
        rewritten(path, change)
    found = reshard.open(source)
    names = [name for name in wanted if not name.startswith("exp_avg_sq.")]
    assert {*found} == {*names, *(n.replace("exp_avg_sq.", "optimizer_states.sum.") for n in {*wanted} - {*names})}
    assert all(same(np.asarray(found[name].read()), wanted[name]) for name in names)
    assert "worker_error" in "\n".join(inspect(str(source)).warnings)
    rules = reshard.NameRules(weights_only=True)
    assert not any("sum" in t.name for t in reshard.plan(source, "o.safetensors", Options(names=rules)).tensors)


def test_a_layer_is_missed_by_an_optimizer_that_keeps_no_masters(tmp_path: Path) -> None:
    source = folder("pp2_z0_fp16", tmp_path)

    def plain(value: Any) -> None:
        value["optimizer"] = value["optimizer"]["optimizer_state_dict"]

    for path in source.glob("mp_rank_*"):
        rewritten(path, plain)
    assert len(reshard.plan(source, "out.safetensors").tensors) == 14
    (source / "layer_02-model_states.pt").unlink()
    with pytest.raises(CheckpointError, match="the optimizer has 14 parameters, the layers 0, 1, 3, 5 hold 10"):
        reshard.plan(source, "out.safetensors")


def test_a_layer_whose_weights_are_all_masters_is_told(tmp_path: Path) -> None:
    source = folder("pp2_z1_fp16_tied", tmp_path)
    names = {*reshard.open(source)}
    (source / "layer_02-model_states.pt").unlink()
    found = checkup(str(source))
    assert found is not None
    assert [fault.what for fault in found.faults] == ["layer_02-model_* is missing: its weights are the fp32 masters"]
    assert {*reshard.open(source)} == names
    assert "layer_02" in "".join(reshard.plan(source, "out.safetensors").warnings)
    with pytest.raises(CheckpointError, match="looks for all of its files: layer_02"):
        reshard.plan(source, tmp_path / "universal", Options(to="universal"))


def frozen(source: Path) -> None:
    rewritten(source / "layer_01-model_states.pt", lambda value: value.update(more=value["dense_4h_to_h.bias"]))


def with_buffer(source: Path) -> None:
    rewritten(source / "mp_rank_00_model_states.pt", lambda value: value.update(buffer_names=["2.rotary"]))


def without_masters(source: Path) -> None:
    for path in source.glob("*optim_states.pt"):
        path.unlink()


@pytest.mark.parametrize("change", [frozen, with_buffer, without_masters])
def test_a_layer_that_may_hold_more_is_missed(change: Callable[[Path], None], tmp_path: Path) -> None:
    source = folder("pp2_z1_fp16_tied", tmp_path)
    (source / "layer_02-model_states.pt").unlink()
    change(source)
    with pytest.raises(CheckpointError, match=r"may hold more than the fp32 masters:\nlayer_02-model_"):
        reshard.open(source)


def test_a_weight_that_is_not_plain_numbers_does_not_go_missing(tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path)
    sparse = Record(Global("torch._utils", "_rebuild_sparse_tensor"), (1, ()))
    rewritten(source / "mp_rank_00_model_states.pt", lambda value: value["module"].update(mask=sparse))
    with pytest.raises(FormatError, match="tensor 'mask' is a sparse tensor"):
        reshard.plan(source, "out.safetensors")


def test_replicas_of_tensor_parallel_ranks_are_compared_where_that_is_asked(tmp_path: Path) -> None:
    source = folder("tp2_z0_bf16", tmp_path)
    checked = Options(check_replicas=True, fsync=False)
    reshard.convert(source, tmp_path / "a.safetensors", checked)

    path = source / "mp_rank_01_model_states.pt"
    records = read_torch_records(DiskFile(str(path)))
    norm = records.pickled.value["module"]["norm__weight"]
    content = bytearray(path.read_bytes())
    content[records.place(norm.storage).offset + norm.offset * 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ReshardError, match="norm__weight"):
        reshard.convert(source, tmp_path / "b.safetensors", checked)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(param_shapes=[{"w": ("x",)}]),
        lambda value: value.update(param_shapes=3),
        lambda value: value.update(param_shapes=[{"w": [-1]}]),
        lambda value: value.update(module=[1]),
        lambda value: value.update(shared_params={"a": 1}),
        lambda value: value.update(buffer_names=[None]),
        lambda value: value.update(frozen_param_fragments="x"),
        lambda value: value.update(frozen_param_shapes={"x": None}),
    ],
)
def test_what_deepspeed_does_not_write_is_named(change: Callable[[Any], None], tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path)
    rewritten(source / "mp_rank_00_model_states.pt", change)
    with pytest.raises(CheckpointError, match=r"not what DeepSpeed writes"):
        reshard.plan(source, "out.safetensors")


def test_folders_of_other_tags_are_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be a round trip in object storage."""
    source = folder("z2_bf16_r2_groups", tmp_path).parent
    for step in range(3, 9):
        shutil.copytree(source / "global_step2", source / f"global_step{step}")
    listed: list[str] = []
    real = Disk.entries

    def entries(self: Disk, path: str) -> list[Entry]:
        listed.append(Path(path).name)
        return real(self, path)

    monkeypatch.setattr(Disk, "entries", entries)
    reshard.plan(source, "out.safetensors")
    assert listed.count("global_step2") <= 2
    assert not {f"global_step{step}" for step in range(3, 9)} & set(listed)


def _reversed(value: Any) -> None:
    value["param_shapes"] = [dict(reversed(group.items())) for group in value["param_shapes"]]


@pytest.mark.parametrize("case", ["z2_bf16_r2_groups", "z2_fp16_r3_tied", "z2_fp32_r2", "z1_bf16_r2_gradaccfp32"])
def test_masters_that_are_not_the_model_s_weights_are_refused(case: str, tmp_path: Path) -> None:
    """In another order shapes add up all the same, and the numbers would be others'."""
    source = folder(case, tmp_path)
    reshard.plan(source, "out.safetensors")
    (model,) = source.glob("mp_rank_00_model_states.pt")
    rewritten(model, _reversed)
    with pytest.raises(CheckpointError, match=r"not those of mp_rank_00_model_states\.pt, rounded"):
        reshard.plan(source, "out.safetensors")


def _turned(value: Any) -> None:
    """As where the optimizer was given layers from the last to the first: of what has one shape, each is another's."""
    (masters,) = value["optimizer"]["fp32_groups"]
    by_shape: dict[tuple[int, ...], list[Any]] = {}
    for master in masters:
        by_shape.setdefault(master.shape, []).append(master)
    masters[:] = [by_shape[master.shape].pop() for master in masters]


def test_without_zero_masters_of_others_are_left_out(tmp_path: Path) -> None:
    source = folder("z0_fp16_r2", tmp_path)
    assert sum(name.startswith("fp32.") for name in reshard.open(source)) == 23
    (model,) = source.glob("mp_rank_00_model_states.pt")
    rewritten(model, _turned)
    plan = reshard.plan(source, "out.safetensors")
    assert len(plan.tensors) == 23
    assert any("nothing says which parameter has which" in warning for warning in plan.warnings)


def test_without_zero_a_tied_weight_is_one_parameter(tmp_path: Path) -> None:
    """No list of second names is saved then."""
    source = folder("z0_fp16_r2", tmp_path)
    names = {*reshard.open(source)}
    (model,) = source.glob("mp_rank_00_model_states.pt")
    rewritten(model, lambda value: value["module"].update(second=value["module"]["model.embed_tokens.weight"]))
    assert {*reshard.open(source)} == {*names, "second"}


def test_experts_are_numbered_layer_by_layer() -> None:
    """Layers of one model may have 2 and 4 of them (PR-MoE), all in one group of parameters."""
    group = {f"l.{layer}.deepspeed_experts.{n}.w": (6,) for layer, here in enumerate((1, 2)) for n in range(here)}
    assert [*zero_states._among_all(group, 1)] == [
        "l.0.deepspeed_experts.1.w", "l.1.deepspeed_experts.2.w", "l.1.deepspeed_experts.3.w"
    ]  # fmt: skip


def _mapped(rows: tuple[tuple[int, ...], ...], columns: int) -> dict[str, Any]:
    """As AutoTP saves it: which rows of the whole each rank holds, one block each, in the order of its slice."""
    here = [[{"shape": [1, columns], "source": [row * columns, [columns, 1]], "dest": [at * columns, [columns, 1]],
              "locations": [rank]} for at, row in enumerate(mine)] for rank, mine in enumerate(rows)]  # fmt: skip
    ranks = {n: {"shard_shape": [len(p), columns], "pieces": p} for n, p in enumerate(here)}
    return {"logical_shape": [1 + max(map(max, rows)), columns], "ranks": ranks}


@pytest.mark.parametrize("case", ["tp2_z0_bf16", "tp2dp2_z2_fp16"])
def test_slices_lie_where_an_affine_map_says(case: str, tmp_path: Path) -> None:
    """AutoTP cuts fused queries, keys and values of some models otherwise than from the first row to the last."""
    source = folder(case, tmp_path)
    opened = reshard.open(source)
    name = next(n for n in opened if opened[n].shape[0] % 2 == 0 and len(opened[n].shape) == 2 and "." not in n)
    before = np.array(opened[name].read())
    half, columns = len(before) // 2, before.shape[1]
    rows = (tuple(range(0, 2 * half, 2)), tuple(range(1, 2 * half, 2)))

    def change(value: Any) -> None:
        info = value["universal_checkpoint_info"]
        info["affine_map"] = {"version": 1, "params": {f"^{re.escape(name)}$": _mapped(rows, columns)}}

    for path in source.glob("mp_rank_*_model_states.pt"):
        rewritten(path, change)
    found = np.asarray(reshard.open(source)[name].read())
    assert same(found[0::2], before[:half])
    assert same(found[1::2], before[half:])


def test_slices_of_which_nobody_knows_how_they_were_cut_are_refused(tmp_path: Path) -> None:
    source = folder("tp2_z0_bf16", tmp_path)

    def change(value: Any) -> None:
        info = value["universal_checkpoint_info"]
        info["autotp_unsupported_parameter_patterns"] = {"^norm__weight$": "heads are not contiguous"}

    for path in source.glob("mp_rank_*_model_states.pt"):
        rewritten(path, change)
    with pytest.raises(CheckpointError, match="norm__weight: DeepSpeed itself does not know"):
        reshard.plan(source, "out.safetensors")


def test_experts_of_ranks_that_have_one_name_do_not_stand_in_for_one_another(tmp_path: Path) -> None:
    """AutoEP calls what each expert-parallel rank holds the same: ``experts.w1``."""
    source = folder("moe4_ep2_z2_r4", tmp_path)

    def change(value: Any) -> None:
        def called(name: str) -> str:
            return re.sub(r"deepspeed_experts\.(\d+)", r"w\1", name).replace("gate.wg", "router")

        value["param_shapes"] = [{called(n): shape for n, shape in group.items()} for group in value["param_shapes"]]
        value["module"] = {called(n): tensor for n, tensor in value["module"].items()}

    rewritten(source / "mp_rank_00_model_states.pt", change)
    with pytest.raises(CheckpointError, match="2 expert-parallel ranks hold other experts"):
        reshard.plan(source, "out.safetensors")


def test_one_weight_that_differs_is_told(tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path)

    def change(value: Any) -> None:
        name = next(iter(value["param_shapes"][0]))
        other = next(
            n for n, tensor in value["module"].items() if n != name and tensor.size >= value["module"][name].size
        )
        shape = value["module"][name]
        value["module"][name] = replace(value["module"][other], shape=shape.shape, strides=shape.strides)

    rewritten(source / "mp_rank_00_model_states.pt", change)
    warnings = reshard.plan(source, "out.safetensors").warnings
    assert any("rounded" in warning for warning in warnings), warnings


def test_an_element_off_by_one_is_no_contradiction() -> None:
    """Some optimizers round at random; and signs are no distance."""
    copy = TensorRef(StorageRef("0", "bfloat16", 1, 0, 1, "cpu"), "bfloat16", (1,), (1,), 0)
    assert zero_proof._order(0x8001, copy) == -1
    assert zero_proof._order(0x0001, copy) == 1
    masters = np.array([1.0, -2.5, 3.14159, 1e30, 0.0, 65504.0, 1e-8, 2.00390625], np.float32)
    expected = masters.astype(ml_dtypes.bfloat16).view(np.uint16).tolist()
    assert zero_proof._rounded(masters.tobytes(), copy) == expected
    half = replace(copy, dtype="float16")
    with np.errstate(over="ignore"):
        assert zero_proof._rounded(masters.tobytes(), half) == masters.astype(np.float16).view(np.uint16).tolist()


@pytest.mark.parametrize("case", ["z3_bf16_r2", "z3_fp32_r2_groups", "pp2dp2_z1_bf16_tied"])
def test_weights_that_lie_in_missing_files(case: str, tmp_path: Path) -> None:
    """At stage 3 the states of the model hold each weight as a tensor of no elements."""
    source = folder(case, tmp_path)
    last = "mp_rank_01" if case.startswith("pp") else ""
    for path in source.glob(f"*{last}_optim_states.pt"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"optim_states\.pt"):
        reshard.plan(source, "out.safetensors")


def test_without_masters_weights_are_the_model_s_own(tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path)
    for path in source.glob("*_optim_states.pt"):
        path.unlink()
    plan = reshard.plan(source, "out.safetensors")
    assert {tensor.spec.dtype for tensor in plan.tensors} == {"bfloat16"}
    assert any("not the fp32 masters" in warning for warning in plan.warnings)


@pytest.mark.parametrize("case", ["z2_bf16_r2_groups", "z3_bf16_r2"])
def test_a_universal_checkpoint_does_not_pass_for_a_save(case: str, tmp_path: Path) -> None:
    source = folder(case, tmp_path).parent
    reshard.convert(source, source / "made", Options(to="universal", fsync=False))
    with pytest.raises(CheckpointError, match="universal checkpoint"):
        reshard.plan(source / "made", "out.safetensors")
    (source / "latest").unlink()
    assert len(reshard.plan(source, "out.safetensors").tensors) == 69


def test_a_training_that_broke_is_no_contradiction(tmp_path: Path) -> None:
    """NaN has many bits, and each conversion its own."""
    source = folder("z2_bf16_r2_groups", tmp_path)
    for path in source.glob("*.pt"):
        records = read_torch_records(DiskFile(str(path)))
        content = bytearray(path.read_bytes())
        for place in records.places.values():
            if place.nbytes > 4:  # not the step
                content[place.offset : place.end] = b"\xff" * place.nbytes
        for entry in re.finditer(rb"PK\x01\x02", content):
            content[entry.start() + 16 : entry.start() + 20] = bytes(4)
        path.write_bytes(content)
    assert not any("rounded" in warning for warning in reshard.plan(source, "out.safetensors").warnings)
