"""Time the jobs of cases.py against cp of the bytes that they write, in one run, alternating.

    python bench/run.py [--dir DIR] [--runs 5] [--only REGEX] [--layers 24] [--cold] [--busy]
        [--pairs] [--mindspore PYTHON] [--peft PYTHON]

Columns: seconds of reshard (median); GB a second; GB a second of processor time, over all threads; × cp is the median
of the pairs' ratios, seconds ÷ seconds of `cp -r --reflink=never` of what was written (then `sync` too where reshard
synchronises; of what was read for jobs that write nothing); peak anonymous memory (sampled RssAnon); bytes read ÷ bytes
needed; × naive is the seconds of the script that a user would write (naive.py), by pairs, ÷ ours, and its memory;
× MindSpore is its seconds ÷ ours for the same job, where its Python is given; PEFT's seconds and memory, with the start
of torch, where one with PEFT is; what limits reshard: the cores, with the kernel's part of the processor time, one core
or the disk. The page cache is warm, or, with --cold, without the files that are read. With --busy another process keeps
one core busy all the time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from cases import RESHARD, Case, Inputs, cases, remove
from checkpoints import Model
from memory import kept

_SPARE_NBYTES = 4 << 30
_BUSY = 0.7


@dataclass(frozen=True)
class Row:
    name: str
    seconds: float
    gigabytes_s: float
    gigabytes_cpu_s: float
    cp_seconds: float
    x_cp: float
    peak_mib: float
    amplification: float | None
    x_mindspore: float | None
    peft: str
    naive: str
    limits: str
    moved_gigabytes_s: float
    """Without start and plan."""

    def __str__(self) -> str:
        read = "" if self.amplification is None else f"{self.amplification:.2f}"
        other = "" if self.x_mindspore is None else f"{self.x_mindspore:.0f}"
        beside = f"{self.naive} | {other} | {self.peft} | {self.limits}"
        return (
            f"| {self.name} | {self.seconds:.2f} | {self.gigabytes_s:.2f} | {self.gigabytes_cpu_s:.2f} "
            f"| {self.cp_seconds:.2f} | **{self.x_cp:.2f}** | {self.peak_mib:.0f} | {read} | {beside} |"
        )


HEAD = (
    "| job | s | GB/s | GB/s per core | cp s | × cp | peak MiB | read ÷ needed "
    "| × naive | × MindSpore | PEFT | limits |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Timing:
    seconds: float
    cpu_seconds: float
    kernel: float
    peak_mib: float
    printed: str


def measured(argv: list[str]) -> Timing:
    """Raises CalledProcessError."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    peak = [0]
    watch = threading.Thread(target=_watch, args=(process, peak))
    watch.start()
    printed, _ = process.communicate()
    seconds = time.monotonic() - began
    watch.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    kernel = used.ru_stime - before.ru_stime
    cpu = used.ru_utime - before.ru_utime + kernel
    return Timing(seconds, cpu, kernel / cpu, peak[0] / 1024, printed)


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    """Sample the process's anonymous memory, so rarely that it takes no time from a program on all cores."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
        except OSError:
            return
        if found:
            peak[0] = max(peak[0], int(found[1]))
        time.sleep(0.025)


class NoRoom(Exception):
    """For what cp would write: a file system in memory that overflows takes the machine with it."""


def copied(source: Path, copy: Path, *, fsync: bool) -> float:
    """Seconds of cp, which writes the links of a file one by one. Raises NoRoom."""
    nbytes, free = sum(p.stat().st_size for p in _files(source)), shutil.disk_usage(copy.parent).free
    if free < nbytes + _SPARE_NBYTES:
        raise NoRoom(f"cp would write {nbytes:,} bytes, {free:,} are free")
    began = time.monotonic()
    subprocess.run(["cp", "-r", "--reflink=never", str(source), str(copy)], check=True)
    if fsync:
        subprocess.run(["sync"], check=True)
    return time.monotonic() - began


def settle(reads: list[Path], *, cold: bool) -> None:
    """Let no write of before go on; with ``cold`` drop what will be read from the page cache."""
    os.sync()
    for path in reads if cold else ():
        for file in _files(path):
            with open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_case(case: Case, inputs: Inputs, folder: Path, args: argparse.Namespace) -> Row:
    given = inputs.fill(case.argv)
    out, copy = folder / "out", folder / "copy"
    read = list(inputs.made.values())
    argv = [RESHARD, *(a.replace("{out}", str(out)) for a in given), "--json"]
    argv += [] if case.fsync or not case.writes else ["--no-fsync"]
    ours: list[Timing] = []
    theirs: list[float] = []
    naive: list[Timing] = []
    for _ in range(args.runs):
        remove(out)  # right before each of the two, so that both get pages that were freed just now
        settle(read, cold=args.cold)
        ours.append(measured(argv))
        like = out if case.writes else read[0]
        remove(copy)
        settle([like], cold=args.cold)
        theirs.append(copied(like, copy, fsync=case.fsync))
        remove(copy)
        if case.naive:
            settle(read, cold=args.cold)
            words = [word.replace("{out}", str(copy)) for word in inputs.fill(case.naive)]
            naive.append(measured([sys.executable, str(Path(__file__).with_name("naive.py")), *words]))
    remove(copy)
    if args.pairs:
        print(*(f"{a.seconds:.2f}:{b:.2f}" for a, b in zip(ours, theirs, strict=True)), file=sys.stderr)
    done = json.loads(ours[-1].printed)
    nbytes = done["written_nbytes"] if case.writes else sum(p.stat().st_size for p in _files(read[0]))
    seconds = statistics.median(t.seconds for t in ours)
    return Row(
        case.name,
        seconds,
        nbytes / 1e9 / seconds,
        nbytes / 1e9 / statistics.median(t.cpu_seconds for t in ours),
        statistics.median(theirs),
        statistics.median(a.seconds / b for a, b in zip(ours, theirs, strict=True)),
        max(t.peak_mib for t in ours),
        done["read_nbytes"] / done["bill"]["needed_nbytes"] if case.writes else None,
        _mindspore_seconds(case, out, args.mindspore) / seconds if case.mindspore and args.mindspore else None,
        _with_peft(inputs.fill(case.peft), out, args.peft) if case.peft and args.peft else "",
        _beside(ours, naive),
        limits(ours, waits=case.fsync or args.cold),
        nbytes / 1e9 / statistics.median(json.loads(t.printed).get("seconds", t.seconds) for t in ours),
    )


def _beside(ours: list[Timing], naive: list[Timing]) -> str:
    if not naive:
        return ""
    ratio = statistics.median(b.seconds / a.seconds for a, b in zip(ours, naive, strict=True))
    return f"{ratio:.1f}, {max(t.peak_mib for t in naive) / 1024:.1f} GiB"


def limits(ours: list[Timing], *, waits: bool) -> str:
    """What kept the job from being faster, as its processor time tells."""
    busy = statistics.median(t.cpu_seconds / t.seconds for t in ours)
    if busy > _BUSY * len(os.sched_getaffinity(0)):
        return f"cores, {statistics.median(t.kernel for t in ours):.0%} kernel"
    return "disk" if waits else "one core" if busy > _BUSY else "start, disk"


@contextmanager
def one_core_busy() -> Iterator[None]:
    """Another process that never waits, on the first core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        os.sched_setaffinity(other.pid, {min(os.sched_getaffinity(0))})
        try:
            yield
        finally:
            other.kill()


