"""``transform_ckpt_lora.py``: full or sliced weights with LoRA → ``<dst>/merged_lora.ckpt``."""

from __future__ import annotations

from collections.abc import Sequence

from reshard.compat.arguments import Parser, required
from reshard.compat.console import Progress, log, program, warn
from reshard.compat.placing import on_disk, placed
from reshard.compat.strategies import prepared
from reshard.ops.convert import execute
from reshard.ops.lora import lora_config, plan_lora
from reshard.ops.options import Options

_NAMES = {"ckpt": "merged_lora.ckpt", "safetensors": "merged_lora.ckpt.safetensors"}
_SPELLINGS = {
    "--src_ckpt_dir": "--src_ckpt_path_or_dir",
    "--src_checkpoint": "--src_ckpt_path_or_dir",
    "--dst_checkpoint": "--dst_ckpt_dir",
    "--dst_checkpoint_dir": "--dst_ckpt_dir",
    "--src_strategy": "--src_ckpt_strategy",
    "--src_strategy_path_or_dir": "--src_ckpt_strategy",
    "--dst_strategy": "--dst_ckpt_strategy",
    "--dst_strategy_path_or_dir": "--dst_ckpt_strategy",
}
_EXAMPLE = ("--src_ckpt_path_or_dir lora.ckpt", "--dst_ckpt_dir out", "--lora_scaling 16/8")


def _run(argv: Sequence[str]) -> None:
    options = Parser("transform_ckpt_lora", "Merge LoRA weights into their base.", _EXAMPLE, _SPELLINGS)
    add = options.add
    add("--src_ckpt_strategy", metavar="P", help="file or folder; none: a full checkpoint")
    add("--dst_ckpt_strategy", metavar="P", help="merged slices of this layout, not one file")
    add("--src_ckpt_path_or_dir", metavar="P", help="a weight file or the folder of rank_x/")
    add("--dst_ckpt_dir", metavar="P", help="gets merged_lora.ckpt")
    add("--prefix", "checkpoint_", help="with --dst_ckpt_strategy: beginning of the file names")
    add("--lora_scaling", metavar="S", help="lora_alpha/lora_rank: 2 or 16/8 (default: 1)")
    add("--save_format", "ckpt", choices=sorted(_NAMES), help="(default: %(default)s)")
    given = options.parse(argv)
    required({"--src_ckpt_path_or_dir": given.src_ckpt_path_or_dir, "--dst_ckpt_dir": given.dst_ckpt_dir})
    if not given.lora_scaling:
        warn(["no --lora_scaling: 1 is taken, as the reference does; most adapters need lora_alpha/lora_rank"])
    config = lora_config(given.lora_scaling or "1")
    made = Options(
        prepared(given.src_ckpt_strategy),
        prepared(given.dst_ckpt_strategy),
        format=given.save_format,
        prefix=given.prefix,
        select="name",
        overwrite=not given.dst_ckpt_strategy,
    )
    dst = on_disk(given.dst_ckpt_dir)
    if not given.dst_ckpt_strategy:
        dst = dst / _NAMES[given.save_format]
    for name in ("src_ckpt_strategy", "dst_ckpt_strategy", "src_ckpt_path_or_dir", "dst_ckpt_dir", "prefix"):
        log(f"{name}: {getattr(given, name) or None}")
    log("......Start Merge Lorackpt......")
    plan = plan_lora(given.src_ckpt_path_or_dir, dst, config, made)
    warn(plan.warnings)
    log("......Start save merged ckpt......")
    progress = Progress("Merging LoRA")
    if given.dst_ckpt_strategy:
        with placed(dst, (s.path for s in plan.sources)) as folder:
            done = execute(plan, folder, made, progress)
    else:
        done = execute(plan, dst, made, progress)
    progress.finish()
    warn(done.warnings)
    log(f"The merged checkpoint was saved to {dst}")
    log("......Merge succeed!.......")


_CALLED = {
    "--src-strategy": "--src_ckpt_strategy",
    "--dst-strategy": "--dst_ckpt_strategy",
    "--scaling": "--lora_scaling",
    "--format": "--save_format",
}

main = program(_run, _CALLED)
