"""MindFormers' own loader of Checkpoint 2.0 judges the folders that we write, on one device."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from checkpoint2 import latest
from golden_families.test_recorded import unpacked
from making import Stages, array, counted, read_file, write_file, write_strategy
from reshard import Options
from reshard.layout.tensor import Sharding

pytestmark = pytest.mark.oracle

SIDE = Path(__file__).with_name("mindformers_side.py")
ROWS, COLUMNS, NORM = Sharding((2, 2), ((0,), ())), Sharding((2, 2), ((), (1,))), Sharding((2, 2), ((),))
FULL = {
    "l.0.w": counted(8, 6),
    "l.1.w": counted(8, 6, dtype="bfloat16"),
    "l.0.norm": counted(5, dtype="float16"),
    "l.1.v": array((16, 4), "int32", seed=1),
}
STAGES: Stages = [
    {"l.0.w": Sharding((2, 2), ((0,), ()), opt_shard=-1), "l.0.norm": NORM},
    {"l.1.w": COLUMNS, "l.1.v": Sharding((2, 2), ((1, 0), ()))},
]
Judge = Callable[[list[tuple[Path, Mapping[str, np.ndarray]]]], list[Any]]


@pytest.fixture
def judge(pytestconfig: pytest.Config, tmp_path: Path) -> Judge:
    """What a net that holds zeros holds after MindFormers has loaded a folder into it: the names that are wrong."""
    python = pytestconfig.getoption("--mindspore")
    package = Path(python).absolute().parent.parent / "mindformers" if python else None
    if package is None or not package.is_dir():
        pytest.skip("MindFormers does not lie beside MindSpore; make test-oracle brings it")

    def judged(asked: list[tuple[Path, Mapping[str, np.ndarray]]]) -> list[Any]:
        requests = [(str(root), {n: (a.dtype.name, a.shape) for n, a in full.items()}) for root, full in asked]
        (tmp_path / "requests.json").write_text(json.dumps(requests))
        argv = [str(Path(python).absolute()), str(SIDE), str(package), str(tmp_path / "requests.json")]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        answers = json.loads(done.stdout.splitlines()[-1])
        return [
            [name for name, a in full.items() if answer[name] != hashlib.sha256(a.tobytes()).hexdigest()]
            if isinstance(answer, dict)
            else answer
            for answer, (_, full) in zip(answers, asked, strict=True)
        ]

    return judged


def test_it_loads_what_is_written(tmp_path: Path, judge: Judge) -> None:
    source, strategy = write_file(tmp_path / "m.safetensors", FULL), str(write_strategy(tmp_path / "s", STAGES))
    ways: dict[str, dict[str, Any]] = {
        "plain": {"dst_strategy": strategy},
        "dropped": {"dst_strategy": strategy, "drop_redundancy": True},
        "old": {"dst_strategy": strategy, "release": "r1.8"},
        "new": {"dst_strategy": strategy, "release": "master", "drop_redundancy": True},
        "one": {},
    }
    for name, options in ways.items():
        reshard.convert(source, tmp_path / name, Options(to="checkpoint2", fsync=False, **options))
    assert judge([(tmp_path / name, FULL) for name in ways]) == [[]] * len(ways)


def test_it_loads_what_it_wrote_itself_and_cannot_read_any_more(tmp_path: Path, judge: Judge) -> None:
    """De-duplicated by r1.7, whose owners nobody names; converted to itself it is as any other."""
    source = unpacked("cases", "ck2-dp4mp2-dedup-r1.7", tmp_path / "case") / "src" / "checkpoint"
    options = Options(to="checkpoint2", drop_redundancy=True, fsync=False)
    reshard.convert(source, tmp_path / "out", options)
    reshard.convert(source, tmp_path / "m.safetensors", Options(fsync=False))
    full = read_file(tmp_path / "m.safetensors")
    before, after = judge([(source, full), (tmp_path / "out", full)])
    assert "Cannot find storage file" in before
    assert after == []


def test_it_is_a_judge(tmp_path: Path, judge: Judge) -> None:
    """What another order of keys, and slices that changed places, do."""
    source, strategy = write_file(tmp_path / "m.safetensors", FULL), str(write_strategy(tmp_path / "s", STAGES))
    for name in ("order", "places"):
        reshard.convert(source, tmp_path / name, Options(to="checkpoint2", dst_strategy=strategy, fsync=False))
    for name in ("order", "places"):
        path = latest(tmp_path / name) / "metadata.json"
        content = json.loads(path.read_text())
        if name == "order":
            layout = content["state_dict_metadata"]["l.1.w"]["layout"]
            content["state_dict_metadata"]["l.1.w"]["layout"] = dict(sorted(layout.items()))
        else:
            content["state_dict_metadata"]["l.1.w"]["layout"]["tensor_map"] = [-1, 0]
        path.write_text(json.dumps(content))
    order, places = judge([(tmp_path / "order", FULL), (tmp_path / "places", FULL)])
    assert isinstance(order, str)
    assert places != []
