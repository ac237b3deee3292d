"""Which replica parts from the others, at which element of the full tensor."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from making import counted, read_file, write_file, write_ranks, write_strategy
from reshard.errors import CheckpointError
from reshard.families import replicas
from reshard.families.open_checkpoint import open_source
from reshard.families.replicas import replica_faults
from reshard.families.source import Source
from reshard.layout.tensor import Sharding

CUT = Sharding((4, 2), ((), (0,)))  # ranks 0, 2, 4, 6 hold the left half of the columns, the others the right half
FULL = {"w": counted(8, 6), "v": counted(4, 2, dtype="bfloat16")}


class Job:
    def __init__(self, folder: Path) -> None:
        self.strategy = str(write_strategy(folder / "s", [dict.fromkeys(FULL, CUT)]))
        self.src = write_ranks(folder / "src", FULL, [dict.fromkeys(FULL, CUT)], slice_nbytes=20)

    def file(self, rank: int) -> Path:
        return self.src / f"rank_{rank}" / f"model_{rank}.ckpt"

    def change(self, rank: int, name: str, index: tuple[int, int], value: float) -> None:
        arrays = {n: a.copy() for n, a in read_file(self.file(rank)).items()}
        arrays[name][index] = value
        write_file(self.file(rank), arrays, slice_nbytes=20)

    def faults(self) -> list[str]:
        return replica_faults(open_source(Source(str(self.src), self.strategy)))


@pytest.fixture(params=[1 << 22, 16])
def job(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(replicas, "_BLOCK_NBYTES", request.param)
    return Job(tmp_path)


def test_equal_ones(job: Job) -> None:
    assert job.faults() == []


def test_the_index_is_that_of_the_full_tensor(job: Job) -> None:
    job.change(5, "w", (7, 1), 0.5)
    assert job.faults() == ["w[7, 4]: 46.0 in ranks 1, 3, 7; 0.5 in rank 5"]


def test_the_first_rank_may_be_the_odd_one(job: Job) -> None:
    job.change(0, "v", (3, 0), 0.5)
    assert job.faults() == ["v[3, 0]: 6 in ranks 2, 4, 6; 0.5 in rank 0"]


def test_each_odd_rank_is_told_once_with_its_first_element(job: Job) -> None:
    job.change(0, "w", (6, 0), 0.5)
    job.change(2, "w", (1, 2), 0.25)
    job.change(2, "w", (7, 2), 0.25)
    assert job.faults() == [
        "w[1, 2]: 8.0 in ranks 0, 4, 6; 0.25 in rank 2",
        "w[6, 0]: 36.0 in ranks 4, 6; 0.5 in rank 0",
    ]


def test_several_values_at_one_element(job: Job) -> None:
    for rank in (0, 2, 4):
        job.change(rank, "w", (0, 0), float(min(rank, 2)) + 1)
    assert job.faults() == ["w[0, 0]: 3.0 in ranks 2, 4; 1.0 in rank 0; 0.0 in rank 6"]


def test_bits_are_shown_where_values_look_alike(job: Job) -> None:
    job.change(6, "w", (0, 0), -0.0)
    job.change(4, "v", (0, 0), -0.0)
    found = sorted(job.faults())
    assert found[0] == "v[0, 0]: 0 in ranks 0, 2, 6; -0 in rank 4"
    assert found[1] == "w[0, 0]: 0.0 in ranks 0, 2, 4; -0.0 in rank 6"
    for rank, bits in ((1, 0x7FC00000), (3, 0x7FC00001)):
        job.change(rank, "w", (0, 0), float("nan"))
        job.change(rank, "w", (0, 0), np.array(bits, np.uint32).view(np.float32))
    (line,) = (line for line in job.faults() if line.startswith("w[0, 3]"))
    assert line == "w[0, 3]: 0x40400000 in ranks 5, 7; 0x7fc00000 in rank 1; 0x7fc00001 in rank 3"


def test_many_ranks_are_counted(tmp_path: Path) -> None:
    whole = Sharding((12,), ((), ()))
    src = write_ranks(tmp_path / "src", {"w": counted(2, 2)}, [{"w": whole}])
    write_file(src / "rank_3" / "model_3.ckpt", {"w": counted(2, 2) + 1})
    strategy = str(write_strategy(tmp_path / "s", [{"w": whole}]))
    (line,) = replica_faults(open_source(Source(str(src), strategy)))
    assert line == "w[0, 0]: 0.0 in ranks 0, 1, 2, 4, 5, 6, 7, 8 and 3 more; 1.0 in rank 3"


def test_a_file_that_changed_since_it_was_indexed(job: Job) -> None:
    source = open_source(Source(str(job.src), job.strategy))
    os.utime(job.file(2), (5, 5))
    with pytest.raises(CheckpointError, match="the file changed after it was planned"):
        replica_faults(source)
