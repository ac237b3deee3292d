"""What a PEFT ``adapter_config.json`` may say and still be merged: LoRA, and nothing that a merged weight cannot do.

Keys are those of PEFT 0.1 to 0.21. A key that is off (null, false, empty) says nothing. One that is on and not known
here may change the sum, so it is refused by name: a newer PEFT has ways that this release cannot know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reshard.errors import InputError

_COUNT = frozenset({
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "use_dora", "lora_bias",
    "modules_to_save", "target_parameters", "trainable_token_indices",
})  # fmt: skip
"""What is read, by ``ops.scaling``."""

_FLAGS = ("use_rslora", "fan_in_fan_out", "use_dora", "lora_bias")
_LISTS = ("modules_to_save", "target_parameters")

_NEUTRAL = frozenset({
    # where the training took its base and what it was for
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type",
    # which layers have factors: their names tell
    "exclude_modules", "layers_pattern", "layers_to_transform", "target_modules",
    # the training alone
    "bias", "ensure_weight_tying", "lora_dropout",
    # how factors began, where init_lora_weights says that they began so
    "corda_config", "eva_config", "lora_ga_config", "loftq_config",
    # of a kind that another key turns on
    "megatron_core", "qalora_group_size", "runtime_config",
    # of old PEFT and of ModelScope's Swift
    "merge_weights", "lora_dtype", "lorap_emb_lr", "lorap_lr_ratio", "model_key_mapping", "group_tag",
})  # fmt: skip

MERGED = {
    "LORA": frozenset[str](),
    "IA3": frozenset({"feedforward_modules", "init_ia3_weights"}),
    "LN_TUNING": frozenset[str](),
    "TRAINABLE_TOKENS": frozenset({"init_weights", "token_indices"}),
}
"""Kinds of adapters that are merged, each with the keys that it has besides; other than LoRA has no scaling."""

UNMERGEABLE = frozenset({
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT",
    "LILY", "POLY", "SHADOW", "XLORA",
})  # fmt: skip
"""Kinds that act on prompts, or otherwise on each input: no weight does what they do."""

_OTHER_KINDS = {
    "alora_invocation_tokens": "the adapter acts after these tokens only (aLoRA), which no merged weight does",
    "arrow_config": "adapters are mixed token by token (Arrow)",
    "kasa_config": "KaSA takes singular values out of the base",
    "layer_replication": "the base has its layers several times",
    "megatron_config": "factors are those of Megatron's parallel layers",
    "monteclora_config": "factors are sampled (MonteCLoRA)",
    "use_bdlora": "factors are block-diagonal (BD-LoRA)",
    "use_qalora": "inputs are pooled before the product (QA-LoRA)",
    "velora_config": "activations are compressed by tensors of the adapter's own (VeLoRA)",
}

_INITS_ON_THE_BASE = frozenset({"true", "false", "none", "gaussian", "eva", "orthogonal", "mica"})
_INITS_THAT_CHANGE_IT = ("pissa", "olora", "corda", "lora_ga")
_INIT_THAT_QUANTISES = "loftq"  # what it left is not the base less the product, but what its codes mean


def refuse_other_kinds(content: Mapping[str, Any], path: str, *, initial: bool) -> None:
    """Raises InputError naming every key that makes an adapter something else than LoRA on its base.

    Args:
        initial: the adapter that the training began with is there, to be taken out of the base first.
    """
    faults = list(_faults(content, initial=initial))
    if faults:
        raise InputError(f"not a plain LoRA adapter: {'; '.join(faults)}", path, _hint(content))


def kind_of(content: Mapping[str, Any]) -> str:
    return str(content.get("peft_type") or "LORA").rpartition(".")[2].upper()


def _faults(content: Mapping[str, Any], *, initial: bool) -> Iterator[str]:
    kind = kind_of(content)
    if kind not in MERGED:
        yield f"peft_type is {kind}"
        return
    init = str(content.get("init_lora_weights", True)).lower()
    if init.startswith(_INITS_THAT_CHANGE_IT):
        if not initial:
            yield f"init_lora_weights is {init}: the training took the first factors out of the base"
    elif init.startswith(_INIT_THAT_QUANTISES):
        yield f"init_lora_weights is {init}: the training went on from a base that had been quantised"
    elif initial:
        yield f"init_lora_weights is {init}: nothing was taken out of the base when the training began"
    elif init not in _INITS_ON_THE_BASE:
        yield f"init_lora_weights is {init}, which is not known here and may have changed the base"
    yield from _of_other_types(content)
    for key, value in content.items():
        known = key in _COUNT or key in _NEUTRAL or key in MERGED[kind] or key in ("peft_type", "init_lora_weights")
        if not value or known:
            continue
        yield f"{key}: {_OTHER_KINDS.get(key, f'{_short(value)}, which is not known here and may change the sum')}"


def _of_other_types(content: Mapping[str, Any]) -> Iterator[str]:
    for key in _FLAGS:
        if content.get(key) not in (None, True, False):  # a text counts as true, whatever it says
            yield f"{key}: {_short(content[key])}, expected true or false"
    for key in _LISTS:
        if not isinstance(content.get(key) or [], list):
            yield f"{key}: {_short(content[key])}, expected a list"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"{text[:36]} …"


def _hint(content: Mapping[str, Any]) -> str:
    if kind_of(content) in UNMERGEABLE:
        return "no merged weight does what it does: load it beside its base, in PEFT"
    init = str(content.get("init_lora_weights")).lower()
    if init.startswith(_INIT_THAT_QUANTISES):
        return "if SRC is that base, with weights in place of its codes, set init_lora_weights to true in the file"
    if init.startswith(_INITS_THAT_CHANGE_IT):
        return (
            "--initial takes the adapter that was saved before the training; if SRC is the base without the first "
            "factors, set init_lora_weights to true in the file"
        )
    return "merge it in PEFT: merge_and_unload; take a key out of the file only if it does not count"
