"""``zero_to_fp32.py`` of DeepSpeed: a folder of ZeRO → ``pytorch_model.bin`` or ``model.safetensors``, all of it fp32.

The options, defaults and file names are those of DeepSpeed 0.19.8. Frozen weights are there at every stage, and so are
folders that the script refuses: those of stage 0, pipelines, tensor and expert parallelism.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from pathlib import Path

from msgspec.structs import replace

from reshard.compat.arguments import Parser
from reshard.compat.console import Progress, log, program, warn
from reshard.compat.placing import placed, to_be_placed
from reshard.digits import number_in
from reshard.errors import counted
from reshard.families.deepspeed import Saved, opened
from reshard.families.registry import listing
from reshard.families.source import Source
from reshard.formats.registry import format_of
from reshard.ops.convert import execute, plan_from
from reshard.ops.options import Options
from reshard.planning.catalog import Catalog
from reshard.storage.storage import join
from reshard.storage.storages import storage_of

_SPELLINGS = {"-t": "--tag", "-e": "--exclude_frozen_parameters", "-d": "--debug"}
_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3, "": 1}
_STAGE_WITHOUT_FROZEN = 1


def _run(argv: Sequence[str]) -> None:
    given = _given(argv)
    place = join(given.checkpoint_dir, given.tag) if given.tag else given.checkpoint_dir
    saved = opened(listing(place), Source(place, family="deepspeed"))
    log(f"Processing zero checkpoint at '{saved.path}'")
    log(f"Detected checkpoint of type zero stage {saved.told.stage}, world_size: {saved.told.world}")
    source = _weights(saved, with_frozen=not given.exclude_frozen_parameters)
    options = Options(
        format="safetensors" if given.safe_serialization else "torch",
        dtype="float32",
        max_shard_nbytes=given.max_shard_size,
    )
    source = to_be_placed(source, given.output_dir)
    with _folder(given.output_dir, source) as folder:
        plan = plan_from(source, str(folder), options)
        warn(plan.warnings)
        progress = Progress("Saving checkpoint shards")
        warn(execute(plan, folder, options, progress).warnings)
    progress.finish()
    elements = sum(prod(tensor.spec.shape) for tensor in source.tensors.values())
    log(f"Reconstructed fp32 state dict with {len(source.tensors)} params {elements} elements")


def _given(argv: Sequence[str]) -> argparse.Namespace:
    options = Parser(
        "zero_to_fp32",
        "One model in fp32 of a folder that DeepSpeed saved.",
        ("output/checkpoint-12 out", "--safe_serialization"),
        _SPELLINGS,
    )
    options.add("checkpoint_dir", help="the folder that holds 'latest', or that of one save")
    options.add("output_dir", help="a folder; gets pytorch_model.bin, or parts of it with an index")
    options.add("--max_shard_size", 5 * 10**9, _nbytes, metavar="SIZE", help="of one file (default: 5GB)")
    options.flag("--safe_serialization", help="model.safetensors rather than pytorch_model.bin")
    options.add("--tag", metavar="TAG", help="(-t) which save, as global_step14; default: what 'latest' says")
    options.flag("--exclude_frozen_parameters", help="(-e) leave out weights that were not trained")
    options.flag("--debug", help="(-d) not used")
    return options.parse(argv)


def _nbytes(text: str) -> int:
    """A size as the script takes it: digits and a unit, powers of 1000."""
    digits, unit = text[:-2], text[-2:].upper()
    if unit not in _UNITS:
        digits, unit = text, ""
    number = number_in(digits.strip())
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is no size as in 5GB or 500MB")
    return number * _UNITS[unit]


def _weights(saved: Saved, *, with_frozen: bool) -> Catalog:
    """What becomes of the save, in the script's order: buffers, frozen weights, those that were trained."""
    source = saved.catalog()
    weights = saved.weights(source)
    frozen = saved.frozen(source) if saved.told.stage or not with_frozen else []
    if frozen:
        lost = saved.told.stage == _STAGE_WITHOUT_FROZEN and with_frozen
        log(
            f"{counted(len(frozen), 'frozen weight')}: {'in the result' if with_frozen else 'left out'}"
            + (" (DeepSpeed's own script loses them at stage 1)" if lost else "")
        )
    first = [name for name in weights if name in saved.told.buffers] + (frozen if with_frozen else [])
    rest = [name for name in weights if name not in {*first, *frozen}]
    return replace(source, tensors={name: weights[name] for name in (*first, *rest)})


def _folder(path: str, source: Catalog) -> AbstractContextManager[str | Path]:
    """Where to write: files of other names that lie in the target stay."""
    if storage_of(path).remote:
        return nullcontext(path)
    named_as_file = format_of(path) is not None  # of which the script makes a folder, too
    return placed(path, (file.path for file in source.files), alone=not named_as_file)


CALLED = {"--iteration": "--tag", "--max-shard-size": "--max_shard_size"}

main = program(_run, CALLED)
