"""Checkpoint 2.0 folders that MindFormers r1.7 to master wrote: each command of a case gives what they hold."""

from __future__ import annotations

import hashlib
import json
import lzma
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint2 import NUMBERS, faults_of, latest, read_checkpoint2, slice_of
from golden.cases import run_reshard
from golden_families.test_recorded import HERE, told_of_bad, unpacked
from making import read_file
from reshard.families.checkpoint2_metadata import written_parameter
from reshard.layout.box import Box
from reshard.layout.tensor import Layout, Sharding

NAMES = {kind: sorted(p.name.removesuffix(".tar.xz") for p in (HERE / kind).glob("ck2-*")) for kind in ("cases", "bad")}
CODES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "I64": "int64"}

Described = dict[str, tuple[str, tuple[int, ...], str]]


def answer(entries: dict[str, Any]) -> Described:
    return {name: (CODES[e["dtype"]], tuple(e["shape"]), e["sha256"]) for name, e in entries.items()}


def described(arrays: dict[str, np.ndarray]) -> Described:
    return {
        name: (a.dtype.name, a.shape, hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest())
        for name, a in arrays.items()
    }


def compare(found: dict[str, np.ndarray], wanted: Described, beside: Described) -> None:
    assert {name: entry for name, entry in described(found).items() if name not in NUMBERS} == {
        name: entry for name, entry in wanted.items() if name not in NUMBERS
    }
    assert {n: e for n, e in described(found).items() if n in NUMBERS}.items() <= (wanted | beside).items()


def given(case: Path, about: dict[str, Any], name: str, tmp_path: Path) -> dict[str, np.ndarray]:
    command = next(c for c in about["commands"] if c["name"] == name)
    words = [w.replace("{case}", str(case)).replace("{out}", str(tmp_path)) for w in command["argv"]]
    assert run_reshard([*words, "--quiet"]) == 0
    return read_file(Path(words[2]))


@pytest.mark.parametrize("name", NAMES["cases"])
def test_it_reads_what_mindformers_wrote(name: str, tmp_path: Path) -> None:
    case = unpacked("cases", name, tmp_path / "case")
    about = json.loads((case / "case.json").read_text())
    full = answer(json.loads((case / "tensors.json").read_text())["full"])
    beside = described(read_checkpoint2(case / "src" / "checkpoint")[1])
    compare(given(case, about, "full", tmp_path), full, beside)
    compare(given(case, about, "iteration-folder", tmp_path), full, beside)
    if about.get("optimizer"):
        states = ("adam_m.", "adam_v.", "accu_grads.")
        weights = {n: e for n, e in full.items() if not n.startswith(states)}
        assert described(given(case, about, "weights-only", tmp_path)) == weights


def stages_of(folder: Path) -> list[dict[str, Sharding]]:
    """The cuts of a case's strategy, a dict for each stage."""
    files = sorted(folder.glob("*.json"), key=lambda path: int(path.stem.rpartition("_")[2]))
    return [
        {name: _sharding(item) for name, item in json.loads(path.read_text())["parallel_layout_item"].items()}
        for path in files
    ]


def _sharding(item: dict[str, Any]) -> Sharding:
    axes = (dim if isinstance(dim, list) else [dim] for dim in item["tensor_map"])
    tensor_map = tuple(tuple(axis for axis in dim if axis != -1) for dim in axes)
    return Sharding(tuple(item["dev_matrix"]), tensor_map, item["opt_weight_shard_size"])


