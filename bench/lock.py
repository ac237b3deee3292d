"""Processor seconds a gigabyte that hold Python's lock. All threads of a process share it: it bounds what one can move.

    python bench/lock.py [--layers 3] [--runs 3] [--dir DIR] [--only REGEX]

All processor time of a job, its start and plan apart, less that of the calls that let others have the lock: reads,
writes, hashes, copies of elements, and what makes, takes and names files. Columns, medians: GB; processor seconds a GB;
milliseconds of the lock a GB; the GB/s that this bounds one process to. Tensors are those of 7 billion weights.
"""

from __future__ import annotations

import argparse
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import xxhash

from cases import Inputs, cases, remove
from checkpoints import Model
from reshard.moving import elements
from reshard.ops.convert import execute, plan
from reshard.ops.observer import Observer
from reshard.ops.options import Options

_JOBS = r"^(ckpt|safetensors) (1 → mp8|mp8 → 1|dp2mp2pp2 → dp1mp4pp2)$"
_TRIES = 10_000
_CALLS = ("preadv", "pwrite", "posix_fallocate", "truncate", "open", "close", "rename", "stat", "fstat", "unlink")


class Outside:
    """Processor seconds of calls without the lock, over all threads, and what it costs to watch them."""

    def __init__(self) -> None:
        self.seconds = self._watching = 0.0
        self._lock = threading.Lock()
        nothing, began = self.timed(lambda: None), time.thread_time()
        for _ in range(_TRIES):
            nothing()
        self._watching = (time.thread_time() - began - self.seconds) / _TRIES
        self.seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **more: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*args, **more)
            finally:
                seconds = time.thread_time() - began
                with self._lock:
                    self.seconds += seconds + self._watching

        return timed

    def watch(self) -> None:
        """For the rest of this process."""
        for name in _CALLS:
            setattr(os, name, self.timed(getattr(os, name)))
        elements.copy_between = self.timed(elements.copy_between)
        real, timed = xxhash.xxh3_128, self.timed

        class Digest:
            def __init__(self, data: bytes = b"") -> None:
                self._real = real(data)
                self.update = timed(self._real.update)
                self.hexdigest = self._real.hexdigest

        xxhash.xxh3_128 = Digest  # type: ignore[misc,assignment]


def carried_out(argv: list[str], out: Path) -> tuple[float, int]:
    """Processor seconds, and the bytes that were written, without start and plan."""
    words = dict(zip(argv[3::2], argv[4::2], strict=True))
    src, dst = (words.get(f"--{side}-strategy", "") for side in ("src", "dst"))
    options = Options(src_strategy=src, dst_strategy=dst, fsync=False)
    made = plan(argv[1], out, options)
    began = time.process_time()
    execute(made, out, options, Observer())
    return time.process_time() - began, made.nbytes


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--layers", type=int, default=3)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--dir", type=Path, default=Path(__file__).parent / "out")
    options.add_argument("--only", default=_JOBS)
    args = options.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    model, outside = Model(args.layers, hidden=4096, ffn=11008), Outside()
    inputs, out = Inputs(args.dir, model), args.dir / "out"
    outside.watch()
    print("| job | GB | processor s a GB | ms of the lock a GB | one process, GB/s |\n|---|---|---|---|---|")
    for case in cases(args.dir, model):
        if re.search(args.only, case.name):
            argv, each, ms, nbytes = inputs.fill(case.argv), [], [], 0
            for _ in range(args.runs):
                before = outside.seconds
                seconds, nbytes = carried_out(argv, out)
                each.append(seconds * 1e9 / nbytes)
                ms.append((seconds - outside.seconds + before) * 1e12 / nbytes)
                remove(out)
            told = f"{nbytes / 1e9:.2f} | {median(each):.2f} | **{median(ms):.0f}** | {1000 / median(ms):.0f}"
            print(f"| {case.name} | {told} |", flush=True)
    inputs.remove()


if __name__ == "__main__":
    main()
