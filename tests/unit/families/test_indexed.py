"""Which copy of a tensor counts, where an index says so; and slices that look like whole tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors

from making import counted, same, write_file
from reshard import open as open_checkpoint
from reshard.errors import CheckpointError, DifferenceError, FormatError, PlanError
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.names.wishes import Naming
from reshard.ops.convert import plan
from reshard.ops.diff import diff, verify_content
from reshard.ops.fingerprint import fingerprint
from reshard.ops.options import Options
from reshard.planning.names import NameRules

ONE, TWO = counted(2, 2), counted(2, 2) + 10


def write_index(path: Path, holders: Mapping[str, str]) -> Path:
    path.write_text(json.dumps({"metadata": {}, "weight_map": holders}))
    return path


def held(path: Path) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(str(path))
    return {name: checkpoint[name].read() for name in checkpoint}


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A stale copy of ``b`` in the first part."""
    write_file(tmp_path / "p-1.safetensors", {"a": ONE, "b": ONE})
    write_file(tmp_path / "p-2.safetensors", {"b": TWO})
    write_index(tmp_path / "any.index.json", {"a": "p-1.safetensors", "b": "p-2.safetensors"})
    return tmp_path


@pytest.mark.parametrize("given", ["", "any.index.json"])
def test_a_tensor_comes_from_the_file_that_the_index_names(parts: Path, given: str) -> None:
    found = held(parts / given)
    assert sorted(found) == ["a", "b"]
    assert same(found["b"], TWO)
    (told,) = open_source(Source(str(parts / given))).warnings
    assert "b in p-1.safetensors: left out" in told


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_other_files_are_left_out(tmp_path: Path, suffix: str) -> None:
    write_file(tmp_path / "sub" / f"p{suffix}", {"a": ONE})
    write_file(tmp_path / f"consolidated{suffix}", {"a": TWO, "tok.weight": TWO})
    write_index(tmp_path / f"model{suffix}.index.json", {"a": f"sub/p{suffix}"})
    found = held(tmp_path)
    assert list(found) == ["a"]
    assert same(found["a"], ONE)


def test_a_tensor_that_its_file_does_not_hold(parts: Path) -> None:
    write_index(parts / "any.index.json", {"a": "p-2.safetensors", "b": "p-2.safetensors", "c": "p-1.safetensors"})
    with pytest.raises(CheckpointError) as caught:
        held(parts)
    assert "a: not in p-2.safetensors, but in p-1.safetensors" in caught.value.message
    assert "c: not in p-1.safetensors" in caught.value.message
    assert caught.value.where == str(parts / "any.index.json")


def test_a_tensor_that_the_index_passes_over_is_taken_and_told(parts: Path) -> None:
    write_index(parts / "any.index.json", {"a": "p-1.safetensors"})
    source = open_source(Source(str(parts)))
    assert set(source.tensors) == {"a", "b"}
    assert any("does not name b" in w for w in source.warnings)
    assert any("does not name p-2.safetensors: left out" in w for w in source.warnings)


@pytest.mark.parametrize(("total", "told"), [(32, False), (None, False), ("32", False), (48, True), (32.5, True)])
def test_a_size_that_is_not_the_files_is_told(parts: Path, total: object, told: bool) -> None:
    index = {"metadata": {"total_size": total}, "weight_map": {"a": "p-1.safetensors", "b": "p-2.safetensors"}}
    (parts / "any.index.json").write_text(json.dumps(index))
    warnings = open_source(Source(str(parts))).warnings
    assert any("and the tensors that it names have 32" in w for w in warnings) is told
    assert len(warnings) == 1 + told  # the stale copy is told of, too


@pytest.mark.parametrize("each", [True, False])
def test_tied_tensors_count_once_or_each(tmp_path: Path, each: bool) -> None:
    file = (Path(__file__).parents[2] / "golden/torch_files/tied.pt").read_bytes()  # head is embed, row a part of it
    (tmp_path / "p.bin").write_bytes(file)
    index = {
        "metadata": {"total_size": 48 * (1 + each) + 12},
        "weight_map": dict.fromkeys(["embed", "head", "row"], "p.bin"),
    }
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert not open_source(Source(str(tmp_path))).warnings


@pytest.mark.parametrize("given", ["", "param_name_map.json"])
def test_what_mindspore_keeps_beside_its_parts_belongs_to_them(tmp_path: Path, given: str) -> None:
    write_file(tmp_path / "part0.safetensors", {"a": ONE})
    write_file(tmp_path / "hyper_param.safetensors", {"global_step": counted(1)})
    (tmp_path / "param_name_map.json").write_text(json.dumps({"a": "part0.safetensors"}))
    assert sorted(held(tmp_path / given)) == ["a", "global_step"]
    assert open_source(Source(str(tmp_path / given))).warnings == ()
    (tmp_path / "param_name_map.json").unlink()
    assert sorted(held(tmp_path)) == ["a", "global_step"]


