"""``--to universal``: what DeepSpeed's own conversion writes, and right where that one is wrong or fails."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import reshard
from families.test_deepspeed import folder, rewritten
from golden.cases import run_reshard
from golden_families.test_recorded import entries, section
from making import tree
from reshard import NameRules, Options
from reshard.compat.zero_to_fp32 import main
from reshard.errors import CheckpointError, UsageError
from reshard.formats.pickle_objects import Global, Record
from reshard.formats.torch_records import TorchRecords, read_torch_records
from reshard.formats.torch_values import TensorRef
from reshard.ops.verify import verify
from reshard.planning.shares import Share
from reshard.storage.disk import DiskFile

UP = "universal/fp32"
UNIVERSAL = Options(to="universal", fsync=False)


def made(case: str, tmp_path: Path, **more: Any) -> tuple[Path, Path]:
    source = folder(case, tmp_path)
    reshard.convert(source.parent, tmp_path / "out" / "step_universal", Options(to="universal", fsync=False, **more))
    return source, tmp_path / "out" / "step_universal"


def opened(path: Path) -> tuple[Any, DiskFile, TorchRecords]:
    file = DiskFile(str(path))
    records = read_torch_records(file)
    return records.pickled.value, file, records


def numbers(path: Path) -> tuple[str, list[int], str]:
    """Dtype, shape and hash of the one tensor of a file."""
    value, file, records = opened(path)
    tensor = value if isinstance(value, TensorRef) else value["param"]
    place = records.place(tensor.storage)
    content = file.read(place.offset, place.nbytes)
    return tensor.dtype, list(tensor.shape), hashlib.sha256(content).hexdigest()


def answers(case: str, tmp_path: Path, path: str) -> dict[str, dict[str, Any]]:
    tensors = json.loads((tmp_path / case / "tensors.json").read_text())
    return entries(section(tensors, path), layers=False)


@pytest.mark.parametrize(
    ("case", "path"),
    [
        ("z2_bf16_r2_groups", "universal"),
        ("z2_fp16_r3_tied", "universal"),
        ("z2_bf16_r3_paramalign", "universal"),
        ("z1_bf16_r3_gradaccfp32", "universal"),
        ("z2_bf16_r3_roundrobin", "rebuilt_in_param_shapes_order"),
        ("z1_bf16_r2_elastic", "rebuilt_in_param_shapes_order"),
        ("z3_bf16_r4_frozen_tied", "universal"),
        ("z3_bf16_r2_subgroups", "universal"),
        ("tp2dp2_z1_bf16", "universal"),
        ("pp2dp2_z1_bf16_tied", "universal"),
    ],
)
def test_every_parameter_as_deepspeed_has_it(case: str, path: str, tmp_path: Path) -> None:
    source, out = made(case, tmp_path)
    for kind in ("exp_avg", "exp_avg_sq"):
        answer = answers(case, tmp_path, f"{path}/{kind}")
        found = {place.parent.name: numbers(place) for place in out.glob(f"zero/*/{kind}.pt")}
        assert found == {name: (e["dtype"], e["shape"], e["sha256"]) for name, e in answer.items()}
        assert {place.parent.name for place in out.glob("zero/*/fp32.pt")} == found.keys()
    copied = [path for path in source.iterdir() if not path.name.endswith("optim_states.pt")]
    assert copied
    assert all((out / path.name).read_bytes() == path.read_bytes() for path in copied)
    assert (out.parent / "latest_universal").read_text() == out.name
    assert verify(out).files == len(tree(out))


def test_what_goes_along_below_stage_3(tmp_path: Path) -> None:
    _, out = made("tp2dp2_z1_bf16", tmp_path)
    marks = {path.parent.name: opened(path)[0] for path in out.glob("zero/*/fp32.pt")}
    kinds = {name: {k: v for k, v in value.items() if k != "param"} for name, value in marks.items()}
    assert kinds.pop("word_embeddings__weight") == {"cat_dim": 0, "vocab_tensor": True}
    assert {"cat_dim": 1} in kinds.values()
    assert {} in kinds.values()  # replicated
    value, file, records = opened(next(out.glob("zero/*/step.pt")))
    place = records.place(value.storage)
    assert (value.shape, file.read(place.offset, 4)) == ((), b"\0\0\0\x40")
    state = opened(out / "zero" / "optimizer_state.pt")[0]
    assert state["ds_version"]
    assert state["param_groups"][0]["lr"]
    assert not {"base_optimizer_state", "param_slice_mappings", "single_partition_of_fp32_groups"} & state.keys()


def test_what_goes_along_at_stage_3(tmp_path: Path) -> None:
    _, out = made("z3_bf16_r3_frozen", tmp_path)
    assert not list(out.glob("zero/*/step.pt"))
    state = opened(out / "zero" / "optimizer_state.pt")[0]
    assert isinstance(state["optimizer_state_dict"]["state"][0]["step"], TensorRef)
    assert state["optimizer_state_dict"]["param_groups"][0]["betas"]


@pytest.mark.parametrize("case", ["tp2dp2_z1_bf16", "z3_bf16_r3_frozen"])
def test_nothing_is_said_of_the_number_of_steps_which_goes_along(case: str, tmp_path: Path) -> None:
    source = folder(case, tmp_path).parent
    told = {to: reshard.plan(source, tmp_path / "to" / to, Options(to=to)).warnings for to in ("full", "universal")}
    assert [any("becomes no tensor: step" in warning for warning in told[to]) for to in told] == [True, False]


def test_no_step_yet(tmp_path: Path) -> None:
    """At stage 3 moments are looked for: they are zeros."""
    _, out = made("z3_step0_r2", tmp_path)
    for path in out.glob("zero/*/fp32.pt"):
        value, file, records = opened(path.with_name("exp_avg_sq.pt"))
        place = records.place(value.storage)
        assert file.read(place.offset, place.nbytes) == bytes(place.nbytes)
        assert value.shape == opened(path)[0].shape
    assert opened(out / "zero" / "optimizer_state.pt")[0]["optimizer_state_dict"]["state"] == {0: {"step": 0}}


def test_other_optimizers(tmp_path: Path) -> None:
    _, out = made("z2_amsgrad_r2", tmp_path)
    assert len(list(out.glob("zero/*/max_exp_avg_sq.pt"))) == len(list(out.glob("zero/*/fp32.pt"))) > 0


def test_objects_are_written_as_they_are_made(tmp_path: Path) -> None:
    """A scaler wants arguments when it is called: it is made without, and told its state."""
    _, out = made("z2_fp16_r3_tied", tmp_path)
    state = opened(out / "zero" / "optimizer_state.pt")[0]
    assert isinstance(state["loss_scaler"], Record)
    assert b"DynamicLossScaler\n)\x81" in (out / "zero" / "optimizer_state.pt").read_bytes()
    assert b"ZeroStageEnum\nK\x02\x85R" in (out / "zero" / "optimizer_state.pt").read_bytes()


def test_classes_that_nobody_knows_are_not_handed_on(tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path)

    def change(value: Any) -> None:
        value["optimizer_state_dict"]["mine"] = Record(value["optimizer_state_dict"]["zero_stage"].factory, ("x",))
        value["optimizer_state_dict"]["theirs"] = Record(Global("somebody.else", "Thing"), ())

    rewritten(source / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", change)
    plan = reshard.plan(source, tmp_path / "out", UNIVERSAL)
    assert any("theirs" in warning and "somebody.else.Thing" in warning for warning in plan.warnings)
    (state,) = (small.content for small in plan.closing if small.path == "zero/optimizer_state.pt")
    assert b"somebody" not in state
    assert b"mine" in state


def test_small_files_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are three of each parameter, and no more than a header is written apart from its tensor."""
    source = folder("z2_bf16_r2_groups", tmp_path)
    plan = reshard.plan(source, tmp_path / "out", UNIVERSAL)
    assert {file.group for file in plan.files} == {0}
    assert max(len(plan.forms[file.form].header) for file in plan.files) == 2
    monkeypatch.setattr("reshard.families.universal._TOGETHER_NBYTES", 1 << 10)
    groups = [file.group for file in reshard.plan(source, tmp_path / "out", UNIVERSAL).files]
    assert groups == sorted(groups)
    assert len(set(groups)) > 1


