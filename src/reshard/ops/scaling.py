"""By what a LoRA product counts: from a number, from alpha and rank, or from the configuration of the training."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from math import sqrt
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import InputError, UsageError
from reshard.ops.peft import kind_of, refuse_other_kinds
from reshard.planning.identity import hash_of_file
from reshard.planning.lora_values import Rules, StoredOrder
from reshard.planning.names import NameRules
from reshard.storage.storages import content_of
from reshard.yaml_text import read_yaml, text_in


class Fixed(Struct, frozen=True):
    """The same scaling for every layer."""

    value: float

    def of(self, layer: str, rank: int) -> float:
        return self.value


class AlphaRank(Struct, frozen=True):
    """alpha / rank, or alpha / √rank with ``rslora``; patterns (regular expressions on names of layers, as the model
    calls them) override both.

    ``rank`` 0 means whatever the factors have; otherwise factors of another rank are refused.
    """

    alpha: float
    rank: int
    rslora: bool = False
    rank_pattern: Mapping[str, int] = {}
    alpha_pattern: Mapping[str, float] = {}

    def of(self, layer: str, rank: int) -> float:
        """Raises InputError when the factors have another rank than the configuration says."""
        said = _matching(self.rank_pattern, layer, self.rank)
        if said and said != rank:
            raise InputError(
                f"{layer}: its factors have rank {rank}, the configuration says {said}", hint="is it this adapter's?"
            )
        alpha = _matching(self.alpha_pattern, layer, self.alpha)
        return float(alpha / sqrt(rank) if self.rslora else Fraction(alpha) / rank)


class Unscaled(Struct, frozen=True):
    """Of a kind of adapter without factors."""

    kind: str

    def of(self, layer: str, rank: int) -> float:
        """Raises InputError."""
        raise InputError(f"{layer} has factors, and peft_type is {self.kind}", hint="is it this adapter's?")


Scaling = Fixed | AlphaRank | Unscaled


class LoraConfig(Struct, frozen=True):
    """How an adapter counts.

    Attributes:
        transposed: square weights are stored [in, out], of others the shapes tell; of all with ``stated``.
        stated: ``transposed`` is what the user says, of all weights.
        rename: what the adapter's layers are called in the base: (regular expression, replacement) pairs.
        told_by: by name, hashes of the files that said so.
        tokens, parameters, dora, targets, saved: as ``Rules`` has them.
    """

    scaling: Scaling
    transposed: bool = False
    stated: bool = False
    rename: tuple[tuple[str, str], ...] = ()
    told_by: Mapping[str, str] = {}
    tokens: Mapping[str, tuple[int, ...]] = {}
    parameters: tuple[str, ...] = ()
    dora: bool = False
    targets: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()

    def rules(self) -> Rules:
        stored: StoredOrder = "by shape"
        if self.stated:
            stored = "in_out" if self.transposed else "out_in"
        return Rules(
            self.scaling.of,
            stored,
            self.transposed,
            NameRules(rename=self.rename).renamed,
            self.tokens,
            self.parameters,
            self.dora,
            self.targets,
            self.saved,
        )


@lru_cache(maxsize=1 << 16)  # more than the 512 that ``re`` keeps: a pattern for each layer is met in each layer
def _end_of(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def _matching(patterns: Mapping[str, Any], layer: str, default: Any) -> Any:
    """PEFT's rule (its ``get_pattern_key``): a key matches a layer's whole name, or its end from a dot on; the first
    that does counts.
    """
    for pattern, value in patterns.items():
        try:
            if _end_of(pattern).match(layer):
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


def read_config(path: str | Path, scaling: Scaling | None = None, *, initial: bool = False) -> LoraConfig:
    """From a PEFT ``adapter_config.json``, a MindFormers YAML with ``pet_config`` or ``lora_config``, or what its
    PyNative trainer writes beside an adapter. Raises InputError.

    Args:
        scaling: is said elsewhere.
        initial: as ``refuse_other_kinds`` has it.
    """
    path = str(path)
    content, told_by = _content(path)
    if not path.endswith(".json") or (isinstance(content, dict) and "lora_config" in content):
        found = _mindformers(content, path)
        return replace(found, scaling=scaling or found.scaling, told_by=told_by)
    if not isinstance(content, dict):
        raise InputError("not a configuration of PEFT", path)
    refuse_other_kinds(content, path, initial=initial)
    return LoraConfig(
        _scaling(content, path, scaling),
        bool(content.get("fan_in_fan_out")),
        told_by=told_by,
        tokens=_tokens(content.get("trainable_token_indices") or content.get("token_indices"), path),
        parameters=tuple(map(str, content.get("target_parameters") or ())),
        dora=bool(content.get("use_dora")),
        targets=_targets(content),
        saved=tuple(map(str, content.get("modules_to_save") or ())),
    )


def _scaling(content: Mapping[str, Any], path: str, said: Scaling | None) -> Scaling:
    kind = kind_of(content)
    if kind == "LORA":
        return said or _peft(content, path)
    if isinstance(said, Fixed | AlphaRank):
        raise UsageError(f"a scaling for an adapter of peft_type {kind}, which has none", hint="leave it out")
    return Unscaled(kind)


def _targets(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The ends of the names of all layers that have factors, where a configuration lists them."""
    said = content.get("target_modules")
    others = any(content.get(key) for key in ("exclude_modules", "layers_to_transform", "layers_pattern"))
    return tuple(map(str, said)) if isinstance(said, list) and not others else ()


