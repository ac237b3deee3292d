from __future__ import annotations

import json
from typing import Any

import pytest

from reshard.errors import StrategyError
from reshard.layout.stages import Factored, layout_of_full, layout_of_shard
from reshard.layout.tensor import Layout, Sharding
from reshard.strategy.json_file import encode_json_layout, encode_json_made, read_json, write_json
from reshard.strategy.protobuf import encode_made

LAYOUTS = {
    "plain": Layout((8, 12), Sharding((2, 2), ((1,), (0,)))),
    "uncut": Layout((8, 12), Sharding((2, 2), ((), ()))),
    "two axes on a dim": Layout((8, 12), Sharding((2, 2), ((1, 0), ()))),
    "two axes on a vector": Layout((8,), Sharding((2, 2), ((0, 1),))),
    "three axes": Layout((3, 16), Sharding((2, 2, 2), ((), (2, 0, 1)))),
    "shared": Layout((8, 12), Sharding((2, 2), ((1,), ()), -1)),
    "scalar": Layout((), Sharding((2, 2), ())),
}


def file(body: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"current_stage": 0, "parallel_layout_item": {"w": body}, **more}).encode()


BODY = {"dev_matrix": [2, 2], "tensor_map": [1, 0], "tensor_shape": [8, 12], "opt_weight_shard_size": 0}


def entry(body: dict[str, Any]) -> Any:
    return read_json(file(body), "f.json").layouts["w"].entry


@pytest.mark.parametrize("name", LAYOUTS)
def test_there_and_back_by_full_shape_and_by_shard_shape(name: str) -> None:
    layout = LAYOUTS[name]
    made = encode_json_made(encode_made(0))
    data = write_json([made], {name: encode_json_layout(layout)}, 0)
    found = read_json(data, "f.json").layouts[name].entry
    assert isinstance(found, Factored)
    assert layout_of_full(found, layout.shape) == layout
    assert layout_of_shard(found, layout.shard_shape) == layout


def test_axes_of_one_dim_are_flattened_into_dims() -> None:
    body = json.loads(encode_json_layout(LAYOUTS["three axes"]).body)
    assert body["tensor_map"] == [-1, 2, 0, 1]
    assert body["tensor_shape"] == [3, 2, 2, 4]


def test_a_flattening_that_may_mean_two_things_is_refused() -> None:
    body = {**BODY, "dev_matrix": [2, 2, 2], "tensor_map": [2, 1, 0], "tensor_shape": [2, 2, 4]}
    with pytest.raises(StrategyError, match=r"3 factors \[2, 2, 4\] gives 2 cuts of shape \[4, 4\]"):
        layout_of_full(entry(body), (4, 4))


def test_the_stated_size_tells_what_a_flattening_means() -> None:
    body = {**BODY, "dev_matrix": [2, 2, 2], "tensor_map": [2, 1, 0], "tensor_shape": [2, 2, 8]}
    assert layout_of_full(entry(body), (2, 16)).sharding.tensor_map == ((2,), (1, 0))


def test_a_flattening_that_fits_no_shape_is_refused() -> None:
    with pytest.raises(StrategyError, match="gives no cut of shape"):
        layout_of_full(entry(BODY), (8, 12, 3))


def test_without_shape_a_map_is_one_axis_a_dim() -> None:
    body = {k: v for k, v in BODY.items() if k != "tensor_shape"}
    assert entry(body) == Sharding((2, 2), ((1,), (0,)))


def test_what_is_read_is_written_as_it_was() -> None:
    body = {**BODY, "later": [1, 2]}
    found = read_json(file(body, parallel_strategy_item={"op": {"stage": 2, "x": 1}}), "f.json")
    assert found.stage == 2
    again = json.loads(write_json(found.operators, found.layouts, 2))
    assert again["parallel_layout_item"] == {"w": body}
    assert again["parallel_strategy_item"] == {"op": {"stage": 2, "x": 1}}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "no parallel_layout_item"),
        (b'{"parallel_layout_item": []}', "no parallel_layout_item"),
        (b'{"parallel_layout_item": {}}', "describes no tensor"),
        (file(BODY, parallel_strategy_item=[]), "parallel_strategy_item"),
        (file(BODY, parallel_strategy_item={"op": {"stage": "x"}}), "operator 'op' has no stage"),
        (file(BODY, parallel_strategy_item={"op": 5}), "operator 'op' has no stage"),
        (file([1]), "'w'"),  # type: ignore[arg-type]
        (file({}), "tensor 'w' has tensor_map None"),
        (file({**BODY, "dev_matrix": [2, "2"]}), "tensor 'w' has dev_matrix"),
        (file({**BODY, "tensor_map": [1.0, 0]}), "tensor 'w' has tensor_map"),
        (file({**BODY, "tensor_map": [5, 0]}), "tensor 'w': .* outside"),
        (file({**BODY, "tensor_shape": [8]}), "tensor 'w' has 2 tensor_map entries"),
        (file({**BODY, "opt_weight_shard_size": "2"}), "tensor 'w' has opt_weight_shard_size"),
        (file({**BODY, "opt_weight_shard_size": 3}), "tensor 'w': .* does not divide"),
        (file({**BODY, "field": 4}), "tensor 'w' is split by hand"),
        (file({**BODY, "param_split_shape": [4, 4]}), "tensor 'w' is split by hand"),
    ],
)
def test_what_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(StrategyError, match=said) as caught:
        read_json(data, "f.json")
    assert caught.value.where == "f.json"
