"""Show that cost grows with tensors, ranks and bytes in proportion: each at 1×, 4× and 16×.

    python bench/growth.py [--dir DIR]

Plans are made from sparse files, which hold headers and no data; seconds are of processor time. Conversions move real
bytes, and peak memory is the largest RssAnon sampled.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import reshard
from cases import RESHARD, remove
from checkpoints import Model, write_full, write_sparse, write_strategy
from run import measured

_small = partial(Model, hidden=128, ffn=256, vocab=512)
FACTORS = (1, 4, 16)


def plan_seconds(model: Model, folder: Path, mp: int) -> tuple[float, int]:
    """Processor seconds, and bytes of the plan as JSON."""
    full = folder / "full.safetensors"
    write_sparse(model.specs(), full)
    strategy = write_strategy(model, folder / "strategy", 1, mp, 1)
    options = reshard.Options(dst_strategy=str(strategy))
    began = time.process_time()
    plan = reshard.plan(full, folder / "out", options)
    seconds = time.process_time() - began
    shutil.rmtree(strategy)
    full.unlink()
    return seconds, len(plan.to_json())


def planned(folder: Path) -> Iterator[tuple[str, str, str]]:
    for factor in FACTORS:
        model = _small(layers=111 * factor)
        seconds, nbytes = plan_seconds(model, folder, 8)
        yield f"plan of {len(model.tensors()):,} tensors for 8 ranks", f"{seconds:.2f}", f"{nbytes / 1e6:.1f} MB"
    model = _small(layers=11_111)
    seconds, nbytes = plan_seconds(model, folder, 8)
    yield f"plan of {len(model.tensors()):,} tensors for 8 ranks", f"{seconds:.2f}", f"{nbytes / 1e6:.1f} MB"
    for factor in FACTORS:
        seconds, nbytes = plan_seconds(Model(), folder, 8 * factor)
        yield (
            f"plan of {len(Model().tensors()):,} tensors for {8 * factor} ranks",
            f"{seconds:.2f}",
            f"{nbytes / 1e6:.1f} MB",
        )


def converted(folder: Path) -> Iterator[tuple[str, str, str]]:
    for factor in FACTORS:
        model = Model(layers=2 * factor, vocab=2048)
        full = write_full(model, folder / "full.safetensors")
        strategy = write_strategy(model, folder / "strategy", 1, 8, 1)
        out = folder / "out"
        argv = [RESHARD, "split", str(full), str(out), "--dst-strategy", str(strategy), "--no-fsync", "--quiet"]
        timing = measured(argv)
        yield (
            f"{full.stat().st_size / 1e9:.2f} GB → mp8",
            f"{timing.cpu_seconds:.2f}",
            f"{timing.peak_mib:.0f} MiB at most",
        )
        for path in (full, strategy, out):
            remove(path)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--dir", type=Path, default=Path(__file__).parent / "out")
    folder = options.parse_args().dir
    folder.mkdir(parents=True, exist_ok=True)
    print("| job | processor s | plan, memory |\n|---|---|---|")
    for rows in (planned(folder), converted(folder)):
        for row in rows:
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
