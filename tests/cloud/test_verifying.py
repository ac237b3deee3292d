"""A target in object storage against its manifest: many files at once, and what is said in their order."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from servers import S3, Kind, Request, told

from making import array, write_file, write_strategy
from reshard.layout.tensor import Sharding

RANKS = 8
FULL = {"w": array((RANKS, 16))}


@pytest.fixture
def target(tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]) -> str:
    source = write_file(tmp_path / "full.safetensors", FULL)
    strategy = write_strategy(tmp_path / "new", [{"w": Sharding((RANKS,), ((0,), ()))}])
    assert told(capsys, "split", source, f"{s3.url}/out", "--dst-strategy", strategy).code == 0
    return f"{s3.url}/out"


def test_files_of_a_few_bytes_do_not_wait_for_one_another(
    target: str, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those who read, and those who list the folders of ranks, have to meet."""
    reading, listing = threading.Barrier(RANKS), threading.Barrier(RANKS)

    def spoil(request: Request) -> Kind | None:
        if "out%2Frank_" in request.path:
            listing.wait(10)
        elif request.method == "GET" and "/out/rank_" in request.path:
            reading.wait(10)
        return None

    s3.store.spoil = spoil
    said = told(capsys, "verify", target)
    assert (said.code, reading.broken, listing.broken) == (0, False, False), said.err


def test_what_is_wrong_is_told_in_the_order_of_the_files(
    target: str, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [key for key in s3.keys("out/rank_") if key.endswith(".safetensors")]
    for rank, key in enumerate(keys):
        content = s3.get(key)
        s3.put_bytes(key, content[:-1] + bytes([content[-1] ^ 1]) if rank % 2 else content[:-1])
    said = told(capsys, "verify", target)
    assert said.code == 1
    assert [line.split(":")[0] for line in said.err.splitlines() if "checkpoint_" in line] == [
        key.removeprefix("out/") for key in keys
    ]
