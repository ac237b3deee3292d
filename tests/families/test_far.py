"""Every family from object storage to object storage, and through a run that is killed."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import reshard
from cloud.servers import S3
from families.rows import CARRIED_OUT, FAMILIES, Kept, Made
from forks import forks
from making import same, tree
from reshard.ops.verify import verify
from waiting import wait_until


@pytest.fixture(params=list(FAMILIES))
def made(request: pytest.FixtureRequest, kept: Kept) -> Made:
    return kept.made(request.param)


def test_from_a_bucket_to_a_bucket(made: Made, s3: S3, tmp_path: Path) -> None:
    src, dst = s3.put(made.path, f"src/{made.path.name}"), f"{s3.url}/out"
    options = made.options(tmp_path)
    reshard.convert(src, dst, options)
    assert verify(dst).files == 4
    there = reshard.open(dst)
    assert {*there} == made.full.keys()
    assert {name for name, value in made.full.items() if not same(np.asarray(there[name].read()), value)} == set()


@pytest.mark.parametrize("made", CARRIED_OUT, indirect=True)
def test_a_run_that_is_killed_is_gone_on_with(made: Made, kept: Kept, tmp_path: Path) -> None:
    options = made.options(kept.strategies(made))
    words = ["convert", str(made.path), str(tmp_path / "out"), "--dst-strategy", str(options.dst_strategy)]
    words += ["--src-strategy", str(options.src_strategy)] if options.src_strategy else []
    running = forks().start(*words, "--format", "safetensors", "--max-rate", "100/s", "--workers", "1")
    wait_until((tmp_path / "out" / ".reshard" / "begun.json").exists)
    running.kill(signal.SIGKILL)
    running.ended()
    assert not (tmp_path / "out" / ".reshard" / "manifest.json").exists()
    reshard.convert(made.path, tmp_path / "out", replace(options, resume=True))
    wanted, found = tree(kept.cut(made)), tree(tmp_path / "out")
    weights = {name for name in wanted if name.endswith(".safetensors")}
    assert {name: found.get(name) for name in weights} == {name: wanted[name] for name in weights}
    assert not [name for name in found if name.endswith(".part")]
