"""MindSpore reads the strategy files that reshard writes, and takes them for what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_transforming import GOLDEN, parameters, strategy_of

from golden.cases import run_reshard
from reshard.compat.mindspore import merge_pipeline_strategys, rank_list_for_transform
from reshard.layout.stages import AnySharding, layout_of_full
from reshard.layout.tensor import Sharding
from reshard.strategy.file import LayoutItem
from reshard.strategy.folder import read_strategy
from reshard.strategy.json_file import encode_json_layout, encode_json_made, write_json
from reshard.strategy.protobuf import encode_layout, encode_made, write_protobuf

pytestmark = pytest.mark.oracle

COMPILED = sorted(
    f"{p.parent.parent.name}/{p.parent.name}" for p in GOLDEN.glob("*/*/how.json") if not p.parent.name.endswith("json")
)
SEVERAL_AXES = ("strategies/layout_tuple", "strategies/layout_tuple_opt", "families/qwen25_dp2mp4_3dtp_x2y1z2")
"""MindSpore cannot read a dim cut by several axes from JSON."""


def rewritten(config: str, folder: Path, suffix: str = ".ckpt") -> Path:
    """The strategy files of a configuration, read and written anew by reshard, of the first rank of each stage."""
    strategy = read_strategy(GOLDEN / config)
    shapes = parameters([config])
    folder.mkdir()
    for stage, entries in enumerate(strategy.stages):
        path = folder / f"ckpt_strategy_rank_{stage * strategy.devices}{suffix}"
        if suffix == ".json":
            known = {name: entry for name, entry in entries.items() if name in shapes}
            path.write_bytes(_in_json(stage, known, lambda name: shapes[name]))
        else:
            items = {name: encode_layout(_sharding(entry)) for name, entry in entries.items()}
            path.write_bytes(write_protobuf([encode_made(stage)], items, 1))
    return folder


def _in_json(stage: int, entries: dict[str, AnySharding], shape_of: Callable[[str], tuple[int, ...]]) -> bytes:
    items: dict[str, LayoutItem] = {}
    for name, entry in entries.items():
        items[name] = encode_json_layout(layout_of_full(entry, shape_of(name)))
    return write_json([encode_json_made(encode_made(stage))], items, 1)


def _sharding(entry: AnySharding) -> Sharding:
    assert isinstance(entry, Sharding)
    return entry


def merged(ask: Any, folders: list[Path], suffix: str = ".ckpt") -> list[dict[str, str]]:
    """What MindSpore reads from the folders once it has merged the stages of each."""
    paths = [str(folder) + "_merged" + suffix for folder in folders]
    merges = [("merge", {"folder": str(f), "path": p}) for f, p in zip(folders, paths, strict=True)]
    answers = ask([*merges, *(("strategy", {"path": p}) for p in paths)])
    assert answers[: len(merges)] == [{}] * len(merges)
    return answers[len(merges) :]


def test_protobuf(tmp_path: Path, ask: Any) -> None:
    """What we write again of each compiled strategy is, entry by entry, what the compiler wrote."""
    theirs = [strategy_of(config, tmp_path / f"theirs_{i}") for i, config in enumerate(COMPILED)]
    ours = [rewritten(config, tmp_path / f"ours_{i}") for i, config in enumerate(COMPILED)]
    for config, a, b in zip(COMPILED, merged(ask, ours), merged(ask, theirs), strict=True):
        assert a.keys() == b.keys(), config
        assert {n: (a[n], b[n]) for n in a if a[n] != b[n]} == {}, config


def test_json(tmp_path: Path, ask: Any) -> None:
    """The same from JSON, for the weights, whose shapes we know."""
    configs = [c for c in COMPILED if c not in SEVERAL_AXES]
    theirs = [strategy_of(config, tmp_path / f"theirs_{i}") for i, config in enumerate(configs)]
    ours = [rewritten(config, tmp_path / f"ours_{i}", ".json") for i, config in enumerate(configs)]
    for config, a, b in zip(configs, merged(ask, ours, ".json"), merged(ask, theirs), strict=True):
        assert len(a) > 3
        assert {n: (entry, b[n]) for n, entry in a.items() if entry != b[n]} == {}, config


def test_merged_by_us(tmp_path: Path, ask: Any) -> None:
    """``reshard strategy merge`` gives MindSpore the same as its own merge."""
    configs = [c for c in COMPILED if "pp" in c]
    theirs = [strategy_of(config, tmp_path / f"theirs_{i}") for i, config in enumerate(configs)]
    ours = [str(tmp_path / f"ours_{i}.ckpt") for i in range(len(configs))]
    for folder, path in zip(theirs, ours, strict=True):
        assert run_reshard(["strategy", "merge", str(folder), path]) == 0
    assert ask([("strategy", {"path": path}) for path in ours]) == merged(ask, theirs)


PAIRS = [
    ("strategies/llama_dp2mp2pp2", "strategies/llama_dp1mp4pp2"),
    ("strategies/llama_dp2mp4pp2", "strategies/llama_mp8"),
    ("strategies/layout_tuple", "strategies/layout_tuple_opt"),
    ("families/qwen25_dp2mp4_opt_ws4", "families/qwen25_dp2mp2pp2_opt_ws8_pp"),
]


LLAMA = [c for c in COMPILED if c.startswith("strategies/llama_") and "lora" not in c]
GATHERED = ["strategies/llama_dp4mp2_optshard", "strategies/llama_dp4mp2_allopt", "strategies/llama_dp2mp4"]


def test_rank_lists_of_ours(tmp_path: Path, ask: Any) -> None:
    """``rank_list_for_transform`` of ours lists what theirs does, from strategies that have to be gathered to any."""
    paths = {config: str(tmp_path / f"{i}.ckpt") for i, config in enumerate(LLAMA)}
    for config, path in paths.items():
        merge_pipeline_strategys(str(strategy_of(config, Path(path).with_suffix(""))), path)
    pairs = [(paths[a], path, read_strategy(path).world) for a in GATHERED for path in paths.values()]
    theirs = ask([("rank_lists", {"source": a, "target": b, "ranks": world}) for a, b, world in pairs])
    for (a, b, world), answer in zip(pairs, theirs, strict=True):
        ours = [sorted(rank_list_for_transform(rank, a, b)) for rank in range(world)]
        assert ours == answer, (a, b)


def test_rank_lists(tmp_path: Path, ask: Any) -> None:
    """Which source ranks a target rank needs is the same, whether the compiler wrote the strategies or we did."""
    merges, lists = [], []
    for write in (strategy_of, rewritten):
        for i, pair in enumerate(PAIRS):
            folders = [write(config, tmp_path / f"{write.__name__}_{i}_{side}") for side, config in enumerate(pair)]
            paths = [f"{folder}_merged.ckpt" for folder in folders]
            merges += [("merge", {"folder": str(f), "path": p}) for f, p in zip(folders, paths, strict=True)]
            world = read_strategy(folders[1]).world
            lists.append(("rank_lists", {"source": paths[0], "target": paths[1], "ranks": world}))
    answers = ask([*merges, *lists])
    assert answers[: len(merges)] == [{}] * len(merges)
    theirs, ours = answers[len(merges) : -len(PAIRS)], answers[-len(PAIRS) :]
    assert theirs == ours
    assert all(isinstance(answer, list) and all(answer) for answer in theirs)
