"""reshard lora merge."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from reshard.cli.convert import carry_out, how_told
from reshard.cli.params import Dst, Src, conversion_options, takes_conversion_options
from reshard.cli.reporting import Reporting, page_path
from reshard.cli.text import parse_rename
from reshard.errors import UsageError, counted

if TYPE_CHECKING:
    from reshard.ops.scaling import LoraConfig

Adapters = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--adapter", metavar="P", help="The adapter, if not in SRC: file or folder; repeatable."),
]
Weights = Annotated[str, typer.Option(metavar="W,W", help="By what each adapter counts besides its scaling.")]
Combining = Annotated[str, typer.Option(metavar="HOW", help="Several adapters: cat adds products, linear factors.")]
Initial = Annotated[
    str, typer.Option(metavar="P", help="The adapter before its training (PiSSA, OLoRA, CorDA): taken out of SRC.")
]
AllowNan = Annotated[bool, typer.Option("--allow-nan", help="Write sums that are NaN or infinite, too; they are told.")]
AdapterRename = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(metavar="'RE=>NAME'", help="What the adapter's layers are called in SRC; repeatable."),
]
FanInFanOut = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option("--fan-in-fan-out/--no-fan-in-fan-out", help="Weights of layers are stored [in, out], or [out, in]."),
]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Merge LoRA adapters into their base weights.")


@app.callback()
def _lora() -> None:
    """Merge LoRA adapters into their base weights."""


@app.command(short_help="Add LoRA weights to their base, into any layout.")
@takes_conversion_options()
def merge(
    src: Src,
    dst: Dst,
    adapter: Adapters = None,
    weights: Weights = "",
    combination: Combining = "cat",
    initial: Initial = "",
    adapter_rename: AdapterRename = None,
    scaling: Annotated[str, typer.Option(metavar="S", help="By what B @ A counts: 2 or 16/8.")] = "",
    lora_alpha: Annotated[Optional[float], typer.Option(metavar="A", help="Scaling is alpha / rank.")] = None,  # noqa: UP045
    lora_rank: Annotated[Optional[int], typer.Option(metavar="R", min=1, help="Scaling is alpha / rank.")] = None,  # noqa: UP045
    config: Annotated[
        str, typer.Option(metavar="P", help="adapter_config.json of PEFT, or a MindFormers YAML with pet_config.")
    ] = "",
    fan_in_fan_out: FanInFanOut = None,
    allow_nan: AllowNan = False,
    **options: Any,
) -> None:
    """Add LoRA weights to their base: W + (B @ A) * scaling, from slices or full, to one checkpoint or any layout.

    \b
    reshard lora merge ckpt merged.ckpt --src-strategy strategy/ --scaling 16/8
    reshard lora merge base/ out --adapter adapter/ --format safetensors
    """
    from reshard.ops.adapters import AdapterAt
    from reshard.ops.lora import lora_config, open_merge, plan_merge
    from reshard.planning.lora_values import combination_named

    paths, made = adapter or [""], conversion_options(options)
    counts = _weights(weights, len(paths))
    renames = tuple(map(parse_rename, adapter_rename or ()))
    adapters = []
    for path, weight in zip(paths, counts, strict=True):
        how = lora_config(scaling, lora_alpha, lora_rank, config, path or src, initial=bool(initial))
        adapters.append(AdapterAt(path, _told(how, renames, fan_in_fan_out), weight, initial))
    page = page_path(options["report"]) if options["report"] else None
    merge_of = open_merge(src, made, adapters, combination_named(combination), allow_nan=allow_nan)
    plan = plan_merge(merge_of, dst)
    reporting = Reporting(page, merge_of.joined.source, (src, dst)) if page else None
    carry_out(plan, dst, made, reporting, **how_told(options))


def _told(how: LoraConfig, renames: tuple[tuple[str, str], ...], fan_in_fan_out: Optional[bool]) -> LoraConfig:  # noqa: UP045
    """A configuration with what the command line says besides."""
    from msgspec.structs import replace

    if fan_in_fan_out is None:
        return replace(how, rename=renames)
    return replace(how, rename=renames, transposed=fan_in_fan_out, stated=True)


def _weights(text: str, adapters: int) -> list[float]:
    """One for each adapter; 1 without. Raises UsageError."""
    if not text:
        return [1.0] * adapters
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--weights {text!r}", hint="numbers, as 0.7,0.3") from None
    if len(found) != adapters or not all(isfinite(each) for each in found):
        raise UsageError(f"--weights {text!r} for {counted(adapters, 'adapter')}", hint="one number for each --adapter")
    return found
