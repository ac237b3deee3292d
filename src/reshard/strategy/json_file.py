"""Strategy files in JSON. They state ``tensor_shape`` and flatten a dim that several axes cut into several dims
(see Factored).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from reshard.errors import LayoutError, StrategyError
from reshard.layout.stages import AnySharding, Factored
from reshard.layout.tensor import Layout
from reshard.strategy.file import LayoutItem, Operator, StrategyFile
from reshard.strategy.protobuf import opt_shard_step, refuse_manual_split, sharding


def read_json(data: bytes, path: str) -> StrategyFile:
    """Raises StrategyError."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StrategyError(f"not JSON: {error}", where=path) from None
    if not isinstance(content, dict) or not isinstance(content.get("parallel_layout_item"), dict):
        raise StrategyError("no parallel_layout_item", where=path, hint="is this a strategy file?")
    operators = content.get("parallel_strategy_item", {})
    if not isinstance(operators, dict):
        raise StrategyError("parallel_strategy_item is not a map", where=path)
    try:
        return StrategyFile(
            path,
            "json",
            tuple(_operator(name, body) for name, body in operators.items()),
            {
                name: LayoutItem(_entry(name, body), json.dumps(body).encode())
                for name, body in content["parallel_layout_item"].items()
            },
        )
    except (StrategyError, LayoutError) as error:
        raise StrategyError(error.message, where=path, hint=error.hint) from error


def write_json(operators: Iterable[Operator], layouts: Mapping[str, LayoutItem], current_stage: int) -> bytes:
    """The file that holds these entries, as they are."""
    content = {
        "current_stage": current_stage,
        "parallel_strategy_item": {op.name: json.loads(op.body) for op in operators},
        "parallel_layout_item": {name: json.loads(item.body) for name, item in layouts.items()},
    }
    return json.dumps(content).encode()


def encode_json_layout(layout: Layout) -> LayoutItem:
    """The flattened entry of a tensor: all axes of a dim but the last become dims of their own."""
    matrix = layout.sharding.device_matrix
    shape: list[int] = []
    flat: list[int] = []
    for size, axes in zip(layout.shape, layout.sharding.tensor_map, strict=True):
        for axis in axes[:-1]:
            shape.append(matrix[len(matrix) - 1 - axis])
            flat.append(axis)
            size //= shape[-1]
        shape.append(size)
        flat.append(axes[-1] if axes else -1)
    step = opt_shard_step(layout.sharding)
    body = {
        "dev_matrix": list(matrix),
        "tensor_map": flat,
        "tensor_shape": shape,
        "field": 0,
        "opt_weight_shard_step": step,
        "opt_weight_shard_size": layout.sharding.opt_shard if step else 0,
    }
    return LayoutItem(layout.sharding, json.dumps(body).encode())


def encode_json_made(operator: Operator) -> Operator:
    body = json.dumps({"stage": operator.stage, "parallel_strategy": []}).encode()
    return Operator(operator.name, operator.stage, body)


def _operator(name: str, body: Any) -> Operator:
    stage = body.get("stage", 0) if isinstance(body, dict) else None
    if type(stage) is not int or stage < 0:
        raise StrategyError(f"operator {name!r} has no stage")
    return Operator(name, stage, json.dumps(body).encode())


def _ints(name: str, body: dict[str, Any], key: str) -> tuple[int, ...]:
    value = body.get(key)
    if not isinstance(value, list) or not all(type(n) is int for n in value):
        raise StrategyError(f"tensor {name!r} has {key} {value!r}, expected a list of integers")
    return tuple(value)


def _entry(name: str, body: Any) -> AnySharding:
    if not name.isprintable() and any("\ud800" <= c <= "\udfff" for c in name):
        raise StrategyError(f"{name!r} is not Unicode")
    if not isinstance(body, dict):
        raise StrategyError(f"tensor {name!r} is not described by a map")
    opt_shard = body.get("opt_weight_shard_size", 0)
    if type(opt_shard) is not int:
        raise StrategyError(f"tensor {name!r} has opt_weight_shard_size {opt_shard!r}")
    split = bool(body.get("param_split_shape") or body.get("indices_offset"))
    refuse_manual_split(name, body.get("field") or 0, split)
    tensor_map = tuple((axis,) for axis in _ints(name, body, "tensor_map"))
    made = sharding(name, _ints(name, body, "dev_matrix"), tensor_map, opt_shard)
    if "tensor_shape" not in body:
        return made
    shape = _ints(name, body, "tensor_shape")
    if len(shape) != len(tensor_map):
        raise StrategyError(f"tensor {name!r} has {len(tensor_map)} tensor_map entries, tensor_shape {list(shape)}")
    return Factored(shape, made)
