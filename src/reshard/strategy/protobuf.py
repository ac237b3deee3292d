"""Strategy files in protobuf, as MindSpore's compiler writes them (``ckpt_strategy_rank_x.ckpt``).

    ParallelStrategyMap  { current_stage = 1; ParallelStrategyItem = 2 …; ParallelLayoutItem = 3 … }
    ParallelStrategyItem { node_name = 1; ParallelStrategys { stage = 1; ParallelStrategy { dim = 1 … } = 2 … } = 2 }
    ParallelLayoutItem   { param_name = 1; ParallelLayouts = 2 }
    ParallelLayouts      { dev_matrix = 1; tensor_map = 2; param_split_shape = 3; indices_offset = 4;
                           field = 5; opt_weight_shard_step = 6; opt_weight_shard_size = 7 }

One TensorMap means one axis a dim; several mean one message a dim, in which a 1-d tensor has an empty one more.
Source: MindSpore 2.7.2, node_strategy.proto and parallel/_parallel_serialization.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from reshard.errors import FormatError, LayoutError, StrategyError
from reshard.layout.tensor import Sharding
from reshard.strategy.file import MARK, LayoutItem, Operator, StrategyFile
from reshard.wire import bytes_field, fields, packed_or_single, signed, varint_field


def read_protobuf(data: bytes, path: str) -> StrategyFile:
    """Raises StrategyError."""
    operators: list[Operator] = []
    layouts: dict[str, LayoutItem] = {}
    known: dict[bytes, Sharding] = {}  # thousands of tensors are cut in a few ways
    try:
        for number, value in fields(data):
            if number == 2 and isinstance(value, bytes):
                operators.append(_operator(value))
            elif number == 3 and isinstance(value, bytes):
                name, body = _named(value)
                if name in layouts:
                    raise StrategyError(f"tensor {name!r} stands there twice", where=path)
                if body not in known:
                    known[body] = _sharding(name, body)
                layouts[name] = LayoutItem(known[body], body)
            elif number not in (1, 4, 5, 6):  # later releases add items that say nothing of weights
                raise StrategyError(f"unknown field {number}", where=path, hint=_HINT)
    except (FormatError, LayoutError) as error:
        raise StrategyError(f"not a strategy file: {error.message}", where=path, hint=_HINT) from error
    except StrategyError as error:
        raise StrategyError(error.message, where=path, hint=error.hint or _HINT) from error
    return StrategyFile(path, "ckpt", tuple(operators), layouts)


_HINT = "give a ckpt_strategy_rank_x.ckpt, a merged strategy file, or their folder; reshard inspect reads checkpoints"


def write_protobuf(operators: Iterable[Operator], layouts: Mapping[str, LayoutItem], current_stage: int) -> bytes:
    """The file that holds these entries, as they are."""
    out = [varint_field(1, current_stage)]
    out += [bytes_field(2, op.body) for op in operators]
    out += [bytes_field(3, bytes_field(1, name.encode()) + bytes_field(2, item.body)) for name, item in layouts.items()]
    return b"".join(out)


def encode_made(stage: int) -> Operator:
    """The operator entry of a strategy that we made; it tells MindSpore the stage."""
    name = f"{MARK}_stage_{stage}"
    body = bytes_field(1, name.encode()) + bytes_field(2, varint_field(1, stage))
    return Operator(name, stage, body)


def encode_layout(sharding: Sharding) -> LayoutItem:
    maps = [list(axes) or [-1] for axes in sharding.tensor_map]
    if all(len(m) == 1 for m in maps):
        maps = [[m[0] for m in maps]]
    elif len(maps) == 1:
        maps.append([])
    step = opt_shard_step(sharding)
    body = _dims(1, sharding.device_matrix)
    body += b"".join(_dims(2, m) for m in maps)
    body += _dims(3, ()) + _dims(4, ())
    body += varint_field(5, 0) + varint_field(6, step) + varint_field(7, sharding.opt_shard if step else 0)
    return LayoutItem(sharding, body)


def opt_shard_step(sharding: Sharding) -> int:
    """Distance of consecutive replicas as MindSpore writes it: (last - first) / (count - 1); 0 where nothing is
    shared.
    """
    if sharding.opt_parts == 1:
        return 0
    bare = Sharding(sharding.device_matrix, sharding.tensor_map)
    group = next(iter(bare.holders().values()))
    return (group[-1] - group[0]) // (len(group) - 1)


def _dims(number: int, values: Iterable[int]) -> bytes:
    return bytes_field(number, b"".join(varint_field(1, v) for v in values))


def _named(data: bytes) -> tuple[str, bytes]:
    """A message of a name and a body."""
    name, body = None, None
    for number, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            name = value
        elif number == 2 and isinstance(value, bytes):
            body = value
    if name is None or body is None:
        raise StrategyError("an entry without name or body")
    try:
        return name.decode(), body
    except UnicodeDecodeError:
        raise StrategyError("a name is not UTF-8") from None


def _operator(data: bytes) -> Operator:
    name, body = _named(data)
    stage = next((v for k, v in fields(body) if k == 1 and isinstance(v, int)), 0)
    return Operator(name, stage, data)


def _sharding(name: str, body: bytes) -> Sharding:
    lists: dict[int, list[tuple[int, ...]]] = {1: [], 2: [], 3: [], 4: []}
    numbers = {5: 0, 6: 0, 7: 0}
    for number, value in fields(body):
        if number in lists and isinstance(value, bytes):
            lists[number].append(_ints(value))
        elif number in numbers and isinstance(value, int):
            numbers[number] = signed(value)
        else:
            raise StrategyError(f"tensor {name!r} has an unknown field {number}")
    return sharding_of(name, lists, numbers)


def sharding_of(name: str, lists: Mapping[int, list[tuple[int, ...]]], numbers: Mapping[int, int]) -> Sharding:
    """The cut that the fields of a ``ParallelLayouts`` mean, by number. Raises StrategyError naming the tensor."""
    refuse_manual_split(name, numbers[5], any(lists[3]) or any(lists[4]))
    if len(lists[1]) != 1 or not lists[2]:
        raise StrategyError(f"tensor {name!r} has {len(lists[1])} device matrices and {len(lists[2])} tensor maps")
    if len(lists[2]) == 1:
        tensor_map: tuple[tuple[int, ...], ...] = tuple((v,) for v in lists[2][0])
    else:
        tensor_map = tuple(m for m in lists[2] if m)
    return sharding(name, lists[1][0], tensor_map, numbers[7])


def sharding(name: str, matrix: tuple[int, ...], tensor_map: tuple[tuple[int, ...], ...], opt_shard: int) -> Sharding:
    """The cut that a file's numbers mean: -1 in a map is uncut. Raises StrategyError naming the tensor."""
    try:
        return Sharding(matrix, tuple(tuple(a for a in dim if a != -1) for dim in tensor_map), opt_shard)
    except LayoutError as error:
        raise StrategyError(f"tensor {name!r}: {error.message}") from error


def refuse_manual_split(name: str, field: int, split: bool) -> None:
    if field or split:
        raise StrategyError(
            f"tensor {name!r} is split by hand into unequal rows (field, param_split_shape), which is not supported"
        )


def _ints(data: bytes) -> tuple[int, ...]:
    return tuple(signed(v) for number, value in fields(data) for v in packed_or_single(value) if number == 1)
