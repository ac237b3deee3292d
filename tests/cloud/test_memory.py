"""Memory stays below --max-memory whatever the size of the files: parts on their way count."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import S3

from making import array, write_ranks, write_strategy
from reshard.layout.tensor import Sharding

PROGRAM = str(Path(sys.executable).with_name("reshard"))
BOUND_MIB = 160


def peak_mib(*words: object) -> int:
    """The most anonymous memory that a run of the program was seen to have."""
    process = subprocess.Popen([PROGRAM, *map(str, words), "--quiet", "--max-memory", f"{BOUND_MIB}MiB"])
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max(peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)
        time.sleep(0.01)
    assert process.returncode == 0
    return peak >> 10


@pytest.mark.parametrize("workers", [(), ("--workers", "6")])
def test_peak_memory(tmp_path: Path, s3: S3, workers: tuple[str, ...]) -> None:
    full = {f"w{i}": array((1024, 2048), seed=i) for i in range(8)}  # 64 MiB
    old, new = ([dict.fromkeys(full, Sharding((4,), cut))] for cut in (((0,), ()), ((), (0,))))
    source = write_ranks(tmp_path / "r", full, old, ".safetensors")
    words = "--src-strategy", write_strategy(tmp_path / "o", old), "--dst-strategy", write_strategy(tmp_path / "n", new)
    assert 30 < peak_mib("convert", source, f"{s3.url}/out", *words, *workers) < BOUND_MIB
    back = "--src-strategy", tmp_path / "n"
    assert 30 < peak_mib("merge", f"{s3.url}/out", tmp_path / "full.safetensors", *back, *workers) < BOUND_MIB


def test_nothing_is_staged_on_the_disk(tmp_path: Path, s3: S3) -> None:
    """From a store to a store in a process that may not write a byte to any file."""
    full = {f"w{i}": array((1024, 2048), seed=i) for i in range(4)}  # 32 MiB, in parts
    old, new = ([dict.fromkeys(full, Sharding((2,), cut))] for cut in (((0,), ()), ((), (0,))))
    source = s3.put(write_ranks(tmp_path / "r", full, old, ".ckpt"), "r")
    words = "--src-strategy", write_strategy(tmp_path / "o", old), "--dst-strategy", write_strategy(tmp_path / "n", new)
    argv = [PROGRAM, "convert", source, f"{s3.url}/out", *map(str, words), "--verify", "--quiet"]

    def no_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    subprocess.run(argv, check=True, preexec_fn=no_files)
    assert s3.uploads() == 0
    to_disk = subprocess.run(
        [*argv[:3], str(tmp_path / "out"), *argv[4:]], preexec_fn=no_files, capture_output=True, check=False
    )
    assert to_disk.returncode == 4  # the limit works
