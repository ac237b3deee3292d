"""Laws of Checkpoint 2.0: any layout that it can say is read."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import reshard
from checkpoint2 import write_checkpoint2
from making import array, same, shard_of
from property.random_layouts import shardings
from reshard.families.checkpoint2_metadata import numbered
from reshard.layout.tensor import Sharding


@settings(max_examples=60, deadline=None)
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
