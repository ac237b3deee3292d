"""Checkpoints that DeepSpeed and PyTorch wrote, and their answers: each command of a case gives them, or is refused."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden.cases import run_reshard
from making import read_file

HERE = Path(__file__).parent
NAMES = {
    kind: sorted(
        p.name.removesuffix(".tar.xz") for p in (HERE / kind).iterdir() if not p.name.startswith(("ck2-", "names-"))
    )
    for kind in ("cases", "bad")
}


def unpacked(kind: str, name: str, folder: Path) -> Path:
    with tarfile.open(HERE / kind / f"{name}.tar.xz") as archive:
        for member in archive:
            place = folder / member.name
            content = archive.extractfile(member)
            assert content is not None
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content.read())
    return folder


def told_of_bad(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Path, bool]:
    """Run what ``say.json`` of a case has: exit code and words are as it says. Gives the case, what may have been made,
    and whether it was to be.
    """
    case = unpacked("bad", name, folder / "place")
    say = json.loads((case / "say.json").read_text())
    code = run_reshard([w.replace("{case}", str(case)).replace("{out}", str(folder)) for w in say["argv"]])
    said = "".join(capsys.readouterr())
    assert code in say["exit"], said
    missing = [words for words in say["must_name"] if not any(re.search(re.escape(w), said) for w in words.split("|"))]
    assert not missing, said
    made = folder / "made.safetensors"
    assert made.exists() == (code == 0)
    return case, made, code == 0


def section(tensors: Any, path: str) -> Any:
    for key in path.split("/", 1) if path else ():
        tensors = tensors[key]
    return tensors


def entries(found: Any, *, layers: bool) -> dict[str, dict[str, Any]]:
    if not layers:
        return found if isinstance(found, dict) else {entry["name"]: entry for entry in found}
    made = {}
    for file, of_file in found.items():
        layer = re.match(r"layer_(\d+)", file)
        made.update({f"{int(layer[1])}.{e['name']}": e for e in of_file} if layer else {})
    return made


def wanted(parts: list[dict[str, Any]], case: Path) -> dict[str, tuple[str, list[int], str]]:
    """Name → dtype, shape and hash of the bytes."""
    made = {}
    for part in parts:
        tensors = json.loads((case / part.get("file", "tensors.json")).read_text())
        found = entries(section(tensors, part["section"]), layers=part.get("layer_files", False))
        shapes = entries(section(tensors, part["shapes"]), layers=False) if "shapes" in part else found
        left = re.compile(part.get("without", "(?!)"))
        for name, entry in found.items():
            if left.search(name):
                continue
            shape = shapes.get(name, entry)["shape"]
            made[part.get("prefix", "") + name] = (entry["dtype"], shape, entry["sha256"])
    return made


def given(path: Path) -> dict[str, tuple[str, list[int], str]]:
    return {
        name: (array.dtype.name, list(array.shape), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest())
        for name, array in read_file(path).items()
    }


def judge(case: Path, command: dict[str, Any], out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"{src}": str(case / "src"), "{case}": str(case), "{out}": str(out)}
    words = [re.sub(r"\{\w+\}", lambda found: places[found[0]], word) for word in command["args"]]
    code = run_reshard(words)
    said = "".join(capsys.readouterr())
    exits = command.get("exit", 0)
    assert code in (exits if isinstance(exits, list) else [exits]), said
    for pattern in command.get("must_say" if code == 0 else "must_name", ()):
        assert re.search(pattern, said, re.IGNORECASE), said
    if code:
        assert not list(out.rglob("*.safetensors"))
        return
    if "answer" not in command:
        return
    answer, may = wanted(command["answer"], case), wanted(command.get("may_also", []), case)
    if command.get("reads") in ("dcp", "megatron"):
        made = out / ("dcp" if command["reads"] == "dcp" else "meg")
        assert run_reshard(["convert", str(made), str(out / "full.safetensors"), "--crc"]) == 0
    if "ranks" in command:
        judge_ranks(json.loads((case / command["ranks"]).read_text()), out)
    found = given(out / "full.safetensors")
    lacking = {
        name: entry for name, entry in answer.items() if name not in command.get("may_lack", ()) or name in found
    }
    assert {name: found.get(name) for name in lacking} == lacking
    assert {name: entry for name, entry in found.items() if name not in answer} == {
        name: entry for name, entry in may.items() if name in found and name not in answer
    }


def judge_ranks(ranks: dict[str, Any], out: Path) -> None:
    """Megatron's rank files hold these tensors and no others."""
    for rank, tensors in ranks.items():
        (path,) = (out / "meg").glob(f"*/{rank}/model_optim_rng.pt")
        assert run_reshard(["convert", str(path), str(out / f"{rank}.safetensors"), "--from", "full"]) == 0
        held = {name.removeprefix("model."): entry for name, entry in given(out / f"{rank}.safetensors").items()}
        assert held == {name: (e["dtype"], e["shape"], e["sha256"]) for name, e in tensors.items()}


@pytest.mark.parametrize("name", NAMES["cases"])
def test_it_gives_the_real_program_s_answer(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = unpacked("cases", name, tmp_path / "case")
    for number, command in enumerate(json.loads((case / "case.json").read_text())["commands"]):
        (tmp_path / str(number)).mkdir()
        judge(case, command, tmp_path / str(number), capsys)


@pytest.mark.parametrize("name", NAMES["bad"])
def test_bad_input_is_told(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = unpacked("bad", name, tmp_path / "case")
    (tmp_path / "out").mkdir()
    judge(case, json.loads((case / "bad.json").read_text()), tmp_path / "out", capsys)
    assert not list(Path.cwd().glob("*evil*"))
