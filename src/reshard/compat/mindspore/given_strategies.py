"""A strategy as an argument: a path, or the dict that MindSpore makes of one or of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reshard.compat.mindspore.calls import check_strategy_path, reference_errors
from reshard.errors import StrategyError
from reshard.layout.stages import Strategy
from reshard.layout.tensor import Sharding
from reshard.strategy.file import LayoutItem, StrategyFile
from reshard.strategy.folder import of_file
from reshard.strategy.protobuf import encode_layout, sharding_of


def given_strategy(given: object, argument: str) -> str | Strategy:
    """The path of a strategy, or what a dict says; "" for None.

    Its values are those of ``build_searched_strategy``, or lists as ``infer_predict_layout`` gives them: device matrix,
    tensor map, shape of a slice, field, and what tells of an optimizer shard.

    Raises:
        TypeError: neither a path nor a dict of parameters.
        ValueError: a path that is not there, a value of another kind.
    """
    if not isinstance(given, Mapping):
        check_strategy_path(given, argument)
        return str(given or "")
    if not given or not all(isinstance(name, str) for name in given):
        raise TypeError(f"{argument} should be a dict of parameters by name")
    with reference_errors():
        return of_file(StrategyFile(argument, "ckpt", (), {name: _item(name, v) for name, v in given.items()}))


def _item(name: str, value: Any) -> LayoutItem:
    cut = _of_message(name, value) if hasattr(value, "dev_matrix") else _of_list(name, value)
    return encode_layout(cut)


def _of_message(name: str, value: Any) -> Sharding:
    fields = (value.dev_matrix, value.tensor_map, value.param_split_shape, value.indices_offset)
    lists = {number: [tuple(dims.dim) for dims in field] for number, field in enumerate(fields, start=1)}
    return sharding_of(name, lists, {5: value.field, 7: value.opt_weight_shard_size})


def _of_list(name: str, value: Any) -> Sharding:
    if not isinstance(value, Sequence) or len(value) < 4 or not all(isinstance(v, Sequence) for v in value[:2]):
        raise StrategyError(f"{name}: expected a list of device matrix, tensor map, shape of a slice and field")
    matrix, tensor_map, _, field, *rest = value
    if rest[1:] and rest[1]:
        raise StrategyError(
            f"{name}: its optimizer shard is known as the group {rest[1]!r} only",
            hint="give the strategy file of the job instead",
        )
    maps = [tuple(axes) if isinstance(axes, Sequence) else (axes,) for axes in tensor_map]
    lists = {1: [tuple(matrix)], 2: [*maps, ()], 3: [], 4: []}
    return sharding_of(name, lists, {5: field, 7: 0})
