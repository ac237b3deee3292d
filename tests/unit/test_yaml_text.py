"""YAML of strangers: aliases may not stand for more than memory holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import reshard
from reshard.errors import InputError
from reshard.yaml_text import read_own_yaml, read_yaml, text_of


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


ODD = (
    "", "# nothing\n", "a", "- - - 1\n  - 2\n", "a:\n- b:\n  - c: [1, {d: e}]\n", "{a: 1, b: [x, y]}", "a: !!str 1",
    "a: 1e3\nb: 1.0e+3", "a: yes\nb: 0o7\nc: 017\nd: 1:30\ne: 0x1f\nf: .inf\ng: ~", "a: 2001-01-01\n",
    "a: |\n  x\n   y\nb: >-\n  x\n  y\n", "? a\n: b\n", '"a\\u00e9": \'it\'\'s\'', "a: b: c", "a: [1", "\ta: 1",
    "a: b\tc", "{a: b?c}", "!", "a: *b", "a: 1\na: 2", "--- 1\n--- 2\n", "%YAML 1.1\n---\na: 1\n",
    "a: http://x/y?z#w", "a: b #c", "{a:1}",
    "{a: b:c}", "[a, b: c]", "a: \x07", "权重: 检查点", "a: \U0001f600", "<<: {a: 1}\nb: 2", "a: '\n\n  b'",
)  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_the_fast_reader_and_the_careful_one_agree(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> str:
        try:
            return repr(read_yaml(text))
        except InputError as error:
            return error.message

    fast = told()
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert told() == fast


@pytest.mark.parametrize("text", ["- " * 100_000, "? " * 100_000, "[" * 100_000, "{a: " * 100_000])
def test_what_is_nested_without_end_is_told(text: str) -> None:
    with pytest.raises(InputError):
        read_yaml(text)


def test_the_mark_of_some_editors_is_no_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text('{"a": 1}', "utf-8-sig")
    assert text_of(tmp_path / "run.yaml") == '{"a": 1}'


def test_text_in_other_bytes_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("a: 1", "utf-16")
    with pytest.raises(InputError, match="text in UTF-16") as caught:
        text_of(tmp_path / "run.yaml")
    assert (caught.value.where, caught.value.hint) == (str(tmp_path / "run.yaml"), "save it as UTF-8")
