"""Which tensors a job has: by its family's rules, or by the headers of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import prod
from typing import Any

from msgspec import Struct

from reshard.dtypes import ALIASES
from reshard.errors import StrategyError, counted, listed
from reshard.index import TensorSpec
from reshard.strategy.expression import evaluate, names_in
from reshard.strategy.job import Job, Release
from reshard.strategy.rules import CutRule, RuleBlock, RuleFamily

_NEWEST: Release = (1_000_000,)


class RuledTensor(Struct, frozen=True):
    """A tensor with the rule that cuts it; ``names`` are the values that the rule's expressions read."""

    name: str
    spec: TensorSpec
    block: RuleBlock
    rule: CutRule
    names: Mapping[str, Any]


def values_of(family: RuleFamily, job: Job) -> dict[str, Any]:
    """The values that a family's expressions may read: of the job, and the model's settings. Raises StrategyError."""
    sizes = job.sizes
    names: dict[str, Any] = {
        "dp": sizes.dp, "mp": sizes.mp, "pp": sizes.pp, "cp": sizes.cp, "ep": sizes.ep, "devices": sizes.devices,
        "first": 0, "last": sizes.pp - 1, "output": 0 if job.pipeline.zero_bubble_v else sizes.pp - 1,
        "vocab_emb_dp": job.vocab_emb_dp, "use_seq_parallel": job.seq_parallel, "dtype": "float32",
        "model": next((m for m in job.models if m in family.models), next(iter(job.models), "")),
        "since": lambda text: (job.release or _NEWEST) >= tuple(map(int, text.split("."))),
    }  # fmt: skip
    for setting in family.settings:
        given = next((v for key in setting.keys if (v := lookup(job.config, key)) is not None), None)
        if isinstance(given, list | dict):
            raise StrategyError(f"model_config: {' / '.join(setting.keys)} {given!r}, expected a single value")
        names[setting.name] = if_given(setting.default, names) if given is None else given
    return names


def if_given(expression: object, names: Mapping[str, Any]) -> Any:
    """The value of an expression, or None where it needs a setting that is not given."""
    try:
        return evaluate(expression, names)
    except StrategyError:
        if any(names.get(name, "") is None for name in names_in(expression)):
            return None
        raise


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """A value by dotted key; None where it is not given."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return None if value == "None" else value  # YAML's null is written null, but users write None


def named_by_family(family: RuleFamily, names: Mapping[str, Any]) -> list[RuledTensor]:
    """The tensors that a model of these settings has."""
    return [found for block in family.blocks for found in _of_block(block, family, names)]


def _of_block(block: RuleBlock, family: RuleFamily, names: Mapping[str, Any]) -> Iterator[RuledTensor]:
    for n in range(_count(block, family, names)) if block.numbered else [None]:
        own = {**names, "n": n}
        if not evaluate(block.when, own):
            continue
        prefix = block.prefix.replace("{n}", str(n))
        for rule in block.rules:
            if evaluate(rule.when, own) and evaluate(rule.used, own):
                name = prefix + rule.name
                yield RuledTensor(name, _spec(name, rule, family, own), block, rule, own)


def _count(block: RuleBlock, family: RuleFamily, names: Mapping[str, Any]) -> int:
    count = evaluate(block.count, names)
    if type(count) is not int or count < 0:
        raise StrategyError(
            f"block {block.prefix!r}: count {block.count!r} is {count!r}", hint=_hint(block.count, family)
        )
    return count


def _spec(name: str, rule: CutRule, family: RuleFamily, names: Mapping[str, Any]) -> TensorSpec:
    if rule.pattern or rule.shape is None:
        raise StrategyError(
            f"{name}: the rules give no shape", hint="give --checkpoint, whose headers say names and shapes"
        )
    sizes = tuple(if_given(expression, names) for expression in rule.shape)
    for size, expression in zip(sizes, rule.shape, strict=True):
        if type(size) is not int or size < 1:
            raise StrategyError(f"{name}: its size {expression!r} is {size!r}", hint=_hint(expression, family))
    dtype = str(evaluate(rule.dtype, names))
    return TensorSpec(ALIASES.get(dtype, dtype), sizes)


def _hint(expression: object, family: RuleFamily) -> str:
    """Which keys of the YAML an expression needs."""
    keys = sorted(k for s in family.settings if s.name in names_in(expression) for k in s.keys[:1])
    wanted = f"model_config needs {', '.join(keys)}; or " if keys else ""
    return f"{wanted}give --checkpoint, whose headers say names and shapes"


def named_by_headers(
    family: RuleFamily, names: Mapping[str, Any], headers: Mapping[str, TensorSpec]
) -> list[RuledTensor]:
    """The tensors of a checkpoint, each with the first rule that its name fits: one whose condition holds, if any.

    Single values that no rule names (global_step) are of no layout and are passed over.
    """
    found, unknown = [], []
    for name, spec in headers.items():
        fits = [fit for block in family.blocks for fit in _fitting(block, name, names)]
        if not fits:
            if prod(spec.shape) > 1:
                unknown.append(name)
            continue
        block, rule, own = next((fit for fit in fits if _holds(*fit)), fits[0])
        if if_given(rule.used, own) is not False:
            found.append(RuledTensor(name, spec, block, rule, own))
    if unknown:
        raise StrategyError(
            f"no rule of family {family.name!r} matches {counted(len(unknown), 'tensor')}:\n" + listed(unknown),
            hint="names have to be those of the model's own parameters; a rules file (--rules) may name more",
        )
    return found


_FittingRule = tuple[RuleBlock, CutRule, dict[str, Any]]


def _fitting(block: RuleBlock, name: str, names: Mapping[str, Any]) -> Iterator[_FittingRule]:
    start = _prefix_pattern(block.prefix).match(name)
    if start is None:
        return
    rest = name[start.end() :]
    own = {**names, "n": int(start[1]) if block.numbered else None}
    for rule in block.rules:
        if re.fullmatch(rule.name, rest) if rule.pattern else rule.name == rest:
            yield block, rule, own


def _holds(block: RuleBlock, rule: CutRule, names: Mapping[str, Any]) -> bool:
    return bool(if_given(block.when, names)) and bool(if_given(rule.when, names))


@lru_cache(maxsize=1024)
def _prefix_pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(re.escape(prefix).replace(r"\{n\}", r"(\d+)"))