def test_shares_and_resume(tmp_path: Path) -> None:
    source, out = made("z2_bf16_r2_groups", tmp_path)
    for index in (1, 2, 0):
        assert not (tmp_path / "shared" / "latest_universal").exists()
        reshard.convert(source, tmp_path / "shared" / "u", Options(to="universal", fsync=False, share=Share(index, 3)))
    assert tree(tmp_path / "shared" / "u") == tree(out)
    assert (tmp_path / "shared" / "latest_universal").read_text() == "u"
    done = reshard.convert(source, out, Options(to="universal", fsync=False, resume=True))
    assert (done.read_nbytes, done.skipped_files) == (0, 70)
    reshard.convert(source, out, Options(to="universal", fsync=False, overwrite=True))
    assert (out.parent / "latest_universal").read_text() == out.name
    assert sorted(path.name for path in out.parent.iterdir()) == ["latest_universal", "step_universal"]


@pytest.mark.parametrize(
    ("case", "more", "said"),
    [
        ("z0_fp16_r2", {}, "without ZeRO"),
        ("moe4_ep2_z2_r4", {}, "experts"),
        ("z2_bf16_r2_groups", {"dtype": "bfloat16"}, "--dtype"),
        ("z2_bf16_r2_groups", {"names": reshard.NameRules(exclude=("lm_head",))}, r"lm_head\.weight"),
        ("z2_bf16_r2_groups", {"names": reshard.NameRules(rename=(("^model", "m"),))}, "renamed"),
        ("z2_bf16_r2_groups", {"format": "torch"}, "--format"),
    ],
)
def test_what_deepspeed_could_not_resume_from_is_refused(
    case: str, more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        made(case, tmp_path, **more)
    assert not (tmp_path / "out").exists()


def test_names_that_leave_their_folder(tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path)

    def change(value: Any) -> None:
        shapes = value["param_shapes"][0]
        name = next(iter(shapes))
        value["param_shapes"][0] = {"../../" + n if n == name else n: shape for n, shape in shapes.items()}

    rewritten(source / "mp_rank_00_model_states.pt", change)
    with pytest.raises(UsageError, match="names cannot be those of folders"):
        reshard.plan(source, tmp_path / "out", UNIVERSAL)


def test_a_parameter_that_is_called_as_a_state_is_one_all_the_same(tmp_path: Path) -> None:
    """``step`` is a module of the model here; ``step.pt`` and ``exp_avg.step.weight`` are the optimizer's."""
    source = folder("z2_bf16_r2_groups", tmp_path)

    def change(value: Any) -> None:
        for held in (value["module"], *value["param_shapes"]):
            renamed = {"step.weight" if n == "model.norm.weight" else n: kept for n, kept in held.items()}
            held.clear()
            held.update(renamed)

    wanted = {"step.weight" if n == "model.norm.weight" else n for n in answers("z2_bf16_r2_groups", tmp_path, UP)}
    rewritten(source / "mp_rank_00_model_states.pt", change)
    reshard.convert(source, tmp_path / "out" / "u", UNIVERSAL)
    assert {p.name for p in (tmp_path / "out/u/zero").iterdir() if p.is_dir()} == wanted
    assert {p.stem for p in (tmp_path / "out/u/zero/step.weight").iterdir()} == {
        "fp32",
        "exp_avg",
        "exp_avg_sq",
        "step",
    }
    assert main([str(source), str(tmp_path / "weights")]) == 0
    assert {*reshard.open(tmp_path / "weights")} == wanted
    alone = Options(names=NameRules(weights_only=True), dtype="float16", fsync=False)
    reshard.convert(source, tmp_path / "alone.safetensors", alone)
    found = reshard.open(tmp_path / "alone.safetensors")
    assert {name: found[name].dtype for name in found} == dict.fromkeys(wanted, "float16")
    assert (
        run_reshard(
            ["verify", str(source), str(tmp_path / "alone.safetensors"), "--weights-only", "--dtype", "float16"]
        )
        == 0
    )


def test_other_sources(tmp_path: Path) -> None:
    source = folder("z2_bf16_r2_groups", tmp_path)
    reshard.convert(source, tmp_path / "m.safetensors", Options(fsync=False))
    with pytest.raises(UsageError, match="what DeepSpeed saved"):
        reshard.plan(tmp_path / "m.safetensors", tmp_path / "out", UNIVERSAL)
    shutil.rmtree(source)
    with pytest.raises(CheckpointError):
        reshard.plan(source, tmp_path / "out", UNIVERSAL)