def _with_peft(given: list[str], out: Path, python: str) -> str:
    remove(out)
    took = measured([python, str(Path(__file__).with_name("with_peft.py")), *given, str(out)])
    return f"{took.seconds:.1f} s, {took.peak_mib:.0f} MiB"


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]


def _mindspore_seconds(case: Case, out: Path, python: str) -> float:
    remove(out)
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "GLOG_v": "3"}
    began = time.monotonic()
    subprocess.run([python, "-c", case.mindspore.replace("{out}", str(out))], check=True, env=environment)
    return time.monotonic() - began


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--dir", type=Path, default=Path(__file__).parent / "out")
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--only", default="")
    options.add_argument("--layers", type=int, default=24)
    options.add_argument("--dtype", default="bfloat16")
    options.add_argument("--cold", action="store_true")
    options.add_argument("--busy", action="store_true", help="another process keeps one core busy")
    options.add_argument("--pairs", action="store_true", help="print every pair of seconds, reshard:cp")
    options.add_argument("--mindspore", default="")
    options.add_argument("--peft", default="")
    options.add_argument(
        "--keep-memory", type=int, default=24, help="GiB that a virtual machine is kept from giving back (default 24)"
    )
    options.add_argument("--json", type=Path)
    args = options.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    print(HEAD)
    rows = []
    model = Model(layers=args.layers, dtype=args.dtype)
    inputs = Inputs(args.dir, model)
    with kept(args.keep_memory << 30), one_core_busy() if args.busy else nullcontext():
        for case in cases(args.dir, model):
            if re.search(args.only, case.name):
                try:
                    rows.append(run_case(case, inputs, args.dir, args))
                    print(rows[-1], flush=True)
                except NoRoom as reason:
                    print(f"| {case.name} | left out: {reason} |", flush=True)
                remove(args.dir / "out")
    inputs.remove()
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))


if __name__ == "__main__":
    main()
