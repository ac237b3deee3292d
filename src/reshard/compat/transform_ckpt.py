"""``transform_ckpt.py``, the older tool: rank folders → ``<dst>/rank_r/{prefix}{r}.ckpt``."""

from __future__ import annotations

from collections.abc import Sequence

from reshard.compat.arguments import Parser, required
from reshard.compat.console import Progress, log, program, warn
from reshard.compat.placing import placed
from reshard.compat.strategies import prepared
from reshard.ops.convert import execute, plan
from reshard.ops.options import Options

_SPELLINGS = {
    "--src_checkpoint": "--src_ckpt_dir",
    "--src_ckpt_path_or_dir": "--src_ckpt_dir",
    "--dst_checkpoint": "--dst_ckpt_dir",
    "--dst_checkpoint_dir": "--dst_ckpt_dir",
    "--src_strategy": "--src_ckpt_strategy",
    "--src_strategy_path_or_dir": "--src_ckpt_strategy",
    "--dst_strategy": "--dst_ckpt_strategy",
    "--dst_strategy_path_or_dir": "--dst_ckpt_strategy",
}
_EXAMPLE = ("--src_ckpt_strategy old/", "--src_ckpt_dir ckpt", "--dst_ckpt_dir out")


def _run(argv: Sequence[str]) -> None:
    options = Parser(
        "transform_ckpt", "Convert rank folders of .ckpt weights between parallel layouts.", _EXAMPLE, _SPELLINGS
    )
    add = options.add
    add("--src_ckpt_strategy", metavar="P", help="file or folder; none: a full checkpoint")
    add("--dst_ckpt_strategy", metavar="P", help="file or folder; none: a full checkpoint")
    add("--src_ckpt_dir", metavar="P", help="the folder of rank_x/")
    add("--dst_ckpt_dir", metavar="P", help="gets rank_r/{prefix}{r}.ckpt")
    add("--prefix", "checkpoint_", help="beginning of the file names (default: %(default)s)")
    add("--missing", "error", choices=["error", "drop"], help="ours: drop leaves out what nobody can know")
    given = options.parse(argv)
    required({"--src_ckpt_dir": given.src_ckpt_dir, "--dst_ckpt_dir": given.dst_ckpt_dir})
    made = Options(
        prepared(given.src_ckpt_strategy),
        prepared(given.dst_ckpt_strategy),
        format="ckpt",
        prefix=given.prefix,
        select="name",
        missing=given.missing,
    )
    for name in ("src_ckpt_strategy", "dst_ckpt_strategy", "src_ckpt_dir", "dst_ckpt_dir", "prefix"):
        log(f"{name}: {getattr(given, name) or None}")
    log("......Start transform......")
    ready = plan(given.src_ckpt_dir, given.dst_ckpt_dir, made)
    warn(ready.warnings)
    progress = Progress("Transforming checkpoint")
    with placed(given.dst_ckpt_dir, (s.path for s in ready.sources)) as folder:
        warn(execute(ready, folder, made, progress).warnings)
    progress.finish()
    log("......Transform succeed!......")


_CALLED = {
    "--src-strategy": "--src_ckpt_strategy",
    "--dst-strategy": "--dst_ckpt_strategy",
    "--missing": "--missing",
}

main = program(_run, _CALLED)
