"""MindSpore's conventions, held by vectors: laws of round trips cannot see a device order read backwards on both sides.

The vectors were derived by hand from the convention as it is written down, and stand beside MindSpore's own slices of
the same tensors, which they must select.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from golden.cases import NAMES, unpack
from golden.readers import Value, messages, read_items, read_weights, weight_files
from reshard.layout.stages import Strategy, layout_of_full, layout_of_shard
from reshard.layout.tensor import Layout
from reshard.strategy.folder import encode, merge_stages, read_strategy

HERE = Path(__file__).parent
COMPILED = sorted(p.parent for p in HERE.glob("*/*/how.json"))
NPU = HERE / "strategies" / "mf_repo_tests_npu"

ROWS, COLUMNS = 8, 16
"""The plain nets: w1 and w3 are [ROWS, COLUMNS], w2 is [COLUMNS, ROWS], b is [COLUMNS]."""

Slices = tuple[slice, ...]


def at(*places: tuple[int, int]) -> Slices:
    return tuple(slice(start, stop) for start, stop in places)


ALL_ROWS = (0, 8)
# rank of [2, 2, 2] = 4·i + 2·j + k; axis 2 is i, axis 1 is j, axis 0 is k
J_OUTER = ((0, 4), (4, 8), (8, 12), (12, 16)) * 2  # part 2·j + k of 4, for rank 0, 1, …
K_OUTER = ((0, 4), (8, 12), (4, 8), (12, 16)) * 2  # part 2·k + j of 4
TUPLE: dict[str, list[Slices]] = {
    # i cuts dim 0, (j, k) cut dim 1
    "net.w1": [
        at((0, 4), (0, 4)), at((0, 4), (4, 8)), at((0, 4), (8, 12)), at((0, 4), (12, 16)),
        at((4, 8), (0, 4)), at((4, 8), (4, 8)), at((4, 8), (8, 12)), at((4, 8), (12, 16)),
    ],
    "net.w2": [at(rows, ALL_ROWS) for rows in J_OUTER],  # (j, k) cut dim 0
    "net.w3": [at(ALL_ROWS, columns) for columns in K_OUTER],  # (k, j) cut dim 1
    "net.b": [at(rows) for rows in K_OUTER],
}  # fmt: skip
TUPLE_OPT: dict[str, list[Slices]] = {
    # the same, save that i cuts nothing: its two ranks share dim 0 of what is left
    "net.w1": [at((0, 4), columns) for columns in J_OUTER[:4]] + [at((4, 8), columns) for columns in J_OUTER[:4]],
    "net.w2": [
        at((0, 2), ALL_ROWS), at((4, 6), ALL_ROWS), at((8, 10), ALL_ROWS), at((12, 14), ALL_ROWS),
        at((2, 4), ALL_ROWS), at((6, 8), ALL_ROWS), at((10, 12), ALL_ROWS), at((14, 16), ALL_ROWS),
    ],
    "net.w3": [at((0, 4), columns) for columns in K_OUTER[:4]] + [at((4, 8), columns) for columns in K_OUTER[:4]],
    "net.b": [
        at((0, 2)), at((8, 10)), at((4, 6)), at((12, 14)),
        at((2, 4)), at((10, 12)), at((6, 8)), at((14, 16)),
    ],
}  # fmt: skip
# rank of [2, 4, 1] = 4·i + j; axis 1 is j, the last axis has one device
QUARTERS = ((0, 4), (4, 8), (8, 12), (12, 16)) * 2
INTERLEAVE: dict[str, list[Slices]] = {
    "net.w1": [at(ALL_ROWS, columns) for columns in QUARTERS],
    "net.w2": [at(rows, ALL_ROWS) for rows in QUARTERS],
    "net.w3": [at(ALL_ROWS, columns) for columns in QUARTERS],
    "net.b": [at((0, 16))] * 8,
}
SHAPES = {"net.w1": (ROWS, COLUMNS), "net.w2": (COLUMNS, ROWS), "net.w3": (ROWS, COLUMNS), "net.b": (COLUMNS,)}
VECTORS = {"layout_tuple": TUPLE, "layout_tuple_opt": TUPLE_OPT, "layout_interleave": INTERLEAVE}

# rank of [4, 2] = 2·i + j; axis 0 is j, the four replicas of a slice differ in i and share its dim 0
OPTSHARD: dict[str, list[Slices]] = {
    "model.layers.1.attention.wq.weight": [  # [16, 16]: halves of j, of each the quarter i
        at((0, 2), (0, 16)), at((8, 10), (0, 16)), at((2, 4), (0, 16)), at((10, 12), (0, 16)),
        at((4, 6), (0, 16)), at((12, 14), (0, 16)), at((6, 8), (0, 16)), at((14, 16), (0, 16)),
    ],
    "model.layers.1.attention.wo.weight": [  # [16, 16]: j cuts dim 1, so i has all of dim 0
        at((0, 4), (0, 8)), at((0, 4), (8, 16)), at((4, 8), (0, 8)), at((4, 8), (8, 16)),
        at((8, 12), (0, 8)), at((8, 12), (8, 16)), at((12, 16), (0, 8)), at((12, 16), (8, 16)),
    ],
    "model.tok_embeddings.embedding_weight": [at((0, 32), (0, 16)), at((32, 64), (0, 16))] * 4,  # not shared
    "model.layers.1.ffn_norm.weight": [at((0, 16))] * 8,
}  # fmt: skip
OPTSHARD_SHAPES = {
    "model.layers.1.attention.wq.weight": (16, 16),
    "model.layers.1.attention.wo.weight": (16, 16),
    "model.tok_embeddings.embedding_weight": (64, 16),
    "model.layers.1.ffn_norm.weight": (16,),
}


def boxes(layout: Layout) -> list[Slices]:
    found = [layout.box(rank) for rank in range(layout.sharding.devices)]
    return [at(*zip(box.start, box.stop, strict=True)) for box in found]


def values(value: Value) -> npt.NDArray[np.generic]:
    """Elements as the integers of their bits."""
    return np.frombuffer(value.content, {"Float32": np.uint32, "BFloat16": np.uint16}[value.dtype]).reshape(value.shape)


# --- vectors


@pytest.mark.parametrize(("name", "file"), [(n, n) for n in VECTORS] + [("layout_tuple", "layout_tuple_json")])
def test_boxes_are_those_written_by_hand(name: str, file: str) -> None:
    strategy = read_strategy(HERE / "strategies" / file)
    for tensor, expected in VECTORS[name].items():
        layout = layout_of_full(strategy.stages[0][tensor], SHAPES[tensor])
        assert boxes(layout) == expected, tensor
        shape = tuple(s.stop - s.start for s in expected[0])
        if file != "layout_tuple_json":  # a flattened map does not say how a shard's dims group
            assert layout_of_shard(strategy.stages[0][tensor], shape) == layout


def test_optimizer_shards_are_those_written_by_hand(tmp_path: Path) -> None:
    """The boxes are the vectors, and the vectors select from the full tensor what MindSpore put there."""
    stage = read_strategy(HERE / "strategies" / "llama_dp4mp2_optshard").stages[0]
    case = unpack("full_to_dp4mp2_optshard", tmp_path)
    (source,) = weight_files(case.folder / "src" / "rank_0")
    full = read_weights(source)
    for tensor, shape in OPTSHARD_SHAPES.items():
        assert boxes(layout_of_full(stage[tensor], shape)) == OPTSHARD[tensor]
        for rank, place in enumerate(OPTSHARD[tensor]):
            (file,) = weight_files(case.expected / f"rank_{rank}")
            assert np.array_equal(values(read_weights(file)[tensor]), values(full[tensor])[place]), (tensor, rank)


@pytest.mark.parametrize(
    ("case_name", "source", "target"),
    [
        ("full_to_layout_tuple", "", "layout_tuple"),
        ("full_to_layout_tuple_opt", "", "layout_tuple_opt"),
        ("layout_tuple_to_full", "layout_tuple", ""),
        ("layout_tuple_to_layout_tuple_opt", "layout_tuple", "layout_tuple_opt"),
        ("layout_interleave_to_layout_tuple", "layout_interleave", "layout_tuple"),
        ("layout_tuple_opt_to_layout_interleave", "layout_tuple_opt", "layout_interleave"),
    ],
)
def test_vectors_select_what_mindspore_put_there(case_name: str, source: str, target: str, tmp_path: Path) -> None:
    """The full tensor put together from source slices by hand, cut again by hand, is MindSpore's answer."""
    case = unpack(case_name, tmp_path)
    full = {}
    for tensor, shape in SHAPES.items():
        made = np.zeros(shape, np.uint32)
        for rank, place in enumerate(VECTORS[source][tensor] if source else [at(*((0, n) for n in shape))]):
            (file,) = weight_files(case.folder / "src" / f"rank_{rank}")
            made[place] = values(read_weights(file)[tensor])
        assert len(np.unique(made)) > made.size * 0.9, "random data, no slice left zero"
        full[tensor] = made
    for tensor, shape in SHAPES.items():
        for rank, place in enumerate(VECTORS[target][tensor] if target else [at(*((0, n) for n in shape))]):
            (file,) = weight_files(case.expected / f"rank_{rank}")
            assert np.array_equal(values(read_weights(file)[tensor]), full[tensor][place]), (tensor, rank)


