"""Unify, de-duplicated sources and targets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from reshard.errors import PlanError, UsageError
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.layout.tensor import Sharding
from reshard.ops.convert import convert, plan
from reshard.ops.diff import verify_content
from reshard.ops.options import Options
from reshard.ops.unify import unify
from reshard.strategy.protobuf import encode_layout, encode_made, write_protobuf

RNG = np.random.default_rng(3)
CUT = {"a": ((0,), ()), "b": ((), (0,)), "c": ((), ()), "d": ((0,), ())}
FULL = {name: RNG.standard_normal((16, 16)).astype(np.float32) for name in CUT}


@pytest.fixture
def strategy(tmp_path: Path) -> str:
    """dp2·mp2 for all of CUT."""
    content = write_protobuf([encode_made(0)], {n: encode_layout(Sharding((2, 2), m)) for n, m in CUT.items()}, 1)
    path = tmp_path / "ckpt_strategy_rank_0.ckpt"
    path.write_bytes(content)
    return str(path)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    path = tmp_path / "full.safetensors"
    save_file({**FULL, "global_step": np.array([5], np.int32)}, path)
    return path


@pytest.fixture
def sliced(tmp_path: Path, full: Path, strategy: str) -> Path:
    convert(full, tmp_path / "sliced", Options(dst_strategy=strategy))
    return tmp_path / "sliced"


@pytest.fixture
def thinned(tmp_path: Path, full: Path, strategy: str) -> Path:
    convert(full, tmp_path / "thinned", Options(dst_strategy=strategy, drop_redundancy=True))
    return tmp_path / "thinned"


def names_on(folder: Path, rank: int) -> set[str]:
    return set(load_file(folder / f"rank_{rank}" / f"checkpoint_{rank}.safetensors"))


def test_parts_map_and_what_no_strategy_knows(tmp_path: Path, sliced: Path, strategy: str) -> None:
    unify(sliced, tmp_path / "out", Options(src_strategy=strategy, max_shard_nbytes=2 * 16 * 16 * 4))
    index = json.loads((tmp_path / "out" / "param_name_map.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in FULL.values())
    assert set(index["weight_map"].values()) == {"part0.safetensors", "part1.safetensors"}
    for name, part in index["weight_map"].items():
        np.testing.assert_array_equal(load_file(tmp_path / "out" / part)[name], FULL[name])
    assert load_file(tmp_path / "out" / "hyper_param.safetensors")["global_step"].tolist() == [5]


def test_hugging_face_names(tmp_path: Path, sliced: Path, strategy: str) -> None:
    unify(sliced, tmp_path / "out", Options(src_strategy=strategy, max_shard_nbytes=2048), "hf")
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {*FULL, "global_step"}


def test_accumulated_gradients_are_left_out(tmp_path: Path) -> None:
    names = {"w": ((0,), ()), "accu_grads.w": ((0,), ())}
    items = {n: encode_layout(Sharding((2,), m)) for n, m in names.items()}
    (tmp_path / "s.ckpt").write_bytes(write_protobuf([encode_made(0)], items, 1))
    for rank in range(2):
        (tmp_path / "in" / f"rank_{rank}").mkdir(parents=True)
        shards = {n: RNG.standard_normal((2, 3)).astype(np.float32) for n in names}
        save_file(shards, tmp_path / "in" / f"rank_{rank}" / "x.safetensors")
    done = unify(tmp_path / "in", tmp_path / "out", Options(src_strategy=str(tmp_path / "s.ckpt")))
    assert list(load_file(tmp_path / "out" / "part0.safetensors")) == ["w"]
    assert done.bill.dropped == {"by --include / --exclude": 1}


def test_who_keeps_what_when_replicas_are_dropped(thinned: Path) -> None:
    """The k-th tensor by name of a replica group goes to member k mod size; MindSpore's own example has this shape."""
    assert [names_on(thinned, r) for r in range(4)] == [
        {"a", "c", "d", "global_step"},  # a, b, d go to members 0, 2, 0 of {0, 2}; c to the first of {0, 1, 2, 3}
        {"a", "d", "global_step"},
        {"b", "global_step"},
        {"b", "global_step"},
    ]


def test_the_flag_is_set(thinned: Path, sliced: Path) -> None:
    with safe_open(thinned / "rank_0" / "checkpoint_0.safetensors", "np") as file:
        assert file.metadata()["remove_redundancy"] == "True"
    with safe_open(sliced / "rank_0" / "checkpoint_0.safetensors", "np") as file:
        assert "remove_redundancy" not in file.metadata()


def test_every_command_reads_a_thinned_source(tmp_path: Path, full: Path, thinned: Path, strategy: str) -> None:
    convert(thinned, tmp_path / "back.safetensors", Options(src_strategy=strategy))
    np.testing.assert_array_equal(load_file(tmp_path / "back.safetensors")["b"], FULL["b"])
    found = verify_content(Source(str(full)), Source(str(thinned), strategy))
    assert found.tensors == 5
    with safe_open(tmp_path / "back.safetensors", "np") as file:
        assert file.metadata()["remove_redundancy"] == "False"


def test_a_thinned_target_reads_every_byte_once(full: Path, thinned: Path, strategy: str, tmp_path: Path) -> None:
    done = convert(full, tmp_path / "again", Options(dst_strategy=strategy, drop_redundancy=True))
    assert done.read_nbytes == done.bill.needed_nbytes == done.bill.read_nbytes


def test_a_thinned_source_without_a_rank_is_refused_by_name(thinned: Path, strategy: str, tmp_path: Path) -> None:
    (thinned / "rank_3" / "checkpoint_3.safetensors").unlink()
    with pytest.raises(PlanError, match=r"b: 50% missing.*ranks 1, 3 should hold it"):
        plan(thinned, tmp_path / "out", Options(src_strategy=strategy))


def test_a_flag_that_lies_is_said(sliced: Path, thinned: Path, strategy: str) -> None:
    for rank in range(4):
        for folder, flag in ((sliced, "True"), (thinned, "False")):
            path = folder / f"rank_{rank}" / f"checkpoint_{rank}.safetensors"
            save_file(load_file(path), path, metadata={"remove_redundancy": flag})
    assert any("every replica is there" in w for w in open_source(Source(str(sliced), strategy)).warnings)
    assert any("lie on some ranks only" in w for w in open_source(Source(str(thinned), strategy)).warnings)


def test_one_full_checkpoint_has_no_replicas_to_drop(full: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no use for --drop-redundancy"):
        plan(full, tmp_path / "out", Options(drop_redundancy=True))