def layouts(case: Path) -> list[Path]:
    own = [case / "strategy"] if (case / "strategy").is_dir() else []
    return own + sorted(place for place in (case / "to").glob("*") if place.is_dir())


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("name", NAMES["cases"])
def test_it_is_cut_anew(name: str, drop: bool, tmp_path: Path) -> None:
    """Into each layout of the case, as Checkpoint 2.0 and as rank folders, and from these back."""
    case = unpacked("cases", name, tmp_path / "case")
    full, _ = read_checkpoint2(case / "src" / "checkpoint")
    for number, layout in enumerate(layouts(case)):
        stages = stages_of(layout)
        if drop and sum(next(iter(stage.values())).devices for stage in stages) == 1:
            continue
        out, ranks, back = (tmp_path / f"{kind}{number}" for kind in ("out", "ranks", "back"))
        given = ["--dst-strategy", str(layout), *(["--drop-redundancy"] if drop else []), "--quiet"]
        again = ["--src-strategy", str(layout)]
        for words in (
            [str(case / "src" / "checkpoint"), str(out), "--to", "checkpoint2", *given],
            [str(case / "src" / "checkpoint"), str(ranks), *given],
            [str(ranks), str(back), "--to", "checkpoint2", *again, *given],
        ):
            assert run_reshard(["convert", *words]) == 0
        assert faults_of(out, full, stages) == []
        assert faults_of(back, full, stages) == []


@pytest.mark.parametrize("name", [name for name in NAMES["cases"] if "dedup" in name])
def test_replicas_are_dropped_where_the_trainer_drops_them(name: str, tmp_path: Path) -> None:
    """Which is as old as it: a folder of r1.7, which r1.9 cannot read, is one of today."""
    source = unpacked("cases", name, tmp_path / "case") / "src" / "checkpoint"
    words = ["convert", str(source), str(tmp_path / "out"), "--to", "checkpoint2", "--drop-redundancy", "--quiet"]
    assert run_reshard(words) == 0
    theirs, ours = (latest(root) for root in (source, tmp_path / "out"))
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    there, here = (json.loads((f / "metadata.json").read_text())["storage_data"] for f in (theirs, ours))
    assert {k: [e["storage_rank"] for e in v] for k, v in here.items()} == {
        k: [e["storage_rank"] for e in v] for k, v in there.items()
    }
    assert all("rank_group" in entry for entries in here.values() for entry in entries)


def test_optimizer_shards_are_folded_as_mindspore_folds_them() -> None:
    """But where its own layout has fewer slices than the shard asks for: what ranks hold counts there."""
    rows = json.loads(lzma.decompress((HERE / "folded_layouts.json.xz").read_bytes()))
    compared = 0
    for row in (row for row in rows if "error" not in row):
        given = {"dev_matrix": row["dev_matrix"], "tensor_map": row["tensor_map"], "opt_weight_shard_size": row["opt"]}
        layout = Layout(tuple(row["shape"]), _sharding(given))
        ours = written_parameter("float32", layout, tuple(row["layout"]["rank_list"]))
        assert slices(ours["layout"], layout) == [
            tuple(map(tuple, zip(b.start, b.stop, strict=True))) for b in boxes(layout)
        ]
        if prod(row["axis_fragmentations"]) == prod(layout.sharding.parts):
            assert ours["axis_fragmentations"] == row["axis_fragmentations"]
            assert list(ours["properties"]["replica_id"]) == row["replica_id"]
            assert slices(row["layout"], layout) == slices(ours["layout"], layout)
            compared += 1
    assert compared > 130


def boxes(layout: Layout) -> list[Box]:
    return [layout.box(rank) for rank in range(layout.sharding.devices)]


def slices(placed: dict[str, Any], layout: Layout) -> list[tuple[tuple[int, int], ...]]:
    """By the reader of the tests what each rank holds."""
    places = range(layout.sharding.devices)
    return [tuple((s.start, s.stop) for s in slice_of(placed, place, layout.shape)) for place in places]


@pytest.mark.parametrize("name", NAMES["bad"])
def test_bad_input_is_told(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, made, whole = told_of_bad(name, tmp_path, capsys)
    if whole:
        right = answer(json.loads((case / "tensors.json").read_text())["tensors"])
        compare(read_file(made), right, {n: e for n, e in described(read_file(made)).items() if n in NUMBERS})
