from __future__ import annotations

import pytest

from reshard.errors import StrategyError
from reshard.layout.tensor import Sharding
from reshard.strategy.file import Operator
from reshard.strategy.protobuf import encode_layout, encode_made, opt_shard_step, read_protobuf, write_protobuf
from reshard.wire import bytes_field, fields, varint_field

SHARDINGS = {
    "plain": Sharding((2, 2), ((1,), (0,))),
    "uncut": Sharding((2, 2), ((), ())),
    "scalar": Sharding((2, 2), ()),
    "vector": Sharding((2, 2), ((0,),)),
    "two axes on a vector": Sharding((2, 2), ((1, 0),)),
    "two axes on a dim": Sharding((2, 2, 1), ((2, 1), ())),
    "names-with-dash": Sharding((4, 1), ((0,), ())),
    "shared by all": Sharding((4,), ((), ()), -1),
    "shared by two": Sharding((4, 1), ((0,),), 2),
}


def layout(
    matrix: tuple[int, ...] = (2,), maps: tuple[tuple[int, ...], ...] = ((0,),), name: bytes = b"w", more: bytes = b""
) -> bytes:
    """A strategy file of one tensor, of whatever these say."""
    dims = [bytes_field(1, b"".join(varint_field(1, n) for n in matrix))]
    dims += [bytes_field(2, b"".join(varint_field(1, n) for n in m)) for m in maps]
    return bytes_field(3, bytes_field(1, name) + bytes_field(2, b"".join(dims) + more))


def entry(data: bytes) -> Sharding:
    found = read_protobuf(data, "f.ckpt").layouts["w"].entry
    assert isinstance(found, Sharding)
    return found


@pytest.mark.parametrize("name", SHARDINGS)
def test_there_and_back(name: str) -> None:
    data = write_protobuf([encode_made(1)], {name: encode_layout(SHARDINGS[name])}, 1)
    found = read_protobuf(data, "f.ckpt")
    assert found.layouts[name].entry == SHARDINGS[name]
    assert found.stage == 1
    assert found.marked


def test_what_is_read_is_written_as_it_was() -> None:
    """Entries that we do not understand, as an operator's, are kept byte for byte."""
    body = bytes_field(1, b"MatMul-op0") + bytes_field(2, varint_field(1, 3) + bytes_field(9, b"later"))
    data = varint_field(1, 3) + bytes_field(2, body) + layout()
    found = read_protobuf(data, "f.ckpt")
    assert found.operators == (Operator("MatMul-op0", 3, body),)
    assert write_protobuf(found.operators, found.layouts, 3) == data


def test_one_tensor_map_is_one_axis_a_dim() -> None:
    assert entry(layout((2, 2), ((1, -1, 0),))).tensor_map == ((1,), (), (0,))


def test_several_tensor_maps_are_one_a_dim() -> None:
    assert entry(layout((2, 2, 2), ((2, 0), (-1,), (1,)))).tensor_map == ((2, 0), (), (1,))


def test_a_vector_of_several_axes_has_an_empty_map_more() -> None:
    assert entry(layout((2, 2), ((1, 0), ()))).tensor_map == ((1, 0),)


def test_optimizer_shard_is_field_7() -> None:
    assert entry(layout((2, 2), ((0,),), more=varint_field(7, 2))).opt_shard == 2
    assert entry(layout((2, 2), ((0,),), more=varint_field(7, -1))).opt_shard == -1


@pytest.mark.parametrize(
    ("sharding", "step"),
    [
        (Sharding((2, 2), ((0,),)), 0),
        (Sharding((2, 2), ((0,),), 1), 0),
        (Sharding((2, 2), ((0,),), -1), 2),
        (Sharding((4, 2), ((0,),), 2), 2),
        (Sharding((2, 2), ((1,),), -1), 1),
    ],
)
def test_optimizer_shard_step_as_mindspore_writes_it(sharding: Sharding, step: int) -> None:
    assert opt_shard_step(sharding) == step
    body = encode_layout(sharding).body
    assert dict(fields(body))[6] == step


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "describes no tensor"),
        (b"\x0a", "not a strategy file"),
        (varint_field(9, 1), "unknown field 9"),
        (layout() + layout(), "tensor 'w' stands there twice"),
        (layout(name=b"\xff\xfe"), "not UTF-8"),
        (bytes_field(3, bytes_field(1, b"w")), "without name or body"),
        (layout(maps=()), "1 device matrices and 0 tensor maps"),
        (layout((2,), ((1,),)), "tensor 'w': tensor map .* outside"),
        (layout((2, 0), ((1,),)), "tensor 'w': device matrix .* below 1"),
        (layout((2, 2), ((0, 0),)), "tensor 'w': .* twice"),
        (layout((2, 2), ((0,),), more=varint_field(7, 3)), "tensor 'w': .* does not divide the 2 replicas"),
        (layout(more=varint_field(5, 64)), "tensor 'w' is split by hand"),
        (layout(more=bytes_field(3, varint_field(1, 4))), "tensor 'w' is split by hand"),
        (layout(more=varint_field(8, 1)), "tensor 'w' has an unknown field 8"),
    ],
)
def test_what_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(StrategyError, match=said) as caught:
        read_protobuf(data, "f.ckpt")
    assert caught.value.where == "f.ckpt"


def test_every_truncation_is_told_or_ends_between_entries() -> None:
    data = write_protobuf([encode_made(0)], {n: encode_layout(s) for n, s in SHARDINGS.items()}, 0)
    for nbytes in range(len(data)):
        try:
            assert len(read_protobuf(data[:nbytes], "f.ckpt").layouts) < len(SHARDINGS)
        except StrategyError:
            continue
