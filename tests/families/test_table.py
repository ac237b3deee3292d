"""Every step with every family: a row of ``rows`` that does not pass is not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

import reshard
from families.rows import CARRIED_OUT, FAMILIES, Kept, Made
from making import differing, read_file, tree
from reshard import Options
from reshard.errors import RunError
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.moving import local
from reshard.ops.convert import bill_of, plan_from
from reshard.ops.diff import diff, verify_content
from reshard.ops.explain import explain
from reshard.ops.fingerprint import fingerprint
from reshard.ops.inspect import inspect
from reshard.ops.verify import verify
from reshard.planning.plan import Plan
from reshard.planning.shares import Share
from reshard.report.html import page
from reshard.report.make import plan_report


@pytest.fixture(params=list(FAMILIES))
def made(request: pytest.FixtureRequest, kept: Kept) -> Made:
    return kept.made(request.param)


@pytest.fixture
def strategies(made: Made, kept: Kept) -> Path:
    return kept.strategies(made)


@pytest.fixture
def cut(made: Made, kept: Kept) -> Path:
    return kept.cut(made)


carried_out = pytest.mark.parametrize("made", CARRIED_OUT, indirect=True)


def rank_file(folder: Path, rank: int) -> dict[str, np.ndarray]:
    return read_file(folder / f"rank_{rank}" / f"checkpoint_{rank}.safetensors")


def equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert differing(found, wanted) == []


def weights(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(folder).items() if name.endswith(".safetensors")}


def test_local(made: Made, cut: Path) -> None:
    for rank in range(4):
        equal(rank_file(cut, rank), made.of_rank(rank))


def test_one_file(made: Made, tmp_path: Path) -> None:
    reshard.convert(made.path, tmp_path / "m.safetensors", Options(src_strategy=made.strategy, fsync=False))
    equal(read_file(tmp_path / "m.safetensors"), dict(made.full))


@carried_out
def test_shares(made: Made, strategies: Path, cut: Path, tmp_path: Path) -> None:
    for index in (2, 0, 1):
        reshard.convert(made.path, tmp_path / "out", made.options(strategies, share=Share(index, 3)))
    assert weights(tmp_path / "out") == weights(cut)
    assert verify(tmp_path / "out").ranks == 4


@carried_out
def test_some_ranks(made: Made, strategies: Path, cut: Path, tmp_path: Path) -> None:
    reshard.convert(made.path, tmp_path / "out", made.options(strategies, ranks=frozenset({1, 3})))
    assert weights(tmp_path / "out") == {n: c for n, c in weights(cut).items() if n.startswith(("rank_1", "rank_3"))}


@carried_out
def test_links(made: Made, strategies: Path, cut: Path, tmp_path: Path) -> None:
    reshard.convert(made.path, tmp_path / "out", made.options(strategies, link_replicas=True))
    assert weights(tmp_path / "out") == weights(cut)


@carried_out
def test_resume(made: Made, strategies: Path, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work ends where its first files have their names."""
    options = made.options(strategies, max_memory_nbytes=200 << 20)
    reshard.convert(made.path, tmp_path / "out", replace(options, ranks=frozenset({2})))
    (tmp_path / "out" / "rank_2" / "checkpoint_2.safetensors.part").write_bytes(b"half")

    def stopped(*_: Any) -> Any:
        raise RunError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(local.TaskRun, "commit", stopped)
        with pytest.raises(RunError, match="stopped"):
            reshard.convert(made.path, tmp_path / "out", replace(options, resume=True))
    again = reshard.convert(made.path, tmp_path / "out", replace(options, resume=True))
    assert again.skipped_files == 1
    assert weights(tmp_path / "out") == weights(cut)


@carried_out
def test_blocks_of_any_size(
    made: Made, strategies: Path, cut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reshard.ops.options._MAX_BLOCK_NBYTES", 24)
    monkeypatch.setattr("reshard.ops.options._MAX_TURNED_BLOCK_NBYTES", 24)
    reshard.convert(made.path, tmp_path / "out", made.options(strategies))
    assert weights(tmp_path / "out") == weights(cut)


@carried_out
def test_plan_as_json(made: Made, strategies: Path) -> None:
    plan = reshard.plan(made.path, "out", made.options(strategies))
    assert msgspec.json.decode(plan.to_json(), type=Plan) == plan
    assert bill_of(plan, "out", made.options(strategies)).needed_nbytes <= plan.tensor_nbytes


@carried_out
def test_manifest(made: Made, cut: Path) -> None:
    assert verify(cut).files == 4


def test_verify_against_the_source(made: Made, cut: Path, strategies: Path) -> None:
    source = Source(str(made.path), made.strategy)
    assert verify_content(source, Source(str(cut), str(strategies / "dst"))).tensors == len(made.full)


def test_diff(made: Made, cut: Path) -> None:
    found = diff(Source(str(made.path), made.strategy), Source(str(cut)))
    assert found.equal, found.lines()
    assert found.tensors == len(made.full)


def test_fingerprint(made: Made, cut: Path) -> None:
    assert fingerprint(str(made.path), made.strategy).number == fingerprint(str(cut)).number


def test_explain(made: Made, strategies: Path) -> None:
    name = max(made.full, key=lambda n: made.full[n].size)
    told = explain(name, made.path, made.options(strategies))
    nbytes = sum(taken.run_nbytes * taken.runs for m in told.targets[0].made for taken in m.taken)
    assert nbytes == made.full[name].nbytes
    assert all(part.held for part in told.parts)


@carried_out
def test_report(made: Made, strategies: Path) -> None:
    options = made.options(strategies)
    source = open_source(options.source(made.path))
    plan = plan_from(source, "out", options)
    bill = bill_of(plan, "out", options)
    report = plan_report(source, plan, (str(made.path), "out"), bill)
    assert sum(map(sum, report.conversions[0].movement.nbytes)) == plan.tensor_nbytes
    assert sum(file.moved for file in report.source.files) == bill.read_nbytes
    assert "</html>" in page(report)


def test_inspect(made: Made) -> None:
    found = inspect(str(made.path), made.strategy)
    assert {row.name: row.shape for row in found.tensors} == {name: a.shape for name, a in made.full.items()}
    assert not any(row.missing for row in found.tensors)


def test_open(made: Made, strategies: Path) -> None:
    opened = reshard.open(made.path, made.strategy or None)
    equal({name: np.asarray(opened[name].read()) for name in opened}, dict(made.full))
    equal({n: np.asarray(a) for n, a in opened.load(3, made.options(strategies).dst_strategy).items()}, made.of_rank(3))
