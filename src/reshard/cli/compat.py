"""reshard compat: other tools' command lines."""

from __future__ import annotations

from importlib import import_module

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="MindFormers' and DeepSpeed's tools, option by option.",
)
_AS_GIVEN = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.callback()
def _compat() -> None:
    """MindFormers' and DeepSpeed's tools, option by option."""


def _hand_over(tool: str, context: typer.Context) -> None:
    raise typer.Exit(import_module(f"reshard.compat.{tool}").main(context.args))


@app.command(
    "transform_checkpoint", short_help="Convert .ckpt weights, by one process or several.", context_settings=_AS_GIVEN
)
def transform_checkpoint(context: typer.Context) -> None:
    """Convert .ckpt weights between parallel layouts, by one process or several.

    \b
    reshard compat transform_checkpoint \\
      --src_checkpoint=llama.ckpt \\
      --dst_checkpoint=out \\
      --dst_strategy=strategy/
    """
    _hand_over("transform_checkpoint", context)


@app.command("transform_ckpt", short_help="Convert rank folders of .ckpt; the older tool.", context_settings=_AS_GIVEN)
def transform_ckpt(context: typer.Context) -> None:
    """Convert rank folders of .ckpt weights between parallel layouts; the older tool.

    \b
    reshard compat transform_ckpt \\
      --src_ckpt_strategy old/ \\
      --src_ckpt_dir ckpt \\
      --dst_ckpt_dir out
    """
    _hand_over("transform_ckpt", context)


@app.command("transform_ckpt_lora", context_settings=_AS_GIVEN)
def transform_ckpt_lora(context: typer.Context) -> None:
    """Merge LoRA weights into their base.

    \b
    reshard compat transform_ckpt_lora \\
      --src_ckpt_path_or_dir lora.ckpt \\
      --dst_ckpt_dir out \\
      --lora_scaling 16/8
    """
    _hand_over("transform_ckpt_lora", context)


@app.command("unified_safetensors", short_help="Merge sliced safetensors into one.", context_settings=_AS_GIVEN)
def unified_safetensors(context: typer.Context) -> None:
    """Merge sliced safetensors into one full checkpoint.

    \b
    reshard compat unified_safetensors \\
      --mindspore_ckpt_dir ckpt \\
      --src_strategy_dirs strategy/ \\
      --output_dir out
    """
    _hand_over("unified_safetensors", context)


@app.command(
    "convert_reversed",
    short_help="The name that the documentation gives unified_safetensors.",
    context_settings=_AS_GIVEN,
)
def convert_reversed(context: typer.Context) -> None:
    """Merge sliced safetensors into one full checkpoint; the documentation's name of unified_safetensors.

    \b
    reshard compat convert_reversed \\
      --mindspore_ckpt_dir ckpt \\
      --src_strategy_dirs strategy/ \\
      --tmp_dir out
    """
    _hand_over("convert_reversed", context)


@app.command(
    "convert_weight",
    short_help="Hugging Face's weights as MindFormers has them, or --reversed.",
    context_settings=_AS_GIVEN,
)
def convert_weight(context: typer.Context) -> None:
    """A Hugging Face folder to MindFormers' names, or back with --reversed.

    \b
    reshard compat convert_weight --model qwen2_5 --input_path Qwen2.5-7B --output_path qwen2_5.ckpt
    reshard compat convert_weight --reversed --model qwen3 --input_path merged --output_path hub \\
      --config_path run.yaml
    """
    _hand_over("convert_weight", context)


@app.command(
    "zero_to_fp32",
    short_help="DeepSpeed's script: a folder of ZeRO to one model in fp32.",
    context_settings=_AS_GIVEN,
)
def zero_to_fp32(context: typer.Context) -> None:
    """A folder that DeepSpeed saved to one model in fp32, as the script beside it does.

    \b
    reshard compat zero_to_fp32 output/checkpoint-500 out --safe_serialization
    """
    _hand_over("zero_to_fp32", context)


@app.command(
    "model_merger",
    short_help="verl's merger: FSDP's files of single ranks to a Hugging Face folder.",
    context_settings=_AS_GIVEN,
)
def model_merger(context: typer.Context) -> None:
    """FSDP's files of single ranks to a Hugging Face folder in bfloat16, as verl's merger does.

    \b
    reshard compat model_merger merge --backend fsdp \\
      --local_dir checkpoints/global_step_100/actor \\
      --target_dir merged
    """
    _hand_over("model_merger", context)
