"""reshard lora merge."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from reshard.cli.convert import DryRun, carry_out
from reshard.cli.params import Json, Quiet, Source, Target, conversion_options, takes_conversion_options
from reshard.cli.reporting import Reporting, ReportPage, page_path
from reshard.cli.text import parse_rename
from reshard.errors import UsageError

Adapter = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(metavar="P", help="The adapter, if not in SRC: file or folder. One a call."),
]
AdapterRename = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(metavar="'RE=>NAME'", help="What the adapter's layers are called in SRC; repeatable."),
]
Stored = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option("--fan-in-fan-out/--no-fan-in-fan-out", help="All weights are stored [in, out], or [out, in]."),
]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Merge LoRA adapters into their base weights.")


@app.callback()
def _lora() -> None:
    """Merge LoRA adapters into their base weights."""


@app.command(short_help="Add LoRA weights to their base, into any layout.")
@takes_conversion_options()
def merge(
    src: Source,
    dst: Target,
    adapter: Adapter = None,
    adapter_rename: AdapterRename = None,
    scaling: Annotated[str, typer.Option(metavar="S", help="By what B @ A counts: 2 or 16/8.")] = "",
    lora_alpha: Annotated[Optional[float], typer.Option(metavar="A", help="Scaling is alpha / rank.")] = None,  # noqa: UP045
    lora_rank: Annotated[Optional[int], typer.Option(metavar="R", help="Scaling is alpha / rank.")] = None,  # noqa: UP045
    config: Annotated[
        str, typer.Option(metavar="P", help="adapter_config.json of PEFT, or a MindFormers YAML with pet_config.")
    ] = "",
    fan_in_fan_out: Stored = None,
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

    if adapter and len(adapter) > 1:
        raise UsageError(
            f"--adapter is given {len(adapter)} times",
            hint="one adapter a call: merge the first, then the next into what that made",
        )
    made, own = conversion_options(options), "".join(adapter or ())
    how = lora_config(scaling, lora_alpha, lora_rank, config, own or src)
    how = replace(how, rename=tuple(map(parse_rename, adapter_rename or ())))
    if fan_in_fan_out is not None:
        how = replace(how, transposed=fan_in_fan_out, stated=True)
    page = page_path(report) if report else None
    source = open_with_adapter(src, made, own)
    plan = plan_lora_of(source, dst, how, made)
    reporting = Reporting(page, source, (src, dst)) if page else None
    carry_out(plan, dst, made, reporting, dry_run=dry_run, json=json, quiet=quiet)
