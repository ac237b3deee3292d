"""What sharing blocks saves: jobs on XFS and Btrfs, each in a file mounted by loop, against cp and sync; needs root.

    python bench/clones.py [--layers 16] [--more-layers 36] [--runs 3] [--dir DIR]

Where nothing is copied and nothing read, what is left is the start of the program and a call for each run of bytes: the
rows of ``--more-layers`` show how it grows. Columns: seconds (medians) of reshard and of ``cp -r --reflink=never`` of
what it wrote, both with what the disk takes (``sync``), the median of the pairs' ratios, the part of the target that
takes space, and what limits reshard.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cases import RESHARD, remove
from checkpoints import Model, write_full, write_strategy
from run import Timing, limits, measured

_MAKE = {"xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=1"), "btrfs": ("mkfs.btrfs", "-q", "-f")}


class RowsOnly(Model):
    """Every matrix is cut by rows."""

    def tensors(self) -> dict[str, tuple[tuple[int, ...], tuple[tuple[int, ...], ...], int]]:
        return {
            name: (shape, ((0,), ()) if len(shape) == 2 else cut, layer)
            for name, (shape, cut, layer) in super().tensors().items()
        }


@contextmanager
def mounted(kind: str, folder: Path, nbytes: int) -> Iterator[Path]:
    image, disk = folder / f"{kind}.img", folder / kind
    with open(image, "wb") as file:
        file.truncate(nbytes)
    subprocess.run([*_MAKE[kind], image], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)
        image.unlink()


def used(folder: Path) -> int:
    """Once no file that was removed is still being freed."""
    before = -1
    while True:
        os.sync()
        status = os.statvfs(folder)
        if (now := (status.f_blocks - status.f_bfree) * status.f_frsize) == before:
            return now
        before = now
        time.sleep(0.5)


def timed(*argv: str | Path) -> Timing:
    """With what the disk takes."""
    began = time.monotonic()
    took = measured([str(word) for word in argv])
    subprocess.run(["sync"], check=True)
    return replace(took, seconds=time.monotonic() - began)


def row(what: str, words: tuple[str | Path, ...], disk: Path, runs: int) -> str:
    ours: list[Timing] = []
    theirs: list[Timing] = []
    space, nbytes = 0.0, 0
    for _ in range(runs):
        for name in ("out", "copy"):
            remove(disk / name)
        before = used(disk)
        ours.append(timed(RESHARD, *words, "--quiet"))
        nbytes = sum(path.stat().st_size for path in (disk / "out").rglob("*.safetensors"))
        space = (used(disk) - before) / nbytes
        theirs.append(timed("cp", "-r", "--reflink=never", disk / "out", disk / "copy"))
    ratio = statistics.median(a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True))
    seconds, of_cp = (statistics.median(t.seconds for t in each) for each in (ours, theirs))
    told = f"{nbytes / 1e9:.1f} GB, {what}"
    return f"| {told} | {seconds:.2f} | {of_cp:.2f} | **{ratio:.2f}** | {space:.0%} | {limits(ours, waits=True)} |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--layers", type=int, default=16)
    options.add_argument("--more-layers", type=int, default=36)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--dir", type=Path, default=Path(__file__).parent / "out")
    args = options.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    print("| job | s | cp s | × cp | space | limits |\n|---|---|---|---|---|---|")
    for kind, make in _MAKE.items():
        if os.geteuid() or not shutil.which(make[0]):
            print(f"{kind} is left out: it takes root and {make[0]}")
            continue
        with mounted(kind, args.dir, 16 << 30) as disk:
            for what, model, off in _wanted(args):
                full = write_full(model, disk / "full.safetensors")
                strategy = write_strategy(model, disk / "mp8", 1, 8, 1)
                words = ("split", full, disk / "out", "--dst-strategy", strategy)
                if not off:
                    print(row(f"1 → mp8, {what}, {kind}", words, disk, args.runs), flush=True)
                more = (*words, "--checksum", "off")
                print(row(f"1 → mp8, {what}, {kind}, no checksums", more, disk, args.runs), flush=True)


def _wanted(args: argparse.Namespace) -> Iterator[tuple[str, Model, bool]]:
    """How tensors are cut, the model, and whether it is of interest without checksums alone."""
    yield "rows alone", RowsOnly(args.layers), False
    yield "rows and columns", Model(args.layers), False
    yield "rows alone", RowsOnly(args.more_layers), True


if __name__ == "__main__":
    main()
