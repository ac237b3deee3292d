"""The golden configurations: what a user wrote, and what MindSpore's compiler made of it."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from reshard.index import TensorSpec
from reshard.ops.make_strategy import StrategyWish

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGURATIONS = tuple(sorted(path.parent for path in GOLDEN.glob("*/*/run.yaml")))


def making(folder: Path) -> StrategyWish:
    """What a user asks for; release and, where the YAML names none, optimizer stand in its first line."""
    first = (folder / "run.yaml").read_text("utf-8").splitlines()[0]
    release = re.search(r"MindFormers r([\d.]+);", first)
    optimizer = re.search(r"Optimizer (\w+)", first)
    return StrategyWish(
        config=str(folder / "run.yaml"),
        mindformers_version=release[1] if release else "1.6.0",
        optimizer=optimizer[1] if optimizer else "",
    )


@cache
def parameters(folder: Path) -> tuple[tuple[Any, ...], ...]:
    """Name, full shape, dtype and flags of every parameter before it was cut."""
    how = json.loads((folder / "how.json").read_text("utf-8"))
    return tuple(map(tuple, how.get("params") or how["params_seen_by_cell_before_sharding"]))


def headers(folder: Path) -> dict[str, TensorSpec]:
    """What the headers of a full checkpoint of this job say."""
    return {p[0]: TensorSpec(p[2].lower(), tuple(p[1])) for p in parameters(folder)}
