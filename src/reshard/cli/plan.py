"""reshard plan."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from reshard.cli.convert import bill_lines
from reshard.cli.output import say, say_json, warn
from reshard.cli.params import Src, conversion_options, takes_conversion_options
from reshard.cli.progress import waiting
from reshard.cli.reporting import planned
from reshard.cli.text import shown_nbytes
from reshard.streams import json_for


@takes_conversion_options("resume", "overwrite", "verify", "no_fsync", "checksum", "dry_run", "quiet")
def plan(
    src: Src,
    dst: Annotated[
        str | None, typer.Argument(metavar="[DST]", help="Where it would go; its free space is compared.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Print the whole plan as JSON, every byte run.")] = False,
    **options: Any,
) -> None:
    """Say what a conversion would read, write and need; nothing is written.

    \b
    reshard plan ckpt --src-strategy old/ --dst-strategy new/
    """
    from reshard.ops.convert import bill_of
    from reshard.target.preflight import free_nbytes
    from reshard.target.target_paths import Place

    settings = conversion_options(options)
    with waiting("reading headers", quiet=options["json"] or full):
        made, reporting = planned(src, dst, settings, options["report"])
    bill = bill_of(made, dst or ".", settings)
    if reporting:
        reporting.write(made, settings, bill)
    if full:
        say(json_for(sys.stdout, made.to_json().decode()))
        return
    if options["json"]:
        say_json(bill)
        return
    warn(made.warnings)
    free = free_nbytes(Place.of(dst or ".", single=False))
    say("\n".join(bill_lines(bill)))
    if free is not None:
        verdict = "enough" if free >= bill.written_nbytes - bill.shared_nbytes else "NOT ENOUGH"
        say(f"disk     {shown_nbytes(free)} free: {verdict}")
