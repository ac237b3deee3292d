"""reshard unify."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from reshard.cli.completion import one_of
from reshard.cli.convert import carry_out, how_told
from reshard.cli.params import Dst, Src, conversion_options, takes_conversion_options
from reshard.cli.reporting import Reporting, page_path
from reshard.errors import UsageError


@takes_conversion_options(
    "dst_strategy", "ranks", "drop_redundancy", "format", "prefix", "to", "files", "tp", "pp", "ep"
)
def unify(
    src: Src,
    dst: Dst,
    names: Annotated[
        str,
        typer.Option(
            metavar="mindspore|hf",
            help="How parts and index are called.",
            autocompletion=one_of("mindspore", "hf"),
        ),
    ] = "mindspore",
    **options: Any,
) -> None:
    """Merge rank folders, de-duplicated or not, into full safetensors parts with an index.

    \b
    reshard unify ckpt out --src-strategy strategy/ --suffix 1_10
    """
    from reshard.families.open_checkpoint import open_source
    from reshard.ops.unify import plan_unify_of

    made = conversion_options(options)
    if names not in ("mindspore", "hf"):
        raise UsageError(f"--names {names!r}", hint="mindspore or hf")
    page = page_path(options["report"]) if options["report"] else None
    source = open_source(made.source(src))
    plan = plan_unify_of(source, dst, made, "hf" if names == "hf" else "mindspore")
    reporting = Reporting(page, source, (src, dst)) if page else None
    carry_out(plan, dst, made, reporting, **how_told(options))
