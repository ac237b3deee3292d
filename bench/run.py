"""Time conversions against cp of the bytes that they write, in one run, alternating, and print medians and ratios.

    python bench/run.py [--dir DIR] [--runs 5] [--only REGEX] [--layers 24] [--mindspore PYTHON] [--json FILE]

Columns: seconds of reshard; GB written a second; × cp is seconds ÷ seconds of `cp -r --reflink=never` of the result
(then `sync` too where reshard synchronises); peak anonymous memory (sampled RssAnon); bytes read ÷ bytes needed;
× MindSpore is its seconds ÷ ours for the same job, where its environment is given. The page cache is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from checkpoints import Model, write_full, write_lora, write_strategy

RESHARD = str(Path(sys.executable).with_name("reshard"))


_LAYOUTS = {
    "mp8": (1, 8, 1),
    "dp8": (8, 1, 1),
    "dp2mp2pp2": (2, 2, 2),
    "dp1mp4pp2": (1, 4, 2),
    "mp2pp3": (1, 2, 3),
    "mp4": (1, 4, 1),
}
"""Name → (dp, mp, pp)."""


@dataclass(frozen=True)
class Case:
    """``argv`` after ``reshard``; ``{out}`` is the target. ``fsync`` compares the default with cp and sync."""

    name: str
    argv: tuple[str, ...]
    fsync: bool = False
    mindspore: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    seconds: float
    gigabytes_s: float
    cp_seconds: float
    x_cp: float
    peak_mib: float
    amplification: float
    x_mindspore: float | None


def measured(argv: list[str]) -> tuple[float, float, str]:
    """Seconds, peak RssAnon in MiB, and what was printed. Raises CalledProcessError."""
    began = time.monotonic()
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    peak = [0]
    watch = threading.Thread(target=_watch, args=(process, peak))
    watch.start()
    printed, _ = process.communicate()
    seconds = time.monotonic() - began
    watch.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)
    return seconds, peak[0] / 1024, printed


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    """Sample the process's anonymous memory every 10 ms."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
        except OSError:
            return
        if found:
            peak[0] = max(peak[0], int(found[1]))
        time.sleep(0.01)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def run_case(case: Case, inputs: Inputs, folder: Path, runs: int, mindspore: str) -> Row:
    given = inputs.fill(case.argv)
    out, copy = folder / "out", folder / "copy"
    ours, theirs, peaks, done = [], [], [], {}
    for _ in range(runs):
        remove(out)
        os.sync()
        argv = [RESHARD, *(a.replace("{out}", str(out)) for a in given), "--json"]
        if not case.fsync:
            argv.append("--no-fsync")
        seconds, peak, printed = measured(argv)
        ours.append(seconds)
        peaks.append(peak)
        done = json.loads(printed)
        remove(copy)
        os.sync()
        began = time.monotonic()
        subprocess.run(["cp", "-r", "--reflink=never", str(out), str(copy)], check=True)
        if case.fsync:
            subprocess.run(["sync"], check=True)
        theirs.append(time.monotonic() - began)
        remove(copy)
    needed = done["bill"]["needed_nbytes"]
    seconds, cp_seconds = statistics.median(ours), statistics.median(theirs)
    other = None
    if mindspore and case.mindspore:
        remove(out)
        began = time.monotonic()
        subprocess.run([mindspore, "-c", case.mindspore.replace("{out}", str(out))], check=True, env=_mindspore_env())
        other = (time.monotonic() - began) / seconds
    remove(out)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    written = done["written_nbytes"] / 1e9
    return Row(
        case.name, seconds, written / seconds, cp_seconds, ratio, max(peaks), done["read_nbytes"] / needed, other
    )


def _mindspore_env() -> dict[str, str]:
    return {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "GLOG_v": "3"}


def cases(folder: Path, model: Model) -> list[Case]:
    """Make the strategies, and say the jobs."""
    made: list[Case] = []
    strategies = {
        name: str(write_strategy(model, folder / "strategy" / name, *sizes)) for name, sizes in _LAYOUTS.items()
    }
    for form in ("ckpt", "safetensors"):
        made += _jobs(form, folder, strategies)
    lora = ("lora", "merge", "{full.safetensors}", "{out}", "--adapter", "{adapter}", "--scaling", "2")
    return [*made, Case("LoRA qkvo r16", lora)]


