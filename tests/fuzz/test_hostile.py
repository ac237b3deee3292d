"""Damaged and hostile files: our errors alone come out, in time, without more memory than such a file may ask for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from random import Random

import pytest

from fuzz import readers
from fuzz.readers import MAX_NBYTES, READERS, Hang, Read, Reader, attempt, one
from thorough import TIMES

BY_NAME = {reader.name: reader for reader in READERS}


@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.name)
def test_the_seed_itself_is_read(reader: Reader, tmp_path: Path) -> None:
    assert attempt(reader, reader.seed, tmp_path / "x") == "read"


def changed(reader: Reader, path: tuple[str | int, ...], value: object) -> bytes:
    content = node = json.loads(reader.seed)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return json.dumps(content).encode()


RUN = ("files", 0, "runs", 0)
LAYOUT = ("parallel_layout_item", "w")
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("name", "path", "value", "said"),
    [
        ("manifest.json", (*RUN, "nbytes"), -1, "InputError"),
        ("manifest.json", (*RUN, "nbytes"), 1 << 62, "InputError"),
        ("manifest.json", ("files", 0, "runs"), [], "InputError"),
        ("manifest.json", ("files", 0, "path"), "x" * 300, "StorageError"),
        ("manifest.json", ("files", 0, "path"), "../../../../../../etc/passwd", "InputError"),
        ("manifest.json", ("files", 0, "path"), "/etc/passwd", "InputError"),
        ("manifest.json", ("files", 0, "path"), "a\0b", "DifferenceError"),
        ("manifest.json", ("tables", 0, "files"), [1 << 62], "InputError"),
        ("manifest.json", ("tables", 0, "files"), [0, 0], "InputError"),
        ("manifest.json", ("tables", 0, "tensors"), [], "InputError"),
        ("strategy.json", (*LAYOUT, "dev_matrix"), [1 << 40], "StrategyError"),
        ("strategy.json", (*LAYOUT, "dev_matrix"), [1 << 10] * 4, "StrategyError"),
        ("strategy.json", (*LAYOUT, "dev_matrix"), [1] * 100_000, "StrategyError"),
        ("strategy.json", (*LAYOUT, "opt_weight_shard_size"), 1 << 60, "StrategyError"),
        ("strategy.json", (*LAYOUT, "tensor_shape"), [1 << 62, 1 << 62], "read"),
        ("strategy.json", ("parallel_layout_item", "\ud800"), {}, "StrategyError"),
    ],
)
def test_numbers_that_are_too_large(
    name: str, path: tuple[str | int, ...], value: object, said: str, tmp_path: Path
) -> None:
    assert attempt(BY_NAME[name], changed(BY_NAME[name], path, value), tmp_path / "x") == said


@pytest.mark.parametrize("name", ["run.yaml", "job.yaml", "family.yaml"])
@pytest.mark.parametrize(
    "text",
    [BOMB, "a: " + "[" * 3000, "a: " + "[" * 60, "- " * 3000, "a: 2026-13-45", "a: !!int x", "a: !!timestamp x",
     "a: 1" + "0" * 5000, "a: !!python/object/apply:os.system [ls]", "? {a: b}\n: c", "a: &a [*a]", "a: .inf", "\0",
     "a: \ud83d"],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_yaml_that_is_odd(name: str, text: str, tmp_path: Path) -> None:
    attempt(BY_NAME[name], text.encode("utf-8", "surrogatepass"), tmp_path / "x")


@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.name)
def test_mutations(reader: Reader, tmp_path: Path) -> None:
    """Nothing would shrink a seed: a loop is enough."""
    for seed in range(15 * TIMES):
        try:
            one(reader, Random(f"{reader.name} {seed}"), tmp_path / "x")
        except (Exception, Hang) as error:
            raise AssertionError(f"seed {seed}") from error


def _for_ever(path: Path) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("limit", "read"), [("MAX_S", _for_ever), ("MAX_WAIT_S", lambda path: time.sleep(60))], ids=["busy", "waiting"]
)
def test_a_reader_that_does_not_end_would_be_seen(
    limit: str, read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, limit, 0.2)
    with pytest.raises(Hang):
        attempt(Reader("run.yaml", read), b"", tmp_path / "x")


def test_a_reader_that_takes_much_memory_would_be_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="bytes of memory for a file of 3"):
        attempt(Reader("run.yaml", lambda path: b"x" * (4 * MAX_NBYTES)), b"abc", tmp_path / "x")
