"""Unify: rank folders, de-duplicated or not, into full safetensors laid out as MindSpore's ``unified_safetensors``."""

from __future__ import annotations

import re
from pathlib import Path

from msgspec.structs import replace

from reshard.families.open_checkpoint import open_source
from reshard.families.parts import PartNaming, Parts
from reshard.ops.convert import Conversion, execute, plan_from
from reshard.ops.observer import Observer
from reshard.ops.options import Options
from reshard.planning.catalog import Catalog
from reshard.planning.plan import Plan

_DEFAULT_NBYTES = 3 << 30
_ACCUMULATED = r"^accu_grads"


def plan_unify(src: str | Path, dst: str | Path, options: Options, names: PartNaming = "mindspore") -> Plan:
    """Make the plan; accumulated gradients are left out, as the reference does. Raises InputError."""
    return plan_unify_of(open_source(options.source(src)), dst, options, names)


def plan_unify_of(source: Catalog, dst: str | Path, options: Options, names: PartNaming = "mindspore") -> Plan:
    """As ``plan_unify``, of a source that is open already."""
    gathered = (_ACCUMULATED,) if any(re.search(_ACCUMULATED, name) for name in source.tensors) else ()
    rules = replace(options.names, exclude=(*options.names.exclude, *gathered))
    options = replace(options, format="safetensors", names=rules)
    return plan_from(source, str(dst), options, kind=Parts(options.max_shard_nbytes or _DEFAULT_NBYTES, names))


def unify(
    src: str | Path,
    dst: str | Path,
    options: Options,
    names: PartNaming = "mindspore",
    observer: Observer | None = None,
) -> Conversion:
    """Write ``part{i}.safetensors``, ``param_name_map.json`` and ``hyper_param.safetensors``; or with names ``hf``
    ``model-0000i-of-0000n.safetensors`` and its index.

    Parts are at most ``options.max_shard_nbytes``, 3 GiB without. Raises InputError where a slice is held by nobody.
    """
    return execute(plan_unify(src, dst, options, names), dst, options, observer or Observer())
