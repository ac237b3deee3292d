"""Laws of Checkpoint 2.0: any layout that it can say is read, and any that a strategy says is written, if it can be."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import reshard
from checkpoint2 import faults_of, write_checkpoint2
from making import array, read_file, same, shard_of, write_file, write_strategy
from property.random_layouts import shardings
from reshard import Options
from reshard.errors import LayoutError
from reshard.families.checkpoint2_metadata import folded, numbered
from reshard.layout.tensor import Sharding
from thorough import examples


@examples(15)
@given(sharding=st.integers(0, 3).flatmap(lambda ndim: shardings(8, ndim)), seed=st.integers(0, 99))
def test_any_layout_is_read(sharding: Sharding, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    sharding = replace(sharding, opt_shard=0)
    full = {"w": array(tuple(2 * n for n in sharding.parts), seed=seed)}
    folder = tmp_path_factory.mktemp("any")
    write_checkpoint2(folder, full, [{"w": sharding}])
    assert same(np.asarray(reshard.open(folder)["w"].read()), full["w"])
    cells = {sharding.cells()[rank]: shard_of(full["w"], sharding, rank).tobytes() for rank in range(sharding.devices)}
    assert list(numbered(sharding)) == sorted(cells)
    shutil.rmtree(folder)


@examples(15)
@given(
    shardings=st.lists(st.integers(0, 3).flatmap(lambda ndim: shardings(6, ndim)), min_size=1, max_size=3),
    drop=st.booleans(),
)
def test_any_strategy_is_written(
    shardings: list[Sharding], drop: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A stage for each tensor; only an optimizer shard across axes has no such layout."""
    folder = tmp_path_factory.mktemp("any")
    full = {f"l.{i}.w": array(tuple(2 * n for n in s.parts), seed=i) for i, s in enumerate(shardings)}
    stages = [{name: sharding} for name, sharding in zip(full, shardings, strict=True)]
    source = write_file(folder / "full.safetensors", full)
    strategy = str(write_strategy(folder / "s", stages))
    options = Options(dst_strategy=strategy, to="checkpoint2", drop_redundancy=drop, fsync=False)
    try:
        reshard.convert(source, folder / "out", options)
    except LayoutError:
        assert any(s.opt_shard > 1 for s in shardings)
        return
    assert faults_of(folder / "out", full, stages) == []
    assert all(folded(s).cells() == s.cells() for s in shardings)
    reshard.convert(folder / "out", folder / "again.safetensors", Options(fsync=False))
    again = read_file(folder / "again.safetensors")
    assert [name for name, a in full.items() if not same(again[name], a)] == []
    shutil.rmtree(folder)
