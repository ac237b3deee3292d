"""``convert_weight.py`` of MindFormers: a Hugging Face folder → MindFormers' names, and back with ``--reversed``.

Models, options and default dtypes are those of r1.3 to r1.8. What the front end or a script dies of there works: llama,
telechat, qwen2_5 back, any number of experts and of files, sizes that a model file tells and nobody typed in.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from reshard.compat.arguments import Parser, truth
from reshard.compat.console import Progress, log, program, warn
from reshard.compat.placing import placed, to_be_placed
from reshard.compat.strategies import prepared
from reshard.dtypes import ALIASES, FLOATING
from reshard.errors import InputError, UsageError, reported
from reshard.families.open_checkpoint import open_source
from reshard.families.parts import Parts
from reshard.formats.registry import format_of
from reshard.names.model import ModelFile
from reshard.names.regroup import Models, Regrouped
from reshard.names.wishes import HUB, Naming
from reshard.ops.convert import execute, plan_from
from reshard.ops.naming import models, renamed
from reshard.ops.options import Options
from reshard.planning.catalog import Catalog
from reshard.planning.names import NameRules
from reshard.storage.storage import join
from reshard.storage.storages import content_of, storage_of
from reshard.yaml_text import text_in


class _ModelName(Struct, frozen=True):
    """What the tool calls a model: Hugging Face's word for it, whose names its weights get, and in which dtypes they
    are written where none is asked for: there and back, "" for as they are.
    """

    type: str
    names: str = "mindformers"
    dtype: str = "fp32"
    back: str = ""


_LLAMA = _ModelName("llama")
_MODELS = {
    **dict.fromkeys(("llama", "yi", "deepseek", "deepseek1_5", "knowlm"), _LLAMA),
    "qwen2": _ModelName("qwen2"),
    "qwen2_5": _ModelName("qwen2", dtype="bf16"),
    "qwen2-moe": _ModelName("qwen2_moe", dtype="bf16"),
    **dict.fromkeys(("glm-n", "glm4"), _ModelName("chatglm")),
    "internlm2": _ModelName("internlm2", dtype=""),
    "baichuan2": _ModelName("baichuan", dtype=""),
    "mixtral": _ModelName("mixtral"),
    **dict.fromkeys(("telechat", "telechat2"), _ModelName("telechat", dtype="")),
    "deepseekv3": _ModelName("deepseek_v3", "mcore", "bf16", "bf16"),
    "qwen3": _ModelName("qwen3", "mcore", "", "bf16"),
    "qwen3-moe": _ModelName("qwen3_moe", "mcore", "", "bf16"),
}
_SIZES = {
    **{name: name for name in ("num_layers", "hidden_size", "ffn_hidden_size", "moe_ffn_hidden_size", "kv_channels",
                               "num_attention_heads", "num_query_groups", "vocab_size", "num_nextn_predict_layers",
                               "first_k_dense_replace", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")},
    "n_head": "num_attention_heads", "num_routed_experts": "num_moe_experts", "num_experts": "num_moe_experts",
}  # fmt: skip
"""Options that tell a size → the key that tells it in a model file."""
_UNUSED = ("layers", "telechat_type", "is_pretrain", "split_mla", "model_name", "align_rank")
_RELEASE = "r1.8"
_ADAPTER = "adapter_config.json"
_SPELLINGS = {
    **dict.fromkeys(
        ("--torch_ckpt_dir", "--torch_ckpt_path", "--huggingface_ckpt_path", "--pre_ckpt_path"), "--input_path"
    ),
    "--mindspore_ckpt_path": "--output_path",
    "--config": "--config_path",
    "--concat": "--qkv_concat",
    "--strategy_dir": "--src_strategy",
    "--use_grouped_gemm": "--use_gmm",
}  # fmt: skip


def _run(argv: Sequence[str]) -> None:
    given = _given(argv)
    model = _model(given.model)
    place = _place(given)
    source = open_source(Options(prepared(given.src_strategy)).source(place))
    files = _files(given, model, place)
    made = renamed(source, _naming(given, model, source, files), files, NameRules(weights_only=given.reversed))
    if given.reversed and made.convention == HUB:
        raise UsageError("it has Hugging Face's names already", place, "leave --reversed out")
    asked = given.dtype or ("" if given.qkv_concat else model.back if given.reversed else model.dtype)
    whose = "MindFormers" if given.reversed or given.qkv_concat else "Hugging Face"
    log(f"Trying to convert the {whose} weights in '{place}'")
    config = _adapter_config(place) if given.is_lora and not given.reversed else {}
    _write(given, model, _cast(made.catalog, asked))
    if config:
        _write_adapter_config(config, given.output_path, made)
    log(f"Convert finished, the weights are saved in '{given.output_path}'")


def _given(argv: Sequence[str]) -> argparse.Namespace:
    example = ("--model qwen2_5", "--input_path Qwen2.5-7B", "--output_path qwen2_5.ckpt")
    options = Parser(
        "convert_weight", "Hugging Face's weights as MindFormers has them, or --reversed.", example, _SPELLINGS
    )
    add = options.add
    add("--model", required=True, metavar="M", help=f"one of: {', '.join(_MODELS)}")
    options.flag("--reversed", help="MindFormers' weights to Hugging Face's names")
    add("--input_path", required=True, metavar="P", help="a folder, or a weight file in it")
    add("--output_path", required=True, metavar="P", help="a .ckpt, .safetensors or .bin file, or a folder")
    add("--dtype", choices=("", "fp32", "bf16", "fp16"), help="default: the model's, as in MindFormers")
    add("--config_path", metavar="YAML", help="the run's YAML; default: config.json beside the input")
    add("--qkv_concat", False, truth, metavar="BOOL", help="fuse what MindFormers' own weights hold apart")
    add("--is_lora", False, truth, metavar="BOOL", help="a PEFT adapter; its configuration comes along")
    add("--use_gmm", None, truth, metavar="BOOL", help="experts as grouped matmul has them")
    add("--src_strategy", metavar="P", help="of rank folders, with --reversed")
    for name in _SIZES:
        add(f"--{name}", None, int, metavar="N", help="a size of the model, where no file tells it")
    for name in _UNUSED:
        add(f"--{name}", help="not used")
    given = options.parse(argv)
    if given.reversed and given.qkv_concat:
        raise UsageError("--reversed and --qkv_concat contradict each other", hint="the names tell how q, k, v lie")
    return given


def _model(name: str) -> _ModelName:
    if name not in _MODELS:
        raise UsageError(f"--model {name!r}", hint=f"one of: {', '.join(_MODELS)}")
    return _MODELS[name]


def _place(given: argparse.Namespace) -> str:
    """The input; of a file of a Hugging Face folder all of the folder, as the tool takes it."""
    path = Path(given.input_path)
    if given.reversed or given.qkv_concat or path.is_dir() or not (path.parent / "config.json").is_file():
        return str(given.input_path)
    return str(path.parent)


def _files(given: argparse.Namespace, model: _ModelName, place: str) -> Models:
    """What is known of the model: options, the YAML, the configuration beside the input."""
    sizes = {key: getattr(given, name) for name, key in _SIZES.items() if getattr(given, name) is not None}
    if given.use_gmm is not None:
        sizes["use_gmm"] = given.use_gmm
    said = ModelFile("the command line", False, (model.type,), sizes)
    found = models(place, Naming(dst=HUB if given.reversed else model.names, model=given.config_path))
    dst = [_fused(file) if given.qkv_concat else file for file in found.dst]
    return Models((said, *found.src), (said, *dst))


def _fused(file: ModelFile) -> ModelFile:
    return replace(file, values={**file.values, "qkv_concat": True, "mlp_concat": True})


def _naming(given: argparse.Namespace, model: _ModelName, source: Catalog, files: Models) -> Naming:
    codes = any(tensor.spec.dtype.startswith("float8") for tensor in source.tensors.values())
    if given.reversed:
        return Naming(dst=HUB, release=_RELEASE, dequantize=codes)
    tied = any(file.hub and file.values.get("tie_word_embeddings") is True for file in files.src)
    return Naming(
        src=model.names if given.qkv_concat else HUB,
        dst=model.names,
        release=_RELEASE,
        tied="copy" if tied and model.names == "mindformers" and not given.is_lora else "",
        dequantize=codes,
    )


def _cast(source: Catalog, dtype: str) -> Catalog:
    """In this dtype, except where the model keeps a tensor in one of its own."""
    own = {name for name, tensor in source.tensors.items() if tensor.cast_to and tensor.scales is None}
    tensors = {
        name: tensor
        if name in own or not dtype or tensor.wanted_dtype not in FLOATING
        else replace(tensor, cast_to=ALIASES[dtype])
        for name, tensor in source.tensors.items()
    }
    return replace(source, tensors=tensors, own=None)


def _write(given: argparse.Namespace, model: _ModelName, source: Catalog) -> None:
    """To the file that the output names, or into its folder; without a suffix it is what the tool makes of it."""
    target = given.output_path
    whole = format_of(target) is not None
    if not whole and not Path(target).is_dir() and not target.endswith("/"):
        whole = not given.reversed and model.names != "mcore"  # as MindSpore's save_checkpoint calls it then
        target += ".ckpt" if whole else ""
    if not whole:
        source = to_be_placed(source, target)
    with nullcontext(target) if whole else placed(target, (file.path for file in source.files)) as place:
        kind = None if whole else Parts(names="hf" if given.reversed else "mindspore")
        options = Options(overwrite=whole) if whole else Options(format="safetensors")
        plan = plan_from(source, str(place), options, kind=kind)
        warn(plan.warnings)
        for left in plan.left_out:
            log(f"{left.fate}: {len(left.names)}: {left.reason}")
        progress = Progress("Converting weights")
        warn(execute(plan, place, options, progress).warnings)
    progress.finish()


def _adapter_config(place: str) -> dict[str, Any]:
    """PEFT's configuration of the adapter; empty without one. Raises InputError."""
    path = join(place, _ADAPTER)
    if storage_of(path).entry(path) is None:
        return {}
    try:
        return msgspec.json.decode(text_in(content_of(path), path), type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"not PEFT's JSON: {error}", path) from None


def _write_adapter_config(config: dict[str, Any], output: str, made: Regrouped) -> None:
    """The configuration beside the output, its modules under their new names."""
    stages = [
        (fate.source.split("."), target.split(".")) for fates in made.fates for fate in fates for target in fate.targets
    ]
    renaming = {source[-3]: target[-2] for source, target in stages if source[-2:-1] in (["lora_A"], ["lora_B"])}
    modules = config.get("target_modules")
    if isinstance(modules, list):
        config = {**config, "target_modules": [renaming.get(str(module), module) for module in modules]}
    beside = Path(output) if Path(output).is_dir() else Path(output).parent
    with reported(beside / _ADAPTER):
        (beside / _ADAPTER).write_text(json.dumps(config, indent=4))


CALLED = {"--src-strategy": "--src_strategy", "--model": "--config_path", "--dtype": "--dtype"}

main = program(_run, CALLED)
