"""``python -m verl.model_merger``: FSDP's files of single ranks → a Hugging Face folder in bfloat16; or both compared.

The options, defaults and file names are those of verl's merger for the backend fsdp. Any mesh is read, names of mesh
dims do not matter, buffers are taken once, and integers stay what they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from reshard.compat.arguments import Parser
from reshard.compat.console import Progress, log, program, warn
from reshard.compat.placing import placed
from reshard.errors import CheckpointError, UsageError, reported
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.ops.convert import execute, plan_from
from reshard.ops.diff import verify_content
from reshard.ops.options import Options
from reshard.planning.catalog import Catalog
from reshard.planning.names import NameRules

_MERGE, _TEST = "merge", "test"
_PART_NBYTES = 5 * 10**9
_DTYPE = "bfloat16"
_LORA = "lora_"
_OF_LORA = (("^base_model\\.model\\.", ""), ("\\.base_layer\\.", "."))
_ADAPTER_NAMES = (("\\.default\\.weight$", ".weight"),)
_TOLD = "lora_train_meta.json"
_DESCRIBING = (".json", ".model", ".txt", ".jinja", ".py")
_NOT_DESCRIBING = ("fsdp_config.json", _TOLD)
_SPELLINGS = {"--tie_word_embedding": "--tie-word-embedding", "--is_value_model": "--is-value-model"}


def _run(argv: Sequence[str]) -> None:
    given = _given(argv)
    if given.operation == _TEST:
        _compare(given.local_dir, given.test_hf_dir)
        return
    source = open_source(Source(given.local_dir, family="fsdp"))
    source = replace(
        source, places=()
    )  # verl's users put the model among the ranks' files, which are told by their names
    log(f"Merging {source.family}")
    lora = [name for name in source.tensors if _LORA in name]
    config = _adapter_config(source, lora, given.local_dir) if lora else ""
    base = NameRules((), (_LORA,), _OF_LORA, weights_only=True) if lora else NameRules(weights_only=True)
    with placed(given.target_dir, (file.path for file in source.files)) as folder:
        _write(source, folder, base)
        described = _copy_description(given.hf_model_path or given.local_dir, folder)
        if lora:
            adapter = folder / "lora_adapter"
            _write(
                source,
                adapter / "adapter_model.safetensors",
                NameRules((_LORA,), (), _ADAPTER_NAMES, weights_only=True),
            )
            (adapter / "adapter_config.json").write_text(config)
            described.append("the LoRA adapter")
    log(f"Saved the model, {', '.join(described) or 'and no config: none was found'} to {given.target_dir}")


def _given(argv: Sequence[str]) -> argparse.Namespace:
    options = Parser(
        "model_merger",
        "A Hugging Face folder in bfloat16 of the files that FSDP's ranks saved, or a comparison with one.",
        ("merge", "--backend fsdp", "--local_dir global_step_100/actor", "--target_dir merged"),
        _SPELLINGS,
    )
    options.add("operation", help="merge, or test: compare with --test_hf_dir", choices=(_MERGE, _TEST))
    options.add("--backend", required=True, choices=("fsdp", "megatron"), help="fsdp")
    options.add("--local_dir", required=True, metavar="DIR", help="the folder of model_world_size_…_rank_….pt")
    options.add("--target_dir", "tmp", metavar="DIR", help="where the folder goes (default: tmp)")
    options.add("--hf_model_path", metavar="DIR", help="where config and tokenizer are, if not in local_dir")
    options.add("--test_hf_dir", metavar="DIR", help="the model to compare with")
    options.add("--hf_upload_path", help="not done here: upload the folder with huggingface-cli")
    options.flag("--private", help="of an upload: not used")
    for option in ("--tie-word-embedding", "--is-value-model", "--use_cpu_initialization", "--trust-remote-code"):
        options.flag(option, help="not used")
    given = options.parse(argv)
    if given.backend != "fsdp":
        raise UsageError(f"--backend {given.backend}: not read yet by this release")
    if given.hf_upload_path:
        raise UsageError("--hf_upload_path: nothing is uploaded", hint="huggingface-cli upload REPO TARGET_DIR")
    if given.operation == _TEST and not given.test_hf_dir:
        raise UsageError("test needs --test_hf_dir, the model to compare with")
    return given


def _write(source: Catalog, target: Path, names: NameRules) -> None:
    in_parts = {} if target.suffix else {"to": "parts", "max_shard_nbytes": _PART_NBYTES}
    options = Options(format="safetensors", dtype=_DTYPE, names=names, **in_parts)  # type: ignore[arg-type]
    plan = plan_from(source, str(target), options)
    warn(plan.warnings)
    progress = Progress("Saving model")
    warn(execute(plan, target, options, progress).warnings)
    progress.finish()


def _compare(local_dir: str, test_hf_dir: str) -> None:
    """Raises DifferenceError naming each tensor that differs."""
    source, target = Source(local_dir, family="fsdp"), Source(test_hf_dir)
    found = verify_content(source, target, NameRules(weights_only=True), _DTYPE)
    log(f"FSDP checks passed: {found.tensors} tensors are those of {test_hf_dir}")


def _adapter_config(source: Catalog, names: Sequence[str], local_dir: str) -> str:
    """What PEFT needs to load the adapter: rank and alpha as the trainer noted them, else as its shapes have them."""
    noted = Path(local_dir, _TOLD)
    try:
        told: dict[str, Any] = {**json.loads(noted.read_bytes())} if noted.is_file() else {}
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"not what a trainer notes: {error}", str(noted)) from None
    rank = min(source.tensors[names[0]].spec.shape)
    if "lora_alpha" not in told:
        warn([f"no {_TOLD}: lora_alpha is 0 in adapter_config.json; set it"])
    modules = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in names})
    content = {"peft_type": "LORA", "r": rank, "lora_alpha": 0, "task_type": None, "target_modules": modules}
    return json.dumps({**content, **told}, indent=2)


def _copy_description(path: str, folder: Path) -> list[str]:
    """Copy config, tokenizer and what else describes the model, from ``huggingface/`` below or from the folder."""
    place = next((p for p in (Path(path, "huggingface"), Path(path)) if (p / "config.json").is_file()), None)
    if place is None:
        return []
    described = [file for file in sorted(place.iterdir()) if file.is_file() and file.suffix in _DESCRIBING]
    for file in described:
        if file.name not in _NOT_DESCRIBING and not file.name.endswith(".index.json"):
            with reported(file):
                shutil.copy(file, folder / file.name)
    return ["config and tokenizer"]


main = program(_run, {})
