"""The command lines that were recorded with the reference, replayed: the same files in the same places."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from golden.cases import NAMES, Case, faults, nearly, unpack
from golden.readers import Value, read_weights, tensor_names

COMMANDS = [n for n in NAMES if n.startswith("mfcli_") or (n.startswith("lora_") and not n.endswith("_to_full"))]
REFUSED = {"lora_err_b_missing", "lora_err_base_missing"}
STANDS_IN = {"mfcli_err_missing_rank"}
"""The reference wants a file of every rank; ours takes replicas, with a warning."""


def prepared(name: str, folder: Path) -> tuple[Case, list[str]]:
    """The case with nothing of the answer left where the command runs, and the words of its command."""
    case = unpack(name, folder / "case")
    work = folder / "work"
    ignored = shutil.ignore_patterns("expected*", "*merged_ckpt_strategy.ckpt", "case.json")
    shutil.copytree(case.folder, work, ignore=ignored)
    words = shlex.split(case.about["call"], comments=True)
    return Case(name, work, case.about), words


def run(words: list[str]) -> int:
    script = next(i for i, w in enumerate(words) if w.endswith(".py"))
    code: int = import_module(f"reshard.compat.{Path(words[script]).stem}").main(words[script + 1 :])
    return code


def judge(made: Path, answer: Path, without: set[str], *, lora: bool) -> list[str]:
    theirs = {str(p.relative_to(answer)) for p in answer.rglob("*") if p.is_file()}
    if lora:  # the reference leaves the whole weights with LoRA behind
        theirs = {n for n in theirs if not n.startswith("rank_")}
    theirs = {n for n in theirs if not n.endswith(".txt")}  # the copies of the cases lack them: see below
    ours = {str(p.relative_to(made)) for p in made.rglob("*") if p.is_file() and ".reshard" not in p.parts}
    ours = {n for n in ours if not n.endswith(".txt")}
    wrong = [f"{n}: absent" for n in theirs - ours] + [f"{n}: not expected" for n in ours - theirs]
    for name in sorted(n for n in ours & theirs if n.endswith((".ckpt", ".safetensors"))):
        want = {k: v for k, v in read_weights(answer / name).items() if k not in without}
        found = faults(read_weights(made / name), want, nearly if lora else Value.__eq__)
        wrong += [f"{name}: {fault}" for fault in found]
    return wrong


@pytest.mark.parametrize("name", COMMANDS)
def test_recorded_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    case, words = prepared(name, tmp_path)
    monkeypatch.chdir(case.folder)
    if "2 processes" in case.about["call"]:
        tool = [sys.executable, "-c", "from reshard.cli.main import main; main()", "compat", "transform_checkpoint"]
        options = words[next(i for i, w in enumerate(words) if w.endswith(".py")) + 1 :]
        both = [subprocess.Popen([*tool, *options, "--rank_id", rank]) for rank in ("0", "4")]
        assert [process.wait(timeout=120) for process in both] == [0, 0]
    elif name in REFUSED:
        assert run(words) == 3
        assert "is missing" in capfd.readouterr().err
        return
    else:
        assert run(words) == 0
    said = capfd.readouterr()
    if name in STANDS_IN:
        assert "no file of rank_2" in said.err
        return
    answer = Case(name, tmp_path / "case", case.about).expected
    source, target = case.strategy("src"), case.strategy("dst")
    raw = tensor_names(source) - tensor_names(target) if source and target else set[str]()
    assert judge(case.folder / "expected", answer, raw, lora=name.startswith("lora_")) == []
    if "transform_checkpoint.py" in case.about["api"]:
        ranks = (0, 4) if "2 processes" in case.about["call"] else (0,)
        signals = {f"src/transform_succeed_rank_{r}.txt" for r in ranks}
        made = case.folder / "expected"
        assert {str(p.relative_to(made)) for p in made.rglob("*.txt")} == signals
        assert re.search(r"^Transforming checkpoint: \|▮{50}\|100%$", said.out, re.MULTILINE)
        assert ".........Transform succeed!........." in said.out


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("mfcli_")])
def test_what_is_left_in_the_strategy_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, words = prepared(name, tmp_path)
    after = case.about["files_in_src_strategy_after"]
    if after is None:
        return
    monkeypatch.chdir(case.folder)
    run([w for w in words if "process_num" not in w and w != "2"])
    assert sorted(p.name for p in (case.folder / "src_strategy").iterdir()) == after