def _tokens(said: Any, path: str) -> dict[str, tuple[int, ...]]:
    """Rows by the end of a layer's name; a list alone is of the embedding, whatever it is called."""
    by_layer = said if isinstance(said, dict) else {"": said} if said else {}
    for rows in by_layer.values():
        if not isinstance(rows, list) or not all(type(row) is int for row in rows):
            raise InputError("trainable_token_indices are lists of whole numbers", path)
    return {str(layer): tuple(rows) for layer, rows in by_layer.items()}


def _content(path: str) -> tuple[Any, dict[str, str]]:
    """What a configuration says, and its name with the hash of it."""
    data = content_of(path)
    text = text_in(data, path)
    try:
        content = json.loads(text) if path.endswith(".json") else read_yaml(text)
    except (ValueError, RecursionError, InputError) as error:
        said = error.message if isinstance(error, InputError) else error
        raise InputError(f"not a configuration: {said}", path) from None
    return content, {path.rpartition("/")[2]: hash_of_file(data)}


def _peft(content: Any, path: str) -> AlphaRank:
    rank, alpha = _number(content, "r", path), _number(content, "lora_alpha", path, any_sign=True)
    patterns = [content.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    if not all(isinstance(p, dict) and all(type(v) in (int, float) for v in p.values()) for p in patterns):
        raise InputError("rank_pattern and alpha_pattern are maps of numbers", path)
    return AlphaRank(alpha, int(rank), bool(content.get("use_rslora")), patterns[0], patterns[1])


def _mindformers(content: Any, path: str) -> LoraConfig:
    found = next(
        (f for key in ("pet_config", "lora_config") if isinstance(f := _find(content, key, depth=8), dict)), None
    )
    if found is None:
        raise InputError("no pet_config or lora_config", path, "give --scaling, or --lora-alpha and --lora-rank")
    kind = found.get("pet_type") or "lora"
    if str(kind).lower() != "lora":
        raise InputError(f"pet_type is {kind}, and only lora is merged", path)
    if "alpha" in (inner := str(found.get("target_cells"))) or "rank" in inner:
        raise InputError("target_cells gives layers a rank or an alpha of their own", path, "merge it in MindFormers")
    rank, alpha = _number(found, "lora_rank", path), _number(found, "lora_alpha", path)
    return LoraConfig(AlphaRank(alpha, int(rank)))


def _find(content: Any, key: str, depth: int) -> Any:
    if not isinstance(content, dict) or depth == 0:
        return None
    if key in content:
        return content[key]
    return next((f for v in content.values() if (f := _find(v, key, depth - 1)) is not None), None)


def _number(content: Any, key: str, path: str, *, any_sign: bool = False) -> float:
    value = content.get(key) if isinstance(content, dict) else None
    least = float("-inf") if any_sign else 0
    if not isinstance(value, int | float) or isinstance(value, bool) or not least < value < float("inf"):
        raise InputError(f"{key} is {value!r}, expected a number{'' if any_sign else ' above 0'}", path)
    return float(value)
