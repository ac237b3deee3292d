"""Rules files: what tensors a family of models has and how a parallel layout cuts them, as data.

``docs/how-to/add-a-model-family.md`` describes the format. Reading one checks its shape, so that a rule that exists
can be applied; ``strategy/placing.py`` applies them to a job.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from reshard.errors import InputError, StrategyError, docs_page
from reshard.strategy.expression import parse
from reshard.yaml_text import read_yaml

AxesByDim = tuple[tuple[str, ...], ...]
"""For each dim the axes that cut it, outermost first; ``()`` is uncut."""


class Setting(Struct, frozen=True):
    """A value of the model: the first of ``keys`` that its config has, else what ``default`` gives."""

    name: str
    keys: tuple[str, ...]
    default: object


class Check(Struct, frozen=True):
    """What has to hold, or MindSpore refuses the job."""

    that: object
    says: str


class Unread(Struct, frozen=True):
    """A setting that changes which tensors a model has or how they are cut, and that no rule here reads.

    Attributes:
        key: of the model's config, dotted for nested ones.
        harmless: values that change nothing; without any, those that mean no.
        when: whether it changes anything at all.
    """

    key: str
    harmless: tuple[object, ...] = ()
    when: object = True

    def changes(self, value: object) -> bool:
        """Whether a value that is given changes something.

        >>> Unread("a").changes(False), Unread("a", (True,)).changes(False), Unread("a", ("x", "y")).changes(["x"])
        (False, True, False)
        """
        values = value if isinstance(value, list) else [value]
        return any(bool(v) if not self.harmless else v not in self.harmless for v in values)


class Case(Struct, frozen=True):
    """How a tensor is cut ``when`` something holds; ``over`` names the arrangement of devices."""

    when: object
    over: str
    cut: AxesByDim


class CutRule(Struct, frozen=True):
    """One tensor of a block, or one of each of its layers.

    Attributes:
        name: what follows the block's prefix; a regular expression when ``pattern``.
        shape: expressions, or None where only headers can tell.
        when: whether the model has it.
        used: whether its graph uses it; a checkpoint may hold tensors that it does not.
        cases: the first that holds says how it is cut.
        shard: whether optimizer parallel may share it.
        states_also: a further stage that has its states without the weight, or None.
        lora: whether LoRA may sit on it.
    """

    name: str
    pattern: bool
    shape: tuple[object, ...] | None
    dtype: object
    when: object
    used: object
    cases: tuple[Case, ...]
    shard: object
    trained: bool
    states_also: object
    lora: object


class RuleBlock(Struct, frozen=True):
    """Tensors that share a prefix and a stage; with ``{n}`` in the prefix there are ``count`` of them."""

    prefix: str
    count: object
    stage: object
    when: object
    rules: tuple[CutRule, ...]

    @property
    def numbered(self) -> bool:
        return "{n}" in self.prefix


class RuleFamily(Struct, frozen=True):
    name: str
    models: tuple[str, ...]
    mcore: bool
    settings: tuple[Setting, ...]
    unread: tuple[Unread, ...]
    checks: tuple[Check, ...]
    layers: object
    devices: Mapping[str, Mapping[str, object]]
    blocks: tuple[RuleBlock, ...]


def read_family(text: str, where: str) -> RuleFamily:
    """Raises StrategyError naming the entry."""
    try:
        content = read_yaml(text)
    except InputError as error:
        raise StrategyError(error.message, where) from None
    return make_family(content, where)


def make_family(content: object, where: str) -> RuleFamily:
    """Of what the YAML ``where`` holds. Raises StrategyError naming the entry."""
    try:
        return _family(content)
    except StrategyError as error:
        raise StrategyError(error.message, where, error.hint or _HINT) from None


_HINT = f"{docs_page('how-to/add-a-model-family')} describes rules files"
_FAMILY = ("family", "models", "names", "config", "unread", "checks", "pipeline", "devices", "blocks")
_RULE = (
    "name",
    "match",
    "shape",
    "dtype",
    "when",
    "used",
    "cases",
    "over",
    "cut",
    "shard",
    "trained",
    "states_also",
    "lora",
)


def _family(content: object) -> RuleFamily:
    entry = _map(content, "the file", _FAMILY)
    devices = {
        name: {axis: _expression(size, f"devices {name}") for axis, size in _map(axes, f"devices {name}").items()}
        for name, axes in _map(entry.get("devices", {}), "devices").items()
    }
    blocks = tuple(_block(b, devices) for b in _list(entry.get("blocks"), "blocks"))
    return RuleFamily(
        str(entry.get("family", "")),
        tuple(map(str, _list(entry.get("models", []), "models"))),
        entry.get("names", "legacy") == "mcore",
        tuple(_setting(name, value) for name, value in _map(entry.get("config", {}), "config").items()),
        tuple(_unread(u) for u in _list(entry.get("unread", []), "unread")),
        tuple(_check(c) for c in _list(entry.get("checks", []), "checks")),
        _expression(_map(entry.get("pipeline", {}), "pipeline", ("layers",)).get("layers"), "pipeline"),
        devices,
        blocks,
    )


def _setting(name: str, value: object) -> Setting:
    entry = _map(value, f"config {name}", ("from", "default"))
    keys = entry.get("from", [])
    keys = [keys] if isinstance(keys, str) else _list(keys, f"config {name}: from")
    return Setting(name, tuple(map(str, keys)), _expression(entry.get("default"), f"config {name}"))


def _unread(value: object) -> Unread:
    entry = _map(value, "an unread key", ("key", "harmless", "when"))
    harmless = tuple(_list(entry.get("harmless", []), "an unread key"))
    return Unread(str(entry.get("key", "")), harmless, _expression(entry.get("when", True), "an unread key"))


def _check(value: object) -> Check:
    entry = _map(value, "a check", ("that", "says"))
    return Check(_expression(entry.get("that"), "a check"), str(entry.get("says", "")))


def _block(value: object, devices: Mapping[str, Mapping[str, object]]) -> RuleBlock:
    entry = _map(value, "a block", ("prefix", "count", "stage", "when", "tensors"))
    prefix = str(entry.get("prefix", ""))
    here = f"block {prefix!r}"
    if prefix.count("{n}") > 1 or ("count" in entry and "{n}" not in prefix):
        raise StrategyError(f"{here}: a block with a count has {{n}} once in its prefix")
    if "stage" not in entry:
        raise StrategyError(f"{here} has no stage", hint="first, last, output, or an expression as stage_of(n)")
    rules = tuple(r for t in _list(entry.get("tensors"), here) for r in _rules(t, here, devices))
    return RuleBlock(
        prefix,
        _expression(entry.get("count"), here),
        _expression(entry["stage"], here),
        _expression(entry.get("when", True), here),
        rules,
    )


def _rules(value: object, block: str, devices: Mapping[str, Mapping[str, object]]) -> Iterator[CutRule]:
    """One rule for each name of an entry."""
    entry = _map(value, f"a tensor of {block}", _RULE)
    names = entry.get("name", entry.get("match"))
    if names is None or ("name" in entry and "match" in entry):
        raise StrategyError(f"a tensor of {block} needs one of name and match")
    for name in names if isinstance(names, list) else [names]:
        here = f"{block}: tensor {name!r}"
        if "match" in entry:
            _regex(str(name), here)
        shape = _list(entry["shape"], here) if "shape" in entry else None
        cases = entry.get("cases")
        yield CutRule(
            str(name),
            "match" in entry,
            None if shape is None else tuple(_expression(n, here) for n in shape),
            _expression(entry.get("dtype", "dtype"), here),
            _expression(entry.get("when", True), here),
            _expression(entry.get("used", True), here),
            tuple(_case(c, here, devices) for c in (_list(cases, here) if cases is not None else [_own_case(entry)])),
            _expression(entry.get("shard", True), here),
            bool(entry.get("trained", True)),
            _expression(entry.get("states_also"), here),
            _expression(entry.get("lora", False), here),
        )


def _own_case(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("over", "cut") if key in entry}


def _case(value: object, here: str, devices: Mapping[str, Mapping[str, object]]) -> Case:
    entry = _map(value, here, ("when", "over", "cut"))
    dims = _list(entry.get("cut", []), here)
    cut = tuple(() if d is None else tuple(map(str, d)) if isinstance(d, list) else (str(d),) for d in dims)
    over = str(entry.get("over", ""))
    if (over and over not in devices) or (cut and not over):
        known = ", ".join(devices)
        raise StrategyError(f"{here} is cut over devices {over!r}", hint=f"over: one of the devices entries: {known}")
    for axis in (a for axes in cut for a in axes):
        if axis not in devices[over]:
            raise StrategyError(f"{here}: devices {over!r} have no axis {axis!r}, only {', '.join(devices[over])}")
    return Case(_expression(entry.get("when", True), here), over, cut)


def _regex(pattern: str, here: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise StrategyError(f"{here} is not a regular expression: {error}") from None


def _map(value: object, here: str, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StrategyError(f"{here}: {value!r}, expected a map")
    unknown = sorted(str(k) for k in value if keys and k not in keys)
    if unknown:
        raise StrategyError(f"{here} has unknown keys {', '.join(unknown)}", hint=f"known: {', '.join(keys)}")
    return {str(k): v for k, v in value.items()}


def _list(value: object, here: str) -> list[Any]:
    if not isinstance(value, list):
        raise StrategyError(f"{here}: {value!r}, expected a list")
    return value


def _expression(value: object, here: str) -> object:
    if value is not None and not isinstance(value, str | int | float):
        raise StrategyError(f"{here}: {value!r}, expected an expression")
    if isinstance(value, str):
        try:
            parse(value)
        except StrategyError as error:
            raise StrategyError(f"{here}: {value!r}: {error.message}") from None
    return value