class Inputs:
    """Checkpoints to read, made when a case first names them, and removed when the next case names others."""

    def __init__(self, folder: Path, model: Model) -> None:
        self._folder = folder
        self._model = model
        self._made: dict[str, Path] = {}

    def fill(self, argv: tuple[str, ...]) -> list[str]:
        """The arguments with ``{name}`` replaced by a path."""
        names = {m for a in argv for m in re.findall(r"^\{(.+)\}$", a)} - {"out"}
        for name in [n for n in self._made if n not in names]:
            remove(self._made.pop(name))
        for name in sorted(names):
            if name not in self._made:
                self._made[name] = self._make(name)
        return [str(self._made[a[1:-1]]) if a[1:-1] in self._made else a for a in argv]

    def _make(self, name: str) -> Path:
        if name == "adapter":
            return write_lora(self._model, self._folder / "adapter.safetensors")
        if name.startswith("full."):
            return write_full(self._model, self._folder / name)
        form, layout = name.split("-")
        full = write_full(self._model, self._folder / f"whole.{form}")
        target = self._folder / name
        argv = [RESHARD, "split", str(full), str(target), "--dst-strategy", str(self._folder / "strategy" / layout)]
        subprocess.run([*argv, "--quiet", "--no-fsync", "--replicas", "link"], check=True)
        remove(full)
        return target


def _jobs(form: str, folder: Path, s: dict[str, str]) -> list[Case]:
    def convert(name: str, a: str, b: str, *more: str, fsync: bool = False) -> Case:
        src = f"{{{form}-{a}}}" if a else f"{{full.{form}}}"
        argv = ["convert", src, "{out}", *more]
        argv += ["--src-strategy", s[a]] if a else []
        argv += ["--dst-strategy", s[b]] if b else []
        ms = ""
        if form == "ckpt" and not fsync and not more:
            ms = (
                _transform(str(folder / f"{form}-{a}"), s[a], s.get(b, "")) if a else _transform_full(str(folder), s[b])
            )
        return Case(f"{form} {name}", tuple(argv), fsync, ms)

    return [
        convert("1 → mp8", "", "mp8"),
        convert("1 → mp8, synced", "", "mp8", fsync=True),
        convert("1 → dp8, linked", "", "dp8", "--replicas", "link"),
        convert("mp8 → 1", "mp8", ""),
        convert("mp8 → 1, synced", "mp8", "", fsync=True),
        Case(f"{form} unify mp8", ("unify", f"{{{form}-mp8}}", "{out}", "--src-strategy", s["mp8"])),
        convert("dp2mp2pp2 → dp1mp4pp2", "dp2mp2pp2", "dp1mp4pp2"),
        convert("dp8 → mp8", "dp8", "mp8"),
        convert("mp2pp3 → mp4 (6 → 4)", "mp2pp3", "mp4"),
    ]


def _transform(src: str, a: str, b: str) -> str:
    return (
        "import mindspore as ms, os; from glob import glob\n"
        "def merged(d, n):\n"
        "    p = '{out}.' + n + '.ckpt'; ms.merge_pipeline_strategys(d, p); return p\n"
        f"ms.transform_checkpoints({src!r}, '{{out}}', 'checkpoint_', merged({a!r}, 'a'), "
        + (f"merged({b!r}, 'b'))" if b else "None)")
    )


def _transform_full(folder: str, b: str) -> str:
    return (
        "import mindspore as ms, os, tempfile\n"
        "d = tempfile.mkdtemp(); os.mkdir(d + '/rank_0')\n"
        f"os.symlink({folder!r} + '/full.ckpt', d + '/rank_0/full.ckpt')\n"
        f"ms.merge_pipeline_strategys({b!r}, d + '/b.ckpt')\n"
        "ms.transform_checkpoints(d, '{out}', 'checkpoint_', None, d + '/b.ckpt')"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--dir", type=Path, default=Path(__file__).parent / "out")
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--only", default="")
    options.add_argument("--layers", type=int, default=24)
    options.add_argument("--dtype", default="bfloat16")
    options.add_argument("--mindspore", default="")
    options.add_argument("--json", type=Path)
    args = options.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    print(
        "| job | s | GB/s | cp s | × cp | peak MiB | read ÷ needed | × MindSpore |\n|---|---|---|---|---|---|---|---|"
    )
    rows = []
    model = Model(layers=args.layers, dtype=args.dtype)
    inputs = Inputs(args.dir, model)
    for case in cases(args.dir, model):
        if re.search(args.only, case.name):
            row = run_case(case, inputs, args.dir, args.runs, args.mindspore)
            rows.append(row)
            other = f"{row.x_mindspore:.0f}" if row.x_mindspore else ""
            print(
                f"| {row.name} | {row.seconds:.2f} | {row.gigabytes_s:.2f} | {row.cp_seconds:.2f} | **{row.x_cp:.2f}** "
                f"| {row.peak_mib:.0f} | {row.amplification:.2f} | {other} |",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))


if __name__ == "__main__":
    main()
