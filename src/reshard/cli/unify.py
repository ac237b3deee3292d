"""reshard unify."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from reshard.cli.convert import DryRun, carry_out
from reshard.cli.params import Json, Quiet, Source, Target, conversion_options, takes_conversion_options
from reshard.errors import UsageError


@takes_conversion_options("dst_strategy", "ranks", "drop_redundancy", "format", "prefix")
def unify(
    src: Source,
    dst: Target,
    names: Annotated[str, typer.Option(metavar="mindspore|hf", help="How parts and index are called.")] = "mindspore",
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Merge rank folders, de-duplicated or not, into full safetensors parts with an index.

    \b
    reshard unify ckpt out --src-strategy strategy/ --suffix 1_10
    """
    from reshard.ops.unify import plan_unify

    made = conversion_options(options)
    if names == "mindspore":
        plan = plan_unify(src, dst, made, "mindspore")
    elif names == "hf":
        plan = plan_unify(src, dst, made, "hf")
    else:
        raise UsageError(f"--names {names!r}", hint="mindspore or hf")
    carry_out(plan, dst, made, dry_run=dry_run, json=json, quiet=quiet)
