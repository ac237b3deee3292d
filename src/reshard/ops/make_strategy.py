"""Strategies from a job's configuration, without an accelerator and without compiling the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import StrategyError, UsageError, reported
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.index import TensorSpec
from reshard.planning.names import is_lora, is_state
from reshard.storage.disk import Disk
from reshard.strategy.families import family_of
from reshard.strategy.job import Job, Sizes, as_release
from reshard.strategy.marked_files import made_files
from reshard.strategy.model_yaml import job_of, model_names, read_job
from reshard.strategy.named import named_by_family, values_of
from reshard.strategy.optimizer_shard import OptimizerParallel
from reshard.strategy.optimizer_states import NONE, check_optimizer, optimizer_of
from reshard.strategy.placing import Stages, place
from reshard.strategy.rules import RuleFamily, read_family
from reshard.yaml_text import text_of, whole_numbers


class StrategyWish(Struct, frozen=True):
    """What a user asks for.

    Attributes:
        config: a MindFormers YAML; "" with ``rules`` and ``sizes`` alone.
        rules: a rules file instead of the built-in families.
        sizes: of the axes, where there is no YAML.
        checkpoint: one full checkpoint whose headers say names and shapes.
        optimizer: instead of the YAML's; ``none`` for the weights alone.
        optimizer_parallel: share weights of 64 KB and more among their replicas, where there is no YAML.
        content: of the YAML, where it was read already; ``config`` then is its name for messages.
    """

    config: str = ""
    rules: str = ""
    sizes: Sizes | None = None
    checkpoint: str = ""
    mindformers_version: str = ""
    optimizer: str = ""
    optimizer_parallel: bool = False
    content: Mapping[str, Any] | None = None


class MadeStrategy(Struct, frozen=True):
    """What was written. ``tensors``: of each stage."""

    folder: str
    files: int
    family: str
    devices: int
    tensors: tuple[int, ...]


def make_strategy(making: StrategyWish, out: str, *, merged: bool = False, json_format: bool = False) -> MadeStrategy:
    """Write the strategy files of a job into a new folder. Raises StrategyError, UsageError, CheckpointError."""
    folder = Path(out)
    with reported(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError("the folder is not empty", out, "name a new one with -o")
    family, job, stages = made_stages(making)
    files = made_files(stages, job.sizes.devices, merged=merged, json_format=json_format)
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        Disk().write_whole(str(folder / name), content, fsync=False)
    return MadeStrategy(out, len(files), family.name, job.sizes.devices, tuple(len(stage) for stage in stages))


def made_stages(making: StrategyWish) -> tuple[RuleFamily, Job, Stages]:
    """The layouts alone, nothing written."""
    job = _job(making)
    stored = _stored(making.checkpoint) if making.checkpoint else None
    own = read_family(text_of(making.rules), making.rules) if making.rules else None
    try:
        family = own or family_of(job)
        optimizer = making.optimizer or job.optimizer or optimizer_of(stored or ()) or "AdamW"
        check_optimizer(optimizer)
        job = replace(job, optimizer=optimizer)
        return family, job, place(family, job, None if stored is None else _weights(stored, job))
    except StrategyError as error:
        raise StrategyError(error.message, error.where or making.rules or making.config, error.hint) from None


def model_shapes(making: StrategyWish) -> dict[str, tuple[int, ...]]:
    """Full shapes of the weights that a YAML's model has, however its job cuts them. Raises StrategyError."""
    job = _job(making)
    family = family_of(job)
    return {found.name: found.spec.shape for found in named_by_family(family, values_of(family, job))}


def _job(making: StrategyWish) -> Job:
    if not making.config and not making.rules:
        raise UsageError(
            "neither --config nor --rules", hint="--config run.yaml, or --rules rules.yaml with --dp, --mp …"
        )
    if making.config and making.sizes is not None:
        raise UsageError("--dp, --mp … beside --config", hint="the YAML's parallel_config has the sizes")
    if not making.config:
        release = as_release(making.mindformers_version)
        sharing = OptimizerParallel(enabled=making.optimizer_parallel)
        return Job(making.sizes or Sizes(), optimizer=NONE, sharing=sharing, release=release)
    if making.optimizer_parallel:
        raise UsageError("--optimizer-parallel beside --config", hint="the YAML says it: enable_parallel_optimizer")
    if making.content is not None:
        job = job_of(making.content, making.config, release=making.mindformers_version)
    else:
        job = read_job(text_of(making.config), making.config, release=making.mindformers_version)
    base = _hugging_face(job.pretrained)
    return replace(job, models=(*job.models, *model_names(base)), config={**base, **job.config})


def _hugging_face(folder: str) -> Mapping[str, Any]:
    """The ``config.json`` of a model's folder, where a YAML names one that is here."""
    path = Path(folder) / "config.json"
    if not folder or not path.is_file():
        return {}
    try:
        content = whole_numbers(json.loads(text_of(str(path))))
    except (ValueError, RecursionError) as error:
        raise StrategyError(f"not JSON: {error}", str(path)) from None
    if not isinstance(content, dict):
        return {}
    return {k: v for k, v in content.items() if k != "quantization_config"}  # of the files on the hub, not of the job


def _stored(checkpoint: str) -> dict[str, TensorSpec]:
    """The tensors of one full checkpoint, by its headers."""
    return {name: tensor.spec for name, tensor in open_source(Source(checkpoint)).tensors.items() if tensor.spec.shape}


def _weights(stored: Mapping[str, TensorSpec], job: Job) -> dict[str, TensorSpec]:
    """Without the states, which the job's optimizer names, and without the LoRA pairs that the job makes itself."""
    return {n: spec for n, spec in stored.items() if not is_state(n) and not (job.lora and is_lora(n))}
