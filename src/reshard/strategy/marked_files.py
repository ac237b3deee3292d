"""Strategies that we made, as files: marked, so that whoever reads one sees that no compiler wrote it."""

from __future__ import annotations

from collections.abc import Mapping

from reshard.errors import LayoutError, StrategyError
from reshard.layout.tensor import Layout
from reshard.strategy.file import LayoutItem, Operator
from reshard.strategy.json_file import encode_json_layout, encode_json_made, write_json
from reshard.strategy.placing import Stages
from reshard.strategy.protobuf import encode_layout, encode_made, write_protobuf

Encoded = tuple[Operator, dict[str, LayoutItem]]


def made_files(stages: Stages, devices: int, *, merged: bool, json_format: bool) -> Mapping[str, bytes]:
    """File names with their bytes: one file for each rank, or one of all stages."""
    suffix = ".json" if json_format else ".ckpt"
    encoded = [_encoded(stage, layouts, json_format=json_format) for stage, layouts in enumerate(stages)]
    write = write_json if json_format else write_protobuf
    if merged:
        operators = [operator for operator, _ in encoded]
        layouts = {f"{stage}-{name}": item for stage, (_, items) in enumerate(encoded) for name, item in items.items()}
        return {f"merged_ckpt_strategy{suffix}": write(operators, layouts, 1)}
    made = {}
    for stage, (operator, items) in enumerate(encoded):
        content = write([operator], items, 1)
        for rank in range(stage * devices, (stage + 1) * devices):
            made[f"ckpt_strategy_rank_{rank}{suffix}"] = content
    return made


def _encoded(stage: int, layouts: Mapping[str, Layout], *, json_format: bool) -> Encoded:
    operator = encode_made(stage)
    if json_format:
        return encode_json_made(operator), {name: _json(name, layout) for name, layout in layouts.items()}
    return operator, {name: encode_layout(layout.sharding) for name, layout in layouts.items()}


def _json(name: str, layout: Layout) -> LayoutItem:
    try:
        return encode_json_layout(layout)
    except LayoutError as error:
        raise StrategyError(f"{name}: {error.message}") from error
