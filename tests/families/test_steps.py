"""Every way in which a target's tensor is made, through every way in which a plan is carried out and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

import reshard
from cloud.servers import S3
from families.steps import STEPS, Step, kept_in
from making import read_file, same, tree, write_file, write_strategy
from reshard import Options
from reshard.errors import RunError
from reshard.families.source import Source
from reshard.layout.tensor import Sharding
from reshard.moving import local
from reshard.ops.convert import bill_of, execute
from reshard.ops.diff import diff
from reshard.ops.explain import explain
from reshard.ops.fingerprint import fingerprint
from reshard.ops.inspect import inspect
from reshard.ops.observer import Observer
from reshard.ops.verify import verify
from reshard.planning.plan import Plan
from reshard.planning.shares import Share
from reshard.report.html import page
from reshard.report.make import plan_report


@pytest.fixture(params=list(STEPS))
def step(request: pytest.FixtureRequest, tmp_path: Path) -> Step:
    return STEPS[request.param](kept_in(tmp_path / "step"))


@pytest.fixture
def options(step: Step, tmp_path: Path) -> Options:
    strategy = write_strategy(tmp_path / "s", [{name_of(step): rows_of(step)}])
    return Options(dst_strategy=str(strategy), format="safetensors", fsync=False)


def rows_of(step: Step) -> Sharding:
    """Four slices of rows, each on two ranks."""
    return Sharding((4, 2), ((1,), *((),) * (step.wanted.ndim - 1)))


def name_of(step: Step) -> str:
    (tensor,) = step.plan("out", Options()).tensors
    return tensor.name


def make(step: Step, dst: str | Path, options: Options) -> None:
    execute(step.plan(str(dst), options), dst, options, Observer())


def check(step: Step, dst: Path) -> None:
    for rank in range(8):
        (value,) = read_file(dst / f"rank_{rank}" / f"checkpoint_{rank}.safetensors").values()
        assert same(value, step.wanted[rank // 2 * 2 : rank // 2 * 2 + 2])
    assert verify(dst).files == 8


def test_here(step: Step, options: Options, tmp_path: Path) -> None:
    make(step, tmp_path / "out", options)
    check(step, tmp_path / "out")
    make(step, tmp_path / "one.safetensors", Options(fsync=False))
    (value,) = read_file(tmp_path / "one.safetensors").values()
    assert same(value, step.wanted)


def test_by_shares_and_by_ranks(step: Step, options: Options, tmp_path: Path) -> None:
    for index in (1, 0, 2):
        make(step, tmp_path / "shares", replace(options, share=Share(index, 3)))
    for ranks in ({3, 5}, {0, 7}, {2, 6}, {1, 4}):
        make(step, tmp_path / "ranks", replace(options, ranks=frozenset(ranks)))
    check(step, tmp_path / "shares")
    check(step, tmp_path / "ranks")


def test_with_links_and_blocks_of_a_row(
    step: Step, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reshard.ops.options._MAX_BLOCK_NBYTES", 24)
    monkeypatch.setattr("reshard.ops.options._MAX_TURNED_BLOCK_NBYTES", 24)
    make(step, tmp_path / "out", replace(options, link_replicas=True))
    check(step, tmp_path / "out")
    assert bill_of(step.plan("out", options), "out", replace(options, link_replicas=True)).linked_files == 4


def test_after_a_kill(step: Step, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is half done stays as it is, as where nobody could tidy up."""

    def killed(*_: Any) -> Any:
        raise RunError("killed")

    make(step, tmp_path / "out", replace(options, ranks=frozenset({2})))
    with monkeypatch.context() as patch:
        patch.setattr(local.TaskRun, "commit", killed)
        patch.setattr(local.TaskRun, "abandon", lambda _: None)
        with pytest.raises(RunError, match="killed"):
            make(step, tmp_path / "out", replace(options, resume=True))
    assert [name for name in tree(tmp_path / "out") if name.endswith(".part")]
    make(step, tmp_path / "out", replace(options, resume=True))
    check(step, tmp_path / "out")
    assert not [name for name in tree(tmp_path / "out") if name.endswith(".part")]


def test_as_json(step: Step, options: Options) -> None:
    plan = step.plan("out", options)
    assert msgspec.json.decode(plan.to_json(), type=Plan) == plan


def test_its_report(step: Step, options: Options) -> None:
    plan = step.plan("out", options)
    bill = bill_of(plan, "out", options)
    report = plan_report(step.source, plan, ("in", "out"), bill)
    (kind,) = report.kinds
    moved = sum(map(sum, report.conversions[0].movement.nbytes))
    assert moved <= plan.tensor_nbytes  # what is zeros comes from nowhere
    assert (kind.shape, kind.merged) == (step.wanted.shape, "LoraAdd(" in str(plan.tensors))
    assert "</html>" in page(report)


def test_what_is_made_of_it(step: Step, options: Options, tmp_path: Path) -> None:
    """By its manifest alone: there is no strategy beside it."""
    name, out = name_of(step), str(tmp_path / "out")
    make(step, out, options)
    full = str(write_file(tmp_path / "full.safetensors", {name: step.wanted}))
    assert diff(Source(out), Source(full)).equal
    assert fingerprint(out).number == fingerprint(full).number
    assert [row.shape for row in inspect(out).tensors] == [step.wanted.shape]
    assert [len(part.held) for part in explain(name, out, Options()).parts] == [2, 2, 2, 2]
    assert same(np.asarray(reshard.open(out)[name].read()), step.wanted)


@pytest.mark.parametrize("name", list(STEPS))
def test_from_a_bucket_to_a_bucket(name: str, s3: S3, tmp_path: Path) -> None:
    local_ = kept_in(tmp_path / "step")
    step = STEPS[name](lambda arrays: s3.put(Path(local_(arrays)), "m.safetensors"))
    strategy = write_strategy(tmp_path / "s", [{name_of(step): rows_of(step)}])
    out = f"{s3.url}/out"
    make(step, out, Options(dst_strategy=str(strategy), format="safetensors"))
    opened = reshard.open(out)
    assert [same(np.asarray(opened[each].read()), step.wanted) for each in opened] == [True]
    assert verify(out).files == 8
