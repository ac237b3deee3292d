"""Models and layouts drawn at random: what MindSpore makes of them, and which ranks it asks for, is what we make."""

from __future__ import annotations

import random
from math import lcm, prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_transforming import rank_faults

from making import Stages, array, write_file, write_ranks, write_strategy
from reshard.compat.mindspore import merge_pipeline_strategys, rank_list_for_transform, transform_checkpoints
from reshard.layout.tensor import Sharding
from thorough import TIMES

pytestmark = pytest.mark.oracle

TYPES = ("float32", "float16", "bfloat16", "bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "float64")
STATES = ("adam_m.", "adam_v.", "moment1.", "moments.", "accu_grads.")


class Drawn:
    """A model of some layers and how two jobs cut it: pipelines, several axes on one dim, optimizer shards."""

    def __init__(self, seed: int) -> None:
        self._random = rng = random.Random(seed)
        self._several = rng.random() < 0.4
        stages = [rng.choice([1, 1, 2]) for _ in range(2)]
        devices = [rng.choice([1, 2, 4, 8]) for _ in range(2)]
        self.sides: list[Stages] = [[{} for _ in range(n)] for n in stages]
        self.full: dict[str, np.ndarray[Any, Any]] = {}
        names = [(f"layers.{i}.{word}", i) for i in range(4) for word in rng.sample(["w", "权重", "a b", "n"], 2)]
        for number, (name, layer) in enumerate(names):
            dims = rng.choice([0, 1, 2, 2, 3, 4])
            cuts = [self._cut(n, dims) for n in devices]
            factors = [rng.choice([1, 2, 3]) for _ in range(dims)]
            shape = tuple(
                lcm(*parts) * k for parts, k in zip(zip(*(c.parts for c in cuts), strict=True), factors, strict=True)
            )
            for of in (name, *(state + name for state in rng.sample(STATES, rng.choice([0, 0, 2])))):
                self.full[of] = _values(shape, rng.choice(TYPES), seed + number)
                for side, cut in zip(self.sides, cuts, strict=True):
                    side[layer * len(side) // 4][of] = cut

    def _cut(self, devices: int, dims: int) -> Sharding:
        """Axes in the order of the dims: of others MindSpore orders some optimizer shards otherwise than training."""
        rng, matrix, left = self._random, list[int](), devices
        while left > 1:
            matrix.append(rng.choice([n for n in (2, 4, 8) if left % n == 0]))
            left //= matrix[-1]
        axes = [a for a in reversed(range(len(matrix))) if rng.random() < 0.7]
        taken: list[tuple[int, ...]] = []
        for _ in range(dims):
            count = min(len(axes), rng.choice([0, 1, 2] if self._several else [0, 1]))
            taken.append(tuple(axes.pop(0) for _ in range(count)))
        plain = Sharding(tuple(matrix) or (1,), tuple(taken))
        replicas = devices // prod(plain.parts)
        if not dims or replicas == 1 or rng.random() < 0.5:
            return plain
        return Sharding(plain.device_matrix, plain.tensor_map, rng.choice([-1, 2]))


def _values(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray[Any, Any]:
    """Random bits; bfloat16 passes through float32 in MindSpore, so there is no NaN in it."""
    if dtype != "bfloat16":
        return array(shape, dtype, seed)
    return array(shape, "int16", seed).astype(np.float32).astype(array((), dtype).dtype)


@pytest.mark.parametrize("seed", range(8 * TIMES))
def test_what_mindspore_makes_we_make(seed: int, tmp_path: Path, ask: Any) -> None:
    drawn = Drawn(seed)
    form = ("ckpt", "safetensors")[seed % 2]
    write_ranks(tmp_path / "old", drawn.full, drawn.sides[0], suffix=f".{form}")
    write_file(tmp_path / "full" / "rank_0" / f"full.{form}", drawn.full)
    merged = [str(tmp_path / f"{i}.ckpt") for i in range(2)]
    for i, stages in enumerate(drawn.sides):
        merge_pipeline_strategys(str(write_strategy(tmp_path / f"strategy_{i}", stages)), merged[i])
    old, new = merged
    ways: list[tuple[str, str | None, str | None]] = [("old", old, new), ("full", None, new), ("old", old, None)]
    for number, (source, before, after) in enumerate(ways):
        given: dict[str, Any] = {
            "src_checkpoints_dir": str(tmp_path / source),
            "ckpt_prefix": "p",
            "src_strategy_file": before,
            "dst_strategy_file": after,
            "output_format": form,
        }
        theirs, ours = tmp_path / f"theirs_{number}", tmp_path / f"ours_{number}"
        (answer,) = ask([("transform", {**given, "dst_checkpoints_dir": str(theirs)})])
        transform_checkpoints(dst_checkpoints_dir=str(ours), **given)
        if answer:  # of safetensors to or from a pipeline it does not find some that are there
            assert (form, max(map(len, drawn.sides))) == ("safetensors", 2)
            assert "is missing" in answer["error"]
        else:
            assert rank_faults(ours, theirs) == []
    world = len(drawn.sides[1]) * next(iter(drawn.sides[1][0].values())).devices
    (lists,) = ask([("rank_lists", {"source": old, "target": new, "ranks": world})])
    for rank, needed in enumerate(lists):
        assert set(needed) <= set(rank_list_for_transform(rank, old, new))
