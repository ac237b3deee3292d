"""Every way in which a target's tensor is made, through every way in which a plan is carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

import reshard
from families.buckets import Bucket
from making import array, counted, read_file, same, tree, write_file, write_strategy
from reshard import Options
from reshard.errors import RunError
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.index import ZEROS, TensorSpec
from reshard.layout.box import Box
from reshard.layout.tensor import Sharding
from reshard.moving import local
from reshard.ops.convert import execute, plan_from
from reshard.ops.diff import diff
from reshard.ops.fingerprint import fingerprint
from reshard.ops.lora import lora_config, plan_lora
from reshard.ops.observer import Observer
from reshard.ops.verify import verify
from reshard.planning.catalog import Catalog, Held, Loose, Shard, Tensor, tensor_of_shards
from reshard.planning.plan import Plan, plan_from_json
from reshard.planning.shares import Share

SPEC, WHOLE = TensorSpec("float32", (8, 6)), Box.whole((8, 6))
ROWS = Sharding((4,), ((0,), ()))


@dataclass(frozen=True)
class Step:
    """How a plan is made, and the matrix of 8 × 6 that it makes."""

    plan: Callable[[str, Options], Plan]
    wanted: np.ndarray


def _of_catalog(folder: Path, stored: np.ndarray, shards: Callable[[Held], Tensor]) -> Callable[[str, Options], Plan]:
    source = open_source(Source(str(write_file(folder / "m.safetensors", {"w": stored}))))
    (shard,) = source.tensors["w"].shards
    made: Catalog = replace(source, tensors={"w": shards(shard.held[0])})
    return lambda dst, options: plan_from(made, dst, options)


def _ordered(folder: Path) -> Step:
    stored = array((6, 8), seed=1)
    plan = _of_catalog(folder, stored, lambda h: Tensor("w", SPEC, Loose((Shard(WHOLE, (replace(h, order=(1, 0)),)),))))
    return Step(plan, stored.T.copy())


def _zeros(folder: Path) -> Step:
    stored = array((5, 6), seed=2)
    boxes = Box((0, 0), (5, 6)), Box((5, 0), (8, 6))
    plan = _of_catalog(
        folder,
        stored,
        lambda h: tensor_of_shards("w", SPEC, [Shard(boxes[0], (h,)), Shard(boxes[1], (Held(ZEROS, ()),))]),
    )
    return Step(plan, np.concatenate([stored, np.zeros((3, 6), np.float32)]))


def _flat(folder: Path) -> Step:
    """Its elements are some of a longer vector's."""
    stored = array((100,), seed=3)

    def shards(held: Held) -> Tensor:
        (extent,) = held.extents
        mine = replace(extent, offset=extent.offset + 40, nbytes=192)
        return tensor_of_shards("w", SPEC, [Shard(WHOLE, (Held(held.file, (mine,)),))])

    return Step(_of_catalog(folder, stored, shards), stored[10:58].reshape(8, 6))


def _lora(folder: Path) -> Step:
    base, a, b = counted(8, 6), counted(2, 6), counted(8, 2)
    path = write_file(folder / "m.safetensors", {"l.weight": base, "l.lora_A.weight": a, "l.lora_B.weight": b})

    def plan(dst: str, options: Options) -> Plan:
        return plan_lora(path, dst, lora_config("2"), options)

    return Step(plan, base + 2 * (b @ a))


STEPS: Mapping[str, Callable[[Path], Step]] = {"order": _ordered, "zeros": _zeros, "flat": _flat, "LoRA": _lora}


@pytest.fixture(params=list(STEPS))
def step(request: pytest.FixtureRequest, tmp_path: Path) -> Step:
    return STEPS[request.param](tmp_path / "step")


@pytest.fixture
def options(step: Step, tmp_path: Path) -> Options:
    name = next(iter(step.plan("out", Options()).tensors)).name
    return Options(dst_strategy=str(write_strategy(tmp_path / "s", [{name: ROWS}])), format="safetensors", fsync=False)


def make(step: Step, dst: str | Path, options: Options) -> None:
    execute(step.plan(str(dst), options), dst, options, Observer())


def check(step: Step, dst: Path) -> None:
    for rank in range(4):
        (value,) = read_file(dst / f"rank_{rank}" / f"checkpoint_{rank}.safetensors").values()
        assert same(value, step.wanted[2 * rank : 2 * rank + 2])
    assert verify(dst).files == 4


def test_here(step: Step, options: Options, tmp_path: Path) -> None:
    make(step, tmp_path / "out", options)
    check(step, tmp_path / "out")
    make(step, tmp_path / "one.safetensors", Options(fsync=False))
    (value,) = read_file(tmp_path / "one.safetensors").values()
    assert same(value, step.wanted)
    assert diff(Source(str(tmp_path / "out")), Source(str(tmp_path / "one.safetensors"))).equal
    assert fingerprint(tmp_path / "out").number == fingerprint(tmp_path / "one.safetensors").number


def test_by_shares_and_by_ranks(step: Step, options: Options, tmp_path: Path) -> None:
    for index in (1, 0, 2):
        make(step, tmp_path / "shares", replace(options, share=Share(index, 3)))
    for rank in (3, 0, 2, 1):
        make(step, tmp_path / "ranks", replace(options, ranks=frozenset({rank})))
    check(step, tmp_path / "shares")
    check(step, tmp_path / "ranks")


def test_with_links_and_blocks_of_a_row(
    step: Step, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reshard.ops.options._MAX_BLOCK_NBYTES", 24)
    monkeypatch.setattr("reshard.ops.options._MAX_TURNED_BLOCK_NBYTES", 24)
    make(step, tmp_path / "out", replace(options, link_replicas=True))
    check(step, tmp_path / "out")


def test_after_a_stop(step: Step, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> Any:
        raise RunError("stopped")

    make(step, tmp_path / "out", replace(options, ranks=frozenset({2})))
    with monkeypatch.context() as patch:
        patch.setattr(local.TaskRun, "commit", stopped)
        with pytest.raises(RunError, match="stopped"):
            make(step, tmp_path / "out", replace(options, resume=True))
    make(step, tmp_path / "out", replace(options, resume=True))
    check(step, tmp_path / "out")
    assert not [name for name in tree(tmp_path / "out") if name.endswith(".part")]


def test_as_json(step: Step, options: Options) -> None:
    plan = step.plan("out", options)
    assert plan_from_json(plan.to_json()) == plan


def test_into_a_bucket(step: Step, options: Options, bucket: Bucket) -> None:
    make(step, f"{bucket.url}/out", options)
    opened = reshard.open(f"{bucket.url}/out")
    assert [same(np.asarray(opened[name].read()), step.wanted) for name in opened] == [True]
    assert verify(f"{bucket.url}/out").files == 4