@pytest.mark.parametrize("index", [True, False])
def test_slices_of_states_that_mindspore_keeps_beside_its_parts_are_left_out(tmp_path: Path, index: bool) -> None:
    """As its unified_safetensors leaves what choice_func filters out, and accumulated gradients."""
    write_file(tmp_path / "part0.safetensors", {"a": counted(8, 2), "b": counted(3)})
    extras = {"adam_m.a": counted(4, 2), "accu_grads.a": counted(4, 1), "adam_m.b": counted(3), "lr": counted(1)}
    write_file(tmp_path / "hyper_param.safetensors", {**extras, "exp_avg_sq_row_a": counted(8), "adam_v.c": counted(2)})
    if index:
        write_index(tmp_path / "param_name_map.json", dict.fromkeys("ab", "part0.safetensors"))
    assert sorted(held(tmp_path)) == ["a", "adam_m.b", "adam_v.c", "b", "exp_avg_sq_row_a", "lr"]
    (told,) = open_source(Source(str(tmp_path))).warnings
    assert told.startswith(str(tmp_path / "hyper_param.safetensors"))
    assert told.endswith("holds one rank's slices of accu_grads.a, adam_m.a: left out")


def shard(path: Path, offsets: Mapping[str, object]) -> Path:
    """A file as PyTorch's distributed checkpoint saves it with safetensors."""
    raw = {name: {"dtype": "float32", "shape": [2, 2], "data": ONE.tobytes()} for name in offsets}
    told = json.dumps({name: {"saved_offsets": at} for name, at in offsets.items()})
    path.write_bytes(safetensors.serialize(raw, {"DCP_SHARDING_INFO": told, "DCP_VERSION": "1.0", "format": "pt"}))
    return path


@pytest.mark.parametrize("name", ["shard-00002-model-00001-of-00001.safetensors", "renamed.safetensors"])
@pytest.mark.parametrize("at", [[2, 0], [0, 2], [0, 0], "broken"])
def test_a_slice_of_a_distributed_checkpoint_is_refused(tmp_path: Path, name: str, at: object) -> None:
    with pytest.raises((CheckpointError, FormatError), match=r"one file of many|not understood|alone it is a part"):
        held(shard(tmp_path / name, {"w": at}))


def test_whole_tensors_that_it_saved_are_read_by_their_index(tmp_path: Path) -> None:
    shard(tmp_path / "model-00001-of-00001.safetensors", {"w": [0, 0]})
    write_index(tmp_path / "model.safetensors.index.json", {"w": "model-00001-of-00001.safetensors"})
    assert same(held(tmp_path)["w"], ONE)
    shard(tmp_path / "model-00001-of-00001.safetensors", {"w": [0, 2]})
    with pytest.raises(CheckpointError, match=r"w begins at \[0, 2\]"):
        held(tmp_path)


def test_an_index_that_names_two_files_for_a_tensor_is_refused(parts: Path) -> None:
    (parts / "any.index.json").write_text('{"weight_map": {"a": "p-1.safetensors", "a": "p-2.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"'a' is said to be 'p-1.safetensors' and 'p-2.safetensors'"):
        open_source(Source(str(parts)))


def test_a_string_that_files_disagree_on_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    write_file(tmp_path / "p-1.safetensors", {"a": ONE}, {"same": "x", "names": "a"})
    write_file(tmp_path / "p-2.safetensors", {"b": TWO}, {"same": "x", "names": "b"})
    opened = open_source(Source(str(tmp_path)))
    assert opened.texts == {"same": {0: "x"}}
    assert same(held(tmp_path)["b"], TWO)
    with pytest.raises(
        PlanError, match=r"names: a string that is another in p-2\.safetensors than in p-1\.safetensors"
    ):
        plan(tmp_path, "out.safetensors")
    plan(tmp_path, "out.safetensors", Options(names=NameRules(exclude=("names",))))
    plan(tmp_path, "out.safetensors", Options(names=NameRules(exclude=("names",)), naming=Naming(dequantize=True)))


def test_what_cannot_be_told_is_equal_to_nothing(tmp_path: Path) -> None:
    write_file(tmp_path / "a" / "p-1.safetensors", {"a": ONE}, {"names": "a"})
    write_file(tmp_path / "a" / "p-2.safetensors", {"b": TWO}, {"names": "b"})
    write_file(tmp_path / "b.safetensors", {"a": ONE, "b": TWO})
    ours, theirs = tmp_path / "a", tmp_path / "b.safetensors"
    why = "a string that is another in p-2.safetensors than in p-1.safetensors"
    found = diff(ours, theirs, NameRules(rename=(("^names", "texts"),)))
    assert found.lines() == [f"texts: untold in A: {why}"]
    assert diff(theirs, ours).lines() == [f"names: untold in B: {why}"]
    with pytest.raises(DifferenceError, match="names: untold in A"):
        verify_content(ours, theirs)
    assert diff(ours, theirs, NameRules(exclude=("names",))).equal
    assert fingerprint(ours).not_counted == ("names",)
