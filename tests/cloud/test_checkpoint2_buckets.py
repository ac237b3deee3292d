"""Checkpoint 2.0 in object storage, as source and as target."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from servers import S3

import reshard
from checkpoint2 import faults_of, write_checkpoint2
from making import Stages, array, read_file, same, write_strategy
from reshard import Options
from reshard.layout.tensor import Sharding
from reshard.ops.fingerprint import fingerprint
from reshard.ops.inspect import inspect
from reshard.ops.verify import verify
from reshard.planning.shares import Share

ROWS, COLUMNS, NORM = Sharding((2, 2), ((0,), ())), Sharding((2, 2), ((), (1,))), Sharding((2, 2), ((),))
FULL = {
    "l.0.w": array((8, 6), seed=1),
    "l.1.w": array((8, 6), "bfloat16", seed=2),
    "adam_m.l.0.w": array((8, 6), seed=3),
}
OLD: Stages = [{"l.0.w": ROWS, "adam_m.l.0.w": ROWS}, {"l.1.w": COLUMNS}]
NEW: Stages = [{"l.0.w": COLUMNS, "adam_m.l.0.w": COLUMNS, "l.1.w": ROWS}]


@pytest.mark.parametrize("shares", [1, 2])
def test_from_a_bucket_into_a_bucket(s3: S3, tmp_path: Path, shares: int) -> None:
    write_checkpoint2(tmp_path / "src", FULL, OLD)
    source, target = s3.put(tmp_path / "src", "src"), f"{s3.url}/out"
    options = Options(to="checkpoint2", dst_strategy=str(write_strategy(tmp_path / "s", NEW)), drop_redundancy=True)
    for index in range(shares):
        share = Share(index, shares) if shares > 1 else None
        assert "out/latest_checkpointed_iteration.txt" not in s3.keys("out/")
        reshard.convert(source, target, replace(options, share=share))
    for key in s3.keys("out/"):
        place = tmp_path / key
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(s3.get(key))
    assert faults_of(tmp_path / "out", FULL, NEW) == []
    assert verify(target).files == len([k for k in s3.keys("out/") if ".reshard" not in k])
    assert fingerprint(target).number == fingerprint(source).number
    assert len(inspect(f"{target}/iteration_00000007").tensors) == len(FULL)
    reshard.convert(target, tmp_path / "m.safetensors", Options(fsync=False))
    held = read_file(tmp_path / "m.safetensors")
    assert [name for name, a in FULL.items() if not same(held[name], a)] == []
