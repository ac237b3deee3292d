"""What MindFormers' converters and its loading of Hugging Face folders gave: each command of a case gives the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from golden.cases import run_reshard
from golden_families.test_checkpoint2 import answer, described
from golden_families.test_recorded import HERE, told_of_bad, unpacked
from making import read_file

NAMES = {
    kind: sorted(p.name.removesuffix(".tar.xz") for p in (HERE / kind).glob("names-*")) for kind in ("cases", "bad")
}

KEYS = ("dtype", "shape", "sha256")


def held(path: Path) -> dict[str, Any]:
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".ckpt"))
    return described({name: array for file in files for name, array in read_file(file).items()})


def judge(case: Path, command: dict[str, Any], made: Path) -> None:
    right = json.loads((case / "tensors.json").read_text())
    kind, whole = command["gives"], answer(right.get("tensors") or right["full"])
    if kind == "given-ranks":
        for rank, tensors in right["ranks"].items():
            entries = {n: e if isinstance(e, dict) else dict(zip(KEYS, e, strict=True)) for n, e in tensors.items()}
            assert held(made / f"rank_{rank}") == answer(entries)
        return
    head = {"lm_head.weight": whole.get("model.embed_tokens.weight")}
    wanted = {"tensors": whole, "tensors+head": whole | head, "hf": answer(right.get("hf", {}))}
    assert held(made) == (wanted[kind] if kind in wanted else held(case / "src"))


@pytest.mark.parametrize("name", NAMES["cases"])
def test_it_gives_the_real_program_s_answer(name: str, tmp_path: Path) -> None:
    case = unpacked("cases", name, tmp_path / "case")
    for command in json.loads((case / "case.json").read_text())["commands"]:
        words = [w.replace("{case}", str(case)).replace("{out}", str(tmp_path)) for w in command["argv"]]
        assert run_reshard([*words, "--quiet"]) == 0, command
        judge(case, command, Path(words[2]))


@pytest.mark.parametrize("name", NAMES["bad"])
def test_bad_input_is_told(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told_of_bad(name, tmp_path, capsys)
