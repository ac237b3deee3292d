"""By what a LoRA product counts: from a number, from alpha and rank, or from the configuration of the training."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fractions import Fraction
from math import sqrt
from pathlib import Path
from typing import Any

from msgspec import Struct

from reshard.errors import InputError, UsageError
from reshard.run.stores import content_of
from reshard.yaml_text import read_yaml


class Fixed(Struct, frozen=True):
    """The same scaling for every layer."""

    value: float

    def of(self, module: str, rank: int) -> float:
        return self.value


class AlphaRank(Struct, frozen=True):
    """alpha / rank, or alpha / √rank with ``rslora``; patterns (regular expressions on module names) override both.

    ``rank`` 0 means whatever the factors have; otherwise factors of another rank are refused.
    """

    alpha: float
    rank: int
    rslora: bool = False
    rank_pattern: Mapping[str, int] = {}
    alpha_pattern: Mapping[str, float] = {}

    def of(self, module: str, rank: int) -> float:
        """Raises InputError when the factors have another rank than the configuration says."""
        said = _matching(self.rank_pattern, module, self.rank)
        if said and said != rank:
            raise InputError(
                f"{module}: its factors have rank {rank}, the configuration says {said}", hint="is it this adapter's?"
            )
        alpha = _matching(self.alpha_pattern, module, self.alpha)
        return float(alpha / sqrt(rank) if self.rslora else Fraction(alpha) / rank)


Scaling = Fixed | AlphaRank


class LoraConfig(Struct, frozen=True):
    scaling: Scaling
    transposed: bool = False


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: a key matches the end of a module's name, from a dot on."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise InputError(f"pattern {pattern!r} is not a regular expression: {error}") from None
    return default


def parse_scaling(text: str) -> Fixed:
    """A number, or a quotient as ``16/8``. Raises UsageError.

    >>> parse_scaling("16/8").value
    2.0
    """
    try:
        above, _, below = text.partition("/")
        value = float(above) / float(below) if below else float(text)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--scaling {text!r}", hint="a number, or alpha/rank as 16/8") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise UsageError(f"--scaling {text!r} is not finite")
    return Fixed(value)


def read_config(path: str | Path) -> LoraConfig:
    """From a PEFT ``adapter_config.json`` or a MindFormers YAML with ``pet_config``. Raises InputError."""
    path = str(path)
    text = content_of(path).decode(errors="replace")
    try:
        content = json.loads(text) if path.endswith(".json") else read_yaml(text)
    except (ValueError, RecursionError, InputError) as error:
        said = error.message if isinstance(error, InputError) else error
        raise InputError(f"not a configuration: {said}", path) from None
    if path.endswith(".json"):
        return _peft(content, path)
    return _mindformers(content, path)


def _peft(content: Any, path: str) -> LoraConfig:
    rank, alpha = _number(content, "r", path), _number(content, "lora_alpha", path)
    if content.get("use_dora"):
        raise InputError("use_dora: DoRA adapters cannot be merged", path)
    patterns = [content.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    if not all(isinstance(p, dict) and all(type(v) in (int, float) for v in p.values()) for p in patterns):
        raise InputError("rank_pattern and alpha_pattern are maps of numbers", path)
    scaling = AlphaRank(alpha, int(rank), bool(content.get("use_rslora")), patterns[0], patterns[1])
    return LoraConfig(scaling, bool(content.get("fan_in_fan_out")))


def _mindformers(content: Any, path: str) -> LoraConfig:
    found = _find(content, "pet_config", depth=8)
    if not isinstance(found, dict):
        raise InputError("no pet_config", path, "give --scaling, or --lora-alpha and --lora-rank")
    rank, alpha = _number(found, "lora_rank", path), _number(found, "lora_alpha", path)
    return LoraConfig(AlphaRank(alpha, int(rank)))


def _find(content: Any, key: str, depth: int) -> Any:
    if not isinstance(content, dict) or depth == 0:
        return None
    if key in content:
        return content[key]
    return next((f for v in content.values() if (f := _find(v, key, depth - 1)) is not None), None)


def _number(content: Any, key: str, path: str) -> float:
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise InputError(f"{key} is {value!r}, expected a number above 0", path)
    return float(value)