def test_json_of_several_axes_on_a_dim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MindSpore writes such a JSON strategy and fails to read it; the cut is that of the .ckpt strategy beside it."""
    from golden.cases import arguments, run_reshard

    case = unpack("err_json_multimap_full_to_layout_tuple_json", tmp_path / "case")
    assert run_reshard(arguments(case, tmp_path / "out")) == 0, capsys.readouterr().err
    (file,) = weight_files(case.folder / "src" / "rank_0")
    full = read_weights(file)
    for rank in range(8):
        (made,) = weight_files(tmp_path / "out" / f"rank_{rank}")
        ours = read_weights(made)
        for tensor, places in TUPLE.items():
            assert np.array_equal(values(ours[tensor]), values(full[tensor])[places[rank]]), (tensor, rank)


# --- every compiled strategy


def described(folder: Path) -> tuple[int, int, dict[str, tuple[int, ...]]]:
    """What how.json says: stages, ranks of one stage, full shape of each parameter."""
    how = json.loads((folder / "how.json").read_text())
    params = how.get("params") or how["params_seen_by_cell_before_sharding"]
    stages = how["pipeline_stages"]
    ranks = how.get("ranks_total") or how["ranks"]
    return stages, ranks // stages, {name: tuple(shape) for name, shape, *_ in params}


@pytest.mark.parametrize("folder", COMPILED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_compiled_strategy(folder: Path) -> None:
    """It reads; stages and ranks are those of the job; every parameter of the model is cut into equal shards."""
    stages, devices, shapes = described(folder)
    strategy = read_strategy(folder)
    assert (len(strategy.stages), strategy.devices, strategy.world) == (stages, devices, stages * devices)
    assert not strategy.made
    known = strategy.names() & shapes.keys()
    assert known
    for name in known:
        for stage in strategy.stages_of(name):
            layout = layout_of_full(strategy.stages[stage][name], shapes[name])
            shards = boxes(layout)
            assert len(shards) == devices
            covered = {(tuple((s.start, s.stop) for s in shard)) for shard in shards}
            elements = sum(prod(stop - start for start, stop in shard) for shard in covered)
            assert elements == prod(shapes[name]), name


@pytest.mark.parametrize("folder", COMPILED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_items_are_kept_as_they_are(folder: Path, tmp_path: Path) -> None:
    """Merging and writing again changes no entry, whatever it says that we do not use; names get their stage."""
    merged = merge_stages(folder)
    path = tmp_path / f"merged.{merged.kind}"
    path.write_bytes(encode(merged, current_stage=1))
    layouts, operators = read_items(path)
    files = sorted(p for p in folder.iterdir() if p.name.startswith("ckpt_strategy_rank_"))
    assert bare(layouts) == {entry for file in files for entry in bare(read_items(file)[0])}
    assert {re.sub(r"^\d+-", "", name) for name in operators} == {op for file in files for op in read_items(file)[1]}
    assert {name.split("-", 1)[0] for name in layouts} == {str(n) for n in range(described(folder)[0])}


def bare(layouts: Mapping[str, object]) -> set[tuple[str, object]]:
    """Layout items without stage in their names."""
    entries = {}
    for name, item in layouts.items():
        body = dict(messages(item))[2] if isinstance(item, bytes) else json.dumps(item, sort_keys=True)
        entries[name] = (re.sub(r"^\d+-", "", name), body)
    return set(entries.values())


@pytest.mark.parametrize(("file", "devices"), [("strategy_4_npus.ckpt", 2), ("strategy_8_npus.ckpt", 4)])
def test_merged_strategy_of_real_npus(file: str, devices: int) -> None:
    strategy = read_strategy(NPU / file)
    assert (len(strategy.stages), strategy.devices) == (2, devices)


# --- merged strategies


@pytest.mark.parametrize("name", [n for n in NAMES if re.search(r"pp\d", n) and not n.startswith("merge_strategy")])
def test_merging_stages_gives_mindspores_items(name: str, tmp_path: Path) -> None:
    """Item by item; those cases named merge_strategy are in test_golden."""
    case = unpack(name, tmp_path / "case")
    merged = sorted(case.folder.glob("*_merged_ckpt_strategy.ckpt"))
    assert merged
    for theirs in merged:
        folder = case.folder / theirs.name.replace("_merged_ckpt_strategy.ckpt", "_strategy")
        ours = tmp_path / "merged.ckpt"
        ours.write_bytes(encode(merge_stages(folder), current_stage=1))
        assert read_items(ours) == read_items(theirs)
        assert meaning(read_strategy(theirs)) == meaning(read_strategy(folder))


def meaning(strategy: Strategy) -> tuple[object, ...]:
    return strategy.stages, strategy.devices
