"""All tables of docs/explanation/performance.md that move bytes, measured in one run by one harness.

    python bench/page.py [--write] [--memory /dev/shm/bench] [--disk bench/out] [--mindspore PYTHON] [--only REGEX]

It takes some twenty minutes on two cores, which should have nothing else to do; clones take root. Each table is
printed, and, with --write, put between its markers in the English and in the Chinese page, with the day. A table that
cannot be made leaves the former one as it is, and the others go on.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from cases import Case, Inputs, cases, remove
from checkpoints import Model
from memory import kept
from run import NoRoom, Row, one_core_busy, run_case

_HERE = Path(__file__).parent
_PAGES = {"en": _HERE.parent / "docs/explanation/performance.md", "zh": _HERE.parent / "docs/zh/performance.md"}
_RUNS = 3


@dataclass(frozen=True)
class Wanted:
    """Rows of the large table: of a disk or of memory, with these cases in this order."""

    disk: bool
    names: tuple[str, ...]
    cold: bool = False
    busy: bool = False


_CUT, _MERGED, _RECUT = "1 → mp8", "mp8 → 1", "dp2mp2pp2 → dp1mp4pp2"
_WANTED = (
    Wanted(False, (f"ckpt {_CUT}", f"ckpt {_MERGED}", f"ckpt {_RECUT}", f"safetensors {_CUT}")),
    Wanted(False, (f"safetensors {_CUT}",), busy=True),
    Wanted(False, ("LoRA merge, qkvo, rank 16", "fingerprint")),
    Wanted(False, (f"safetensors {_MERGED}", "safetensors unify mp8", "verify", f"safetensors {_RECUT}")),
    Wanted(True, (f"safetensors {_CUT}", f"safetensors {_CUT}, synced")),
    Wanted(True, (f"safetensors {_CUT}, synced",), busy=True),
    Wanted(True, (f"safetensors {_CUT}",), cold=True),
    Wanted(True, (f"safetensors {_MERGED}", f"safetensors {_MERGED}, synced")),
    Wanted(True, (f"safetensors {_MERGED}",), cold=True),
    Wanted(True, (f"safetensors {_RECUT}",)),
)
_LARGE, _TINY = "1.5 GB of large tensors", "47,000 experts of 32 KiB"
_IN_PARTS, _IN_EIGHT = (tuple(f"{of}, 1 → {to}" for of in (_LARGE, _TINY)) for to in ("parts", "mp8"))
_SMALL = (
    Wanted(False, (*_IN_PARTS, *_IN_EIGHT)),
    Wanted(False, ("5,760 experts of 256 KiB, 1 → parts", "5,760 experts of 256 KiB, 1 → mp8")),
    Wanted(True, tuple(f"{name}, synced" for name in (*_IN_PARTS, *_IN_EIGHT))),
    Wanted(False, ("matrices of 117 MB, turned", "matrices of 470 MB, turned")),
)
_HEADS = {
    "moves": "job | s | GB/s | GB/s per core | cp s | × cp | peak MiB | read ÷ needed"
    " | × naive, memory | × MindSpore | limits",
    "small": "job | s | GB/s per core | cp s | × cp | peak MiB | moves GB/s | limits",
    "growth": "job | processor s | plan, memory",
    "clones": "job | s | cp s | × cp | space | limits",
    "far": "job | s | MB/s | plain MB/s | of plain | peak MiB | limits",
    "lock": "job | GB | processor s a GB | ms of the lock a GB | one process, GB/s",
}
_CHINESE = {
    "moves GB/s": "搬运 GB/s", "1.5 GB of large tensors": "1.5 GB 的大张量", "matrices of": "矩阵，各",
    ", turned": "，转置",
    "47,000 experts of 32 KiB": "47,000 个 32 KiB 的专家", "5,760 experts of 256 KiB": "5,760 个 256 KiB 的专家",
    "plan, memory": "计划大小或内存", "processor s |": "处理器秒 |", "plan of": "计划：", " tensors for": " 个张量，",
    " ranks |": " 个 rank |", "MiB at most": "MiB 以内",
    "job": "任务", " s ": " 秒 ", "cp s": "cp 秒", "GB/s per core": "每核 GB/s", "peak MiB": "峰值 MiB",
    "read ÷ needed": "读取 ÷ 所需", "× naive, memory": "× 朴素脚本，内存", "limits": "受限于", "space": "占用",
    "of plain": "与普通客户端之比", "plain MB/s": "普通客户端 MB/s", "processor s a GB": "每 GB 处理器秒",
    "ms of the lock a GB": "每 GB 占锁毫秒", "one process, GB/s": "一个进程，GB/s", ", synced": "，同步",
    ", cold": "，冷缓存", ", one core busy": "，一个核被占用", ", no checksums": "，不计校验和", "rows alone": "只切行",
    "rows and columns": "行与列", "start, disk": "启动与磁盘", "one core": "一个核", "cores, ": "处理器，其中内核 ",
    "% kernel": "%", "disk": "磁盘", "round trips": "往返", "three pairs": "三对", "line": "线路",
}  # fmt: skip
"""Words of tables."""


def moves(args: Namespace) -> Iterator[str]:
    return _rows(_WANTED, Model(layers=args.layers), args)


def small(args: Namespace) -> Iterator[str]:
    """Rows of many small tensors beside those of few large ones, and of turned matrices."""
    return _rows(_SMALL, Model(), args, told=_moved)


def _rows(
    some: Iterable[Wanted], model: Model, args: Namespace, told: Callable[[Row, str], str] | None = None
) -> Iterator[str]:
    for wanted in some:
        folder = args.disk if wanted.disk else args.memory
        folder.mkdir(parents=True, exist_ok=True)
        inputs = args.inputs.setdefault(folder, Inputs(folder, model))
        known = {case.name: case for case in cases(folder, model)}
        for name in wanted.names:
            if re.search(args.only, name):
                yield _row(known[name], wanted, inputs, args, told)


def _moved(row: Row, where: str) -> str:
    numbers = f"{row.seconds:.2f} | {row.gigabytes_cpu_s:.2f} | {row.cp_seconds:.2f} | **{row.x_cp:.2f}**"
    return f"| {row.name}{where} | {numbers} | {row.peak_mib:.0f} | {row.moved_gigabytes_s:.2f} | {row.limits} |"


def _row(case: Case, wanted: Wanted, inputs: Inputs, args: Namespace, told: Callable[[Row, str], str] | None) -> str:
    folder = args.disk if wanted.disk else args.memory
    more = {"runs": _RUNS, "cold": wanted.cold, "pairs": False, "peft": ""}
    python = "" if wanted.busy or wanted.disk else args.mindspore
    try:
        with one_core_busy() if wanted.busy else nullcontext():
            row = run_case(case, inputs, folder, Namespace(**more, mindspore=python))
    except NoRoom as reason:
        return f"| {case.name} | left out: {reason} |"
    finally:
        remove(folder / "out")
    where = f", {_kind(folder)}" + ", cold" * wanted.cold + ", one core busy" * wanted.busy
    return (told or _told)(row, where)


def _told(row: Row, where: str) -> str:
    read = "" if row.amplification is None else f"{row.amplification:.2f}"
    mindspore = "" if row.x_mindspore is None else f"{row.x_mindspore:.0f}"
    numbers = f"{row.seconds:.2f} | {row.gigabytes_s:.2f} | {row.gigabytes_cpu_s:.2f} | {row.cp_seconds:.2f}"
    beside = f"{row.peak_mib:.0f} | {read} | {row.naive} | {mindspore} | {row.limits}"
    return f"| {row.name}{where} | {numbers} | **{row.x_cp:.2f}** | {beside} |"


def _kind(folder: Path) -> str:
    said = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True)
    return "ext4" if said.stdout.startswith("ext") else said.stdout.strip()


_OTHERS = {"clones": "disk", "far": "memory", "lock": "memory", "growth": "memory"}
"""Programs of this folder, and where each works."""
_IN_MEMORY = ("moves", "small", "lock")
"""Tables for which memory must not cost more when it is first used."""


def other(name: str, args: Namespace) -> Iterator[str]:
    """The rows that another program prints."""
    argv = [sys.executable, str(_HERE / f"{name}.py"), "--dir", str(getattr(args, _OTHERS[name]))]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout
        yield from islice(map(str.rstrip, running.stdout), 2, None)
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, argv)


def put(page: Path, name: str, table: str) -> None:
    """Replace what stands between the markers. Raises LookupError where there are none."""
    before, began, rest = page.read_text().partition(f"<!-- bench {name} -->\n")
    _, ended, after = rest.partition("\n<!-- end -->")
    if not began or not ended:
        raise LookupError(f"{page} has no place for {name}")
    page.write_text(f"{before}{began}{table}{ended}{after}")


def translated(text: str) -> str:
    for word in sorted(_CHINESE, key=len, reverse=True):
        text = text.replace(word, _CHINESE[word])
    return text


def shown(name: str, rows: Iterator[str], *, write: bool, of: str = "") -> None:
    """Print a table, row by row, and put it into the pages."""
    day = time.strftime("%Y-%m-%d") + of
    head = f"| {_HEADS[name]} |\n|{'---|' * (_HEADS[name].count('|') + 1)}"
    print(f"\n{name}, {day}\n\n{head}", flush=True)
    made = []
    for row in rows:
        print(row, flush=True)
        made.append(row)
    table = "\n".join((head, *made))
    if write:
        put(_PAGES["en"], name, f"{day}:\n\n{table}\n")
        put(_PAGES["zh"], name, f"{translated(day).replace(', ', '，')}：\n\n{translated(table)}\n")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--write", action="store_true", help="put the tables into the pages")
    options.add_argument("--memory", type=Path, default=Path("/dev/shm/bench"))
    options.add_argument("--disk", type=Path, default=_HERE / "out")
    options.add_argument("--mindspore", default="", help="its Python; it takes a minute a row, and 5 GB a GB")
    options.add_argument("--layers", type=int, default=18, help="of the large table; 18 make 2.1 GB")
    options.add_argument("--keep-memory", type=int, default=24, help="GiB, as of run.py")
    options.add_argument("--only", default="", help="of the large table, such rows")
    options.add_argument("--tables", default="moves,small,clones,far,lock,growth")
    args = options.parse_args()
    args.inputs = {}
    began = time.monotonic()
    nbytes = sum(spec.nbytes for spec in Model(layers=args.layers).specs().values())
    of = {"moves": f", {nbytes / 1e9:.1f} GB, three pairs", "small": ", three pairs"}
    made: dict[str, Callable[[Namespace], Iterator[str]]] = {"moves": moves, "small": small}
    made |= {name: partial(other, name) for name in _OTHERS}
    failed = []
    for name in args.tables.split(","):
        try:
            with kept(args.keep_memory << 30) if name in _IN_MEMORY else nullcontext():
                shown(name, made[name](args), write=args.write, of=of.get(name, ""))
        except (OSError, ArithmeticError, LookupError, ValueError, subprocess.SubprocessError) as error:
            print(f"{name} is left as it was: {error!r}", flush=True)
            failed.append(name)
        finally:
            for inputs in args.inputs.values():
                inputs.remove()
    if args.write:
        subprocess.run([sys.executable, _HERE.parent / "docsite/punctuation.py", _PAGES["zh"]], check=True)
    os.sync()
    print(f"\n{time.monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(f"not made: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
