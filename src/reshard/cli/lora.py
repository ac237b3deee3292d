"""reshard lora merge."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from reshard.cli.convert import DryRun, carry_out
from reshard.cli.params import Json, Quiet, Source, Target, conversion_options, takes_conversion_options
from reshard.cli.reporting import Reporting, ReportPage, page_path

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Merge LoRA adapters into their base weights.")


@app.callback()
def _lora() -> None:
    """Merge LoRA adapters into their base weights."""


@app.command(short_help="Add LoRA weights to their base, into any layout.")
@takes_conversion_options()
def merge(
    src: Source,
    dst: Target,
    adapter: Annotated[str, typer.Option(metavar="P", help="The adapter, if not in SRC: file or folder.")] = "",
    scaling: Annotated[str, typer.Option(metavar="S", help="By what B @ A counts: 2 or 16/8.")] = "",
    lora_alpha: Annotated[Optional[float], typer.Option(metavar="A", help="Scaling is alpha / rank.")] = None,  # noqa: UP045
    lora_rank: Annotated[Optional[int], typer.Option(metavar="R", help="Scaling is alpha / rank.")] = None,  # noqa: UP045
    config: Annotated[
        str, typer.Option(metavar="P", help="adapter_config.json of PEFT, or a MindFormers YAML with pet_config.")
    ] = "",
    fan_in_fan_out: Annotated[bool, typer.Option("--fan-in-fan-out", help="Weights are stored [in, out].")] = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    report: ReportPage = "",
    **options: Any,
) -> None:
    """Add LoRA weights to their base: W + (B @ A) * scaling, from slices or full, to one checkpoint or any layout.

    \b
    reshard lora merge ckpt merged.ckpt --src-strategy strategy/ --scaling 16/8
    reshard lora merge base/ out --adapter adapter/ --format safetensors
    """
    from msgspec.structs import replace

    from reshard.ops.lora import lora_config, open_with_adapter, plan_lora_of

    made = conversion_options(options)
    how = lora_config(scaling, lora_alpha, lora_rank, config, adapter)
    if fan_in_fan_out:
        how = replace(how, transposed=True)
    page = page_path(report) if report else None
    source = open_with_adapter(src, made, adapter)
    plan = plan_lora_of(source, dst, how, made)
    reporting = Reporting(page, source, (src, dst)) if page else None
    carry_out(plan, dst, made, reporting, dry_run=dry_run, json=json, quiet=quiet)
