"""``unified_safetensors.py``: sliced safetensors → ``<output>/<suffix>_ckpt_convert/unified_safe/``."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from reshard.compat.arguments import Parser, required, truth
from reshard.compat.console import Progress, log, program, warn
from reshard.compat.placing import on_disk
from reshard.compat.strategies import prepared
from reshard.errors import reported
from reshard.ops.convert import execute
from reshard.ops.options import Options
from reshard.ops.strategies import merge
from reshard.ops.unify import plan_unify
from reshard.planning.names import NameRules

_SPELLINGS = {
    "--tmp_dir": "--output_dir",
    "--src_strategy": "--src_strategy_dirs",
    "--src_strategy_path_or_dir": "--src_strategy_dirs",
}


def unify(name: str, argv: Sequence[str], *, merge_in_place: bool) -> None:
    """The command line, under the name of either tool.

    Args:
        merge_in_place: ``merged_ckpt_strategy.ckpt`` is written into the strategies' folder too.
    """
    given = _given(name, argv)
    out = Path(on_disk(given.output_dir), f"{given.file_suffix}_ckpt_convert")
    if given.has_redundancy is not None:
        warn(
            [
                f"has_redundancy={given.has_redundancy} is not used: what the files hold decides "
                "(what the option means changed between releases)"
            ]
        )
    log("Start merge strategy")
    strategy = prepared(given.src_strategy_dirs, write=merge_in_place)
    prefix = given.filter_out_param_prefix
    options = Options(
        strategy,
        suffix=given.file_suffix,
        names=NameRules(exclude=(f"^{re.escape(prefix)}",) if prefix else ()),
        overwrite=True,
    )
    log("Start merge safetensor")
    dst = out / "unified_safe"
    plan = plan_unify(given.mindspore_ckpt_dir, dst, options)
    warn(plan.warnings)
    for left in plan.left_out:
        log(f"{left.fate}: {len(left.names)}: {left.reason}")
    _merged_strategy(given.src_strategy_dirs, out / "merge_strategy")
    log("Merge strategy completed")
    progress = Progress("Merging safetensors")
    warn(execute(plan, dst, options, progress).warnings)
    progress.finish()
    log("Merge safetensor completed")
    log(f"merged safetensor path: {dst}")


def _given(name: str, argv: Sequence[str]) -> argparse.Namespace:
    example = ("--mindspore_ckpt_dir ckpt", "--src_strategy_dirs strategy/", "--output_dir out")
    options = Parser(
        name, "Merge sliced safetensors, de-duplicated or not, into one full checkpoint.", example, _SPELLINGS
    )
    add = options.add
    add("--mindspore_ckpt_dir", metavar="P", help="the folder of rank_x/")
    add("--src_strategy_dirs", metavar="P", help="strategy folder or file")
    add("--output_dir", metavar="P", help="gets SUFFIX_ckpt_convert/ (also --tmp_dir)")
    add("--file_suffix", "1_1", metavar="E_S", help="end of the file names (default: %(default)s)")
    add("--format", "safetensors", choices=["ckpt", "safetensors"], help="not used, as in the reference")
    add("--has_redundancy", None, truth, metavar="BOOL", help="not used: what the files hold decides")
    add("--filter_out_param_prefix", metavar="S", help="leave out parameters that begin so")
    add("--max_process_num", 64, int, metavar="N", help="not used: threads that suit the disks")
    given = options.parse(argv)
    names = ("mindspore_ckpt_dir", "src_strategy_dirs", "output_dir")
    required({f"--{n}": getattr(given, n) for n in names})
    return given


def _merged_strategy(given: str, folder: Path) -> None:
    """The strategy as one file beside the result."""
    suffix = next((p.suffix for p in sorted(Path(given).glob("*.*")) if p.suffix in (".ckpt", ".json")), ".ckpt")
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if Path(given).is_dir():
        merge(given, str(folder / f"merge_strategy{suffix}"), overwrite=True)
    else:
        with reported(given):
            shutil.copyfile(given, folder / f"merge_strategy{Path(given).suffix}")


def _run(argv: Sequence[str]) -> None:
    unify("unified_safetensors", argv, merge_in_place=False)


CALLED = {"--src-strategy": "--src_strategy_dirs", "--suffix": "--file_suffix"}

main = program(_run, CALLED)
