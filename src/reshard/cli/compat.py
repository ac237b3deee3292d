"""reshard compat: other tools' command lines."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from textwrap import dedent

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="MindFormers' and DeepSpeed's tools, option by option.",
)

_TOOLS = {
    "transform_checkpoint": (
        "Convert .ckpt weights, by one process or several.",
        "Convert .ckpt weights between parallel layouts, by one process or several.",
        r"""
        reshard compat transform_checkpoint \
          --src_checkpoint=llama.ckpt \
          --dst_checkpoint=out \
          --dst_strategy=strategy/
        """,
    ),
    "transform_ckpt": (
        "Convert rank folders of .ckpt; the older tool.",
        "Convert rank folders of .ckpt weights between parallel layouts; the older tool.",
        r"""
        reshard compat transform_ckpt \
          --src_ckpt_strategy old/ \
          --src_ckpt_dir ckpt \
          --dst_ckpt_dir out
        """,
    ),
    "transform_ckpt_lora": (
        "Merge LoRA weights into their base.",
        "Merge LoRA weights into their base.",
        r"""
        reshard compat transform_ckpt_lora \
          --src_ckpt_path_or_dir lora.ckpt \
          --dst_ckpt_dir out \
          --lora_scaling 16/8
        """,
    ),
    "unified_safetensors": (
        "Merge sliced safetensors into one.",
        "Merge sliced safetensors into one full checkpoint.",
        r"""
        reshard compat unified_safetensors \
          --mindspore_ckpt_dir ckpt \
          --src_strategy_dirs strategy/ \
          --output_dir out
        """,
    ),
    "convert_reversed": (
        "The name that the documentation gives unified_safetensors.",
        "Merge sliced safetensors into one full checkpoint; the documentation's name of unified_safetensors.",
        r"""
        reshard compat convert_reversed \
          --mindspore_ckpt_dir ckpt \
          --src_strategy_dirs strategy/ \
          --tmp_dir out
        """,
    ),
    "convert_weight": (
        "Hugging Face's weights as MindFormers has them, or --reversed.",
        "A Hugging Face folder to MindFormers' names, or back with --reversed.",
        r"""
        reshard compat convert_weight --model qwen2_5 --input_path Qwen2.5-7B --output_path qwen2_5.ckpt
        reshard compat convert_weight --reversed --model qwen3 --input_path merged --output_path hub \
          --config_path run.yaml
        """,
    ),
    "zero_to_fp32": (
        "DeepSpeed's script: a folder of ZeRO to one model in fp32.",
        "A folder that DeepSpeed saved to one model in fp32, as the script beside it does.",
        r"""
        reshard compat zero_to_fp32 output/checkpoint-500 out --safe_serialization
        """,
    ),
    "model_merger": (
        "verl's merger: FSDP's files of single ranks to a Hugging Face folder.",
        "FSDP's files of single ranks to a Hugging Face folder in bfloat16, as verl's merger does.",
        r"""
        reshard compat model_merger merge --backend fsdp \
          --local_dir checkpoints/global_step_100/actor \
          --target_dir merged
        """,
    ),
}
"""Of each tool a line for the list, what it does, and how it is called."""


@app.callback()
def _compat() -> None:
    """MindFormers' and DeepSpeed's tools, option by option."""


def _handing_over_to(tool: str) -> Callable[[typer.Context], None]:
    def hand_over(context: typer.Context) -> None:
        raise typer.Exit(import_module(f"reshard.compat.{tool}").main(context.args))

    return hand_over


for _tool, (_line, _does, _example) in _TOOLS.items():
    app.command(
        _tool,
        short_help=_line,
        help=f"{_does}\n\n\b\n{dedent(_example).strip()}",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    )(_handing_over_to(_tool))
