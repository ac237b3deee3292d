"""Checkpoint 2.0 folders that MindFormers r1.7 to master wrote: each command of a case gives what they hold."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint2 import NUMBERS, read_checkpoint2
from golden.cases import run_reshard
from golden_families.test_recorded import HERE, unpacked
from making import read_file

NAMES = {kind: sorted(p.name.removesuffix(".tar.xz") for p in (HERE / kind).glob("ck2-*")) for kind in ("cases", "bad")}
CODES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "I64": "int64"}

Described = dict[str, tuple[str, tuple[int, ...], str]]


def answer(entries: dict[str, Any]) -> Described:
    return {name: (CODES[e["dtype"]], tuple(e["shape"]), e["sha256"]) for name, e in entries.items()}


def described(arrays: dict[str, np.ndarray]) -> Described:
    return {
        name: (a.dtype.name, a.shape, hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest())
        for name, a in arrays.items()
    }


def compare(found: dict[str, np.ndarray], wanted: Described, beside: Described) -> None:
    assert {name: entry for name, entry in described(found).items() if name not in NUMBERS} == {
        name: entry for name, entry in wanted.items() if name not in NUMBERS
    }
    assert {n: e for n, e in described(found).items() if n in NUMBERS}.items() <= (wanted | beside).items()


def given(case: Path, about: dict[str, Any], name: str, tmp_path: Path) -> dict[str, np.ndarray]:
    command = next(c for c in about["commands"] if c["name"] == name)
    words = [w.replace("{case}", str(case)).replace("{out}", str(tmp_path)) for w in command["argv"]]
    assert run_reshard([*words, "--quiet"]) == 0
    return read_file(Path(words[2]))


@pytest.mark.parametrize("name", NAMES["cases"])
def test_it_reads_what_mindformers_wrote(name: str, tmp_path: Path) -> None:
    case = unpacked("cases", name, tmp_path / "case")
    about = json.loads((case / "case.json").read_text())
    full = answer(json.loads((case / "tensors.json").read_text())["full"])
    beside = described(read_checkpoint2(case / "src" / "checkpoint")[1])
    compare(given(case, about, "full", tmp_path), full, beside)
    compare(given(case, about, "iteration-folder", tmp_path), full, beside)
    if about.get("optimizer"):
        states = ("adam_m.", "adam_v.", "accu_grads.")
        weights = {n: e for n, e in full.items() if not n.startswith(states)}
        assert described(given(case, about, "weights-only", tmp_path)) == weights


@pytest.mark.parametrize("name", NAMES["bad"])
def test_bad_input_is_told(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = unpacked("bad", name, tmp_path / "place")
    say = json.loads((case / "say.json").read_text())
    code = run_reshard([w.replace("{case}", str(case)).replace("{out}", str(tmp_path)) for w in say["argv"]])
    said = "".join(capsys.readouterr())
    assert code in say["exit"], said
    assert [
        words for words in say["must_name"] if not any(re.search(re.escape(w), said) for w in words.split("|"))
    ] == []
    made = tmp_path / "made.safetensors"
    assert made.exists() == (code == 0)
    if code == 0:
        right = answer(json.loads((case / "tensors.json").read_text())["tensors"])
        compare(read_file(made), right, {n: e for n, e in described(read_file(made)).items() if n in NUMBERS})
