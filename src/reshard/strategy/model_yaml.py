"""A MindFormers YAML as it is → the Job that it describes. Keys that say nothing about the cut are passed over."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from reshard.errors import InputError, StrategyError, listed
from reshard.strategy.job import Job, Lora, Pipeline, Sizes, as_release
from reshard.strategy.optimizer_shard import OptimizerParallel
from reshard.strategy.optimizer_states import NONE
from reshard.strategy.spelling import misspelt
from reshard.yaml_text import read_yaml, whole_numbers

_OUTERMOST = ("use_parallel", "run_mode", "model", "moe_config", "parallel_config", "parallel", "optimizer",
              "use_legacy", "pretrained_model_dir")  # fmt: skip
_AXES = ("data_parallel", "model_parallel", "pipeline_stage", "context_parallel", "expert_parallel")
_CUTS = (*_AXES, "vocab_emb_dp", "use_seq_parallel")
_PARALLEL = ("enable_parallel_optimizer", "parallel_optimizer_config", "parallel_mode", "pipeline_config",
             "strategy_ckpt_config")  # fmt: skip


def read_job(text: str, where: str, *, release: str = "") -> Job:
    """What a MindFormers YAML says; ``release`` is of MindFormers. Raises StrategyError naming the key."""
    try:
        content = read_yaml(text)
    except InputError as error:
        raise StrategyError(error.message, where) from None
    return job_of(content, where, release=release)


def job_of(content: Any, where: str, *, release: str) -> Job:
    """As ``read_job``, of what the YAML holds."""
    content = whole_numbers(content)
    try:
        if not isinstance(content, dict):
            raise StrategyError("not a MindFormers configuration")
        return _job(_DottedKeys(content), release)
    except StrategyError as error:
        raise StrategyError(error.message, where, error.hint) from None


class _DottedKeys(Struct, frozen=True):
    """Values of a YAML by dotted key, with the type that is expected."""

    content: Mapping[str, Any]

    def get(self, key: str) -> Any:
        value: Any = self.content
        for part in key.split("."):
            if value is None:
                return None
            if not isinstance(value, dict):
                raise StrategyError(f"{key}: {part!r} stands in {value!r}, expected a map")
            value = value.get(part)
        return value

    def typed(self, key: str, default: Any, fits: Callable[[Any], bool], expected: str) -> Any:
        value = self.get(key)
        if value is None:
            return default
        if not fits(value):
            raise StrategyError(f"{key}: {value!r}, expected {expected}")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        return bool(self.typed(key, default, lambda v: isinstance(v, bool), "True or False"))

    def size(self, key: str, default: int = 1) -> int:
        return int(self.typed(key, default, lambda v: type(v) is int and v > 0, "a number from 1"))

    def map(self, key: str) -> dict[str, Any]:
        value: dict[str, Any] = self.typed(key, {}, lambda v: isinstance(v, dict), "a map")
        return value


def _job(keys: _DottedKeys, release: str) -> Job:
    _check_spelling(keys)
    config = {k: v for k, v in keys.map("model.model_config").items() if v is not None}
    config["run_mode"] = keys.get("run_mode")
    config["auto_register"] = _registered(keys)
    config["moe_config"] = {**keys.map("model.model_config.moe_config"), **keys.map("moe_config")}
    parallel = keys.flag("use_parallel", default=True)
    sizes = _sizes(keys) if parallel else Sizes()
    job = Job(
        sizes=sizes,
        models=model_names(config, keys.get("model.arch.type")),
        mcore=_core(keys, config),
        config=config,
        vocab_emb_dp=keys.flag("parallel_config.vocab_emb_dp", default=True) and sizes.pp == 1,
        seq_parallel=keys.flag("parallel_config.use_seq_parallel", default=False),
        pipeline=_pipeline(keys, config),
        optimizer=_optimizer(keys),
        only_trained=keys.flag("parallel.strategy_ckpt_config.only_trainable_params", default=True),
        sharing=_sharing(keys),
        lora=_lora(keys),
        release=as_release(release),
        pretrained=str(keys.get("pretrained_model_dir") or config.get("pretrained_model_dir") or ""),
    )
    if parallel:
        _check(keys, job)
    return job


def _check_spelling(keys: _DottedKeys) -> None:
    """Raises StrategyError for keys that are nearly one that is read."""
    faults = misspelt(keys.content, _OUTERMOST)
    faults += misspelt(keys.get("parallel_config"), _CUTS, "parallel_config.")
    faults += misspelt(keys.get("parallel"), _PARALLEL, "parallel.")
    if faults:
        raise StrategyError(listed(faults))


def model_names(config: Mapping[str, Any], arch: object = None) -> tuple[str, ...]:
    """What a configuration calls its model, most telling first."""
    architectures = config.get("architectures") or ()
    names = [architectures] if isinstance(architectures, str) else list(architectures)
    return tuple(str(name) for name in (arch, *names, config.get("model_type")) if name)


def _registered(keys: _DottedKeys) -> list[str]:
    """Classes that the job takes from files beside MindFormers, without the folders that these lie in."""
    given = (keys.get(f"model.{part}.auto_register") for part in ("arch", "model_config"))
    return [".".join(str(name).split(".")[-2:]) for name in given if name]


def _sizes(keys: _DottedKeys) -> Sizes:
    return Sizes(*(keys.size(f"parallel_config.{name}") for name in _AXES))


def _core(keys: _DottedKeys, config: Mapping[str, Any]) -> bool | None:
    legacy = keys.get("use_legacy")
    if isinstance(legacy, bool):
        return not legacy
    return False if keys.get("model.arch.type") else True if config.get("architectures") else None


def _pipeline(keys: _DottedKeys, config: Mapping[str, Any]) -> Pipeline:
    interleaved = keys.flag("parallel.pipeline_config.pipeline_interleave", default=False)
    scheduler = keys.get("parallel.pipeline_config.pipeline_scheduler")
    return Pipeline(
        config.get("offset", 0),
        keys.size("model.model_config.pp_interleave_num") if interleaved else 1,
        interleaved and scheduler == "zero_bubble_v",
    )


def _optimizer(keys: _DottedKeys) -> str:
    """A job that predicts keeps no states; "" for one that trains and names no optimizer."""
    if str(keys.get("run_mode") or "train").startswith(("predict", "eval")):
        return NONE
    kind = str(keys.get("optimizer.type") or "")
    if kind.lower() == "adamw" and keys.flag("optimizer.use_fused", default=False):
        kind = "FusedAdamW"
    if keys.get("optimizer.amsgrad"):
        raise StrategyError(
            f"optimizer.amsgrad: the states that {kind or 'the optimizer'} keeps with it are not known",
            hint="--optimizer none makes a strategy of the weights alone",
        )
    return kind


def _sharing(keys: _DottedKeys) -> OptimizerParallel:
    own = "parallel.parallel_optimizer_config."
    threshold = keys.typed(
        own + "parallel_optimizer_threshold", 64, lambda v: type(v) is int and v >= 0, "a number of KB"
    )
    key = own + "optimizer_weight_shard_size"
    key = key if keys.get(key) is not None else "parallel.optimizer_weight_shard_size"
    size = keys.typed(key, -1, lambda v: type(v) is int and (v == -1 or v > 0), "-1 or a number from 1")
    whole = keys.flag("parallel.optimizer_weight_shard_aggregated_save", default=False)
    enabled = keys.flag("parallel.enable_parallel_optimizer", default=False)
    return OptimizerParallel(enabled and not whole, threshold << 10, size)


_KNOWN_FREEZING = {"exclude_layers": (), "freeze_include": (["*"],), "freeze_exclude": (["*lora*"],)}
"""What LoRA leaves out, and what it trains: its own weights alone."""


def _lora(keys: _DottedKeys) -> Lora | None:
    pet = "model.model_config.pet_config."
    kind = keys.get(pet + "pet_type")
    if not kind:
        return None
    if str(kind).lower() != "lora":
        raise StrategyError(f"{pet}pet_type: {kind!r} is not known, only lora")
    for key, known in _KNOWN_FREEZING.items():
        value = keys.get(pet + key)
        if value and value not in known:
            raise StrategyError(f"{pet}{key}: {value}; which weights are trained then is not known")
    targets = str(keys.get(pet + "target_modules") or r".*dense*|.*linear*|.*wq|.*wk|.*wv|.*wo")
    try:
        re.compile(targets)
    except re.error as error:
        raise StrategyError(f"{pet}target_modules: not a regular expression: {error}") from None
    return Lora(keys.size(pet + "lora_rank", 8), targets)


def _check(keys: _DottedKeys, job: Job) -> None:
    """What MindSpore itself refuses, whatever the model."""
    mode = keys.get("parallel.parallel_mode")
    if mode not in (None, 1, "semi_auto_parallel"):
        raise StrategyError(
            f"parallel.parallel_mode: {mode!r}; cuts follow rules only in semi-auto parallel", hint="parallel_mode: 1"
        )
    sizes = job.sizes
    world = sizes.devices * sizes.pp
    product = " × ".join(("data_parallel", "model_parallel", "context_parallel"))
    for count, what in ((world, f"{product} × pipeline_stage"), (sizes.devices, product)):
        if count not in (1, 2, 4) and count % 8:
            raise StrategyError(
                f"parallel_config: {what} is {count}; MindSpore takes 1, 2, 4 or a multiple of 8 devices",
                hint=f"got dp {sizes.dp}, mp {sizes.mp}, cp {sizes.cp}, pp {sizes.pp}",
            )
    if job.sharing.enabled and job.sharing.size > world:
        raise StrategyError(
            f"parallel.parallel_optimizer_config.optimizer_weight_shard_size: {job.sharing.size} exceeds the "
            f"{world} devices"
        )
