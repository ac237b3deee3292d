"""YAML of strangers: aliases may not stand for more than memory holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import reshard
from reshard.errors import InputError
from reshard.yaml_text import read_own_yaml, read_yaml


def test_aliases_and_merges() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: *a\nc: {<<: *a, x: 2}\nd: &d []\n"
    once = {"x": 1, "y": [1, 2]}
    assert read_yaml(text) == {"a": once, "b": once, "c": {"x": 2, "y": [1, 2]}, "d": []}


def test_a_few_lines_that_stand_for_billions_of_values() -> None:
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 11)]
    with pytest.raises(InputError, match="more than 1,000,000 values"):
        read_yaml("a0: &a0 [1]\n" + "".join(lines))
    assert len(read_yaml("a0: &a0 [1]\n" + "".join(lines[:4]))) == 5


@pytest.mark.parametrize("text", ["&a [*a]", "a: &a {b: {c: *a}}"])
def test_a_value_within_itself(text: str) -> None:
    with pytest.raises(InputError, match="one within itself"):
        read_yaml(text)


@pytest.mark.parametrize("read", [read_yaml, read_own_yaml])
def test_what_is_no_yaml_is_told_by_line(read: Callable[[str], object]) -> None:
    with pytest.raises(InputError, match=r"(?s)not YAML: .*line 2"):
        read("a: 1\nb: [1\n")


@pytest.mark.parametrize("path", sorted(Path(reshard.__file__).parent.rglob("*.yaml")), ids=lambda path: path.name)
def test_the_fast_reader_reads_what_is_ours_as_the_careful_one(path: Path) -> None:
    text = path.read_text("utf-8")
    assert read_own_yaml(text) == read_yaml(text)
