from __future__ import annotations

import pytest

from reshard.families.part_names import lone_parts, part_of, wholes


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model-00001-of-00003.safetensors", "part 1 of 3"),
        ("pytorch_model-00002-of-00033.bin", "part 2 of 33"),
        ("model_1_of_2.ckpt", "part 1 of 2"),
        ("model.3of4.ckpt", "part 3 of 4"),
        ("m-07-OF-12-fp16.safetensors", "part 7 of 12"),
        ("shard-00002-model-00001-of-00004.safetensors", "part 1 of 4"),
        ("s3://b/x-9-of-9/model 2 of 3.ckpt", "part 2 of 3"),
        ("v2-0000-of-0002.ckpt", "part 0 of 2"),
    ],
)
def test_names_of_parts(name: str, said: str) -> None:
    assert str(part_of(name)) == said


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model-00001-of-00001.safetensors",
        "a-1_10.ckpt",
        "proof-3.ckpt",
        "part0.safetensors",
        "of.ckpt",
    ],
)
def test_names_that_speak_of_no_others(name: str) -> None:
    assert part_of(name) is None


P = "model-0000{}-of-00003.safetensors"


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ([P.format(1), P.format(2), P.format(3)], ()),
        ([P.format(1), P.format(3)], (P.format(2),)),
        ([P.format(2)], (P.format(1), P.format(3))),
        (["x-00000-of-00003.ckpt", "x-00002-of-00003.ckpt"], ("x-00001-of-00003.ckpt",)),
        (["x_0of3.ckpt", "x_1of3.ckpt", "x_2of3.ckpt"], ()),
        (["x 1 of 3.ckpt", "x 2 of 3.ckpt"], ("x 3 of 3.ckpt",)),
        (["part0.safetensors", "part1.safetensors"], ()),
        (["part0.safetensors", "part2.safetensors"], ("part1.safetensors",)),
        (["part1.safetensors"], ("part0.safetensors",)),
        (["m-1.ckpt", "m-2.ckpt", "m-4.ckpt"], ("m-3.ckpt",)),
        (["m-09.ckpt"], ()),
    ],
)
def test_one_whole_and_what_it_lacks(names: list[str], missing: tuple[str, ...]) -> None:
    (found,) = wholes(names)
    assert (found.names, found.missing) == (tuple(names), missing)


@pytest.mark.parametrize(
    "names",
    [
        ["consolidated.safetensors", "model.safetensors"],
        ["model.safetensors", "model.fp16.safetensors"],
        ["a-1_10.ckpt", "a-1_20.ckpt"],
        ["step-1.ckpt", "step-1000.ckpt"],
        ["m-1.ckpt", "m-1.safetensors"],
        ["x-1-of-2.ckpt", "y-2-of-2.ckpt"],
        ["x-1-of-2.ckpt", "x-1-of-3.ckpt"],
    ],
)
def test_names_that_tell_checkpoints_apart(names: list[str]) -> None:
    assert len(wholes(names)) == 2


def test_parts_that_are_alone() -> None:
    assert lone_parts([f"a/{P.format(1)}", f"a/{P.format(2)}", "b.ckpt"], "out") == []
    assert lone_parts([f"a/{P.format(1)}", f"b/{P.format(2)}"], "out") == [
        f"a/{P.format(1)}: part 1 of 3",
        f"b/{P.format(2)}: part 2 of 3",
    ]


def test_a_part_may_become_the_same_part() -> None:
    assert lone_parts([f"a/{P.format(1)}"], "out/x_1_of_3.ckpt") == []
    assert lone_parts([f"a/{P.format(1)}"], "out/x_2_of_3.ckpt") != []
