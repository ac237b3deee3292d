"""The families of models that are known without a rules file."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from msgspec.structs import replace

from reshard.errors import StrategyError
from reshard.strategy.job import Job
from reshard.strategy.rules import RuleFamily, Unread, make_family
from reshard.yaml_text import read_own_yaml

_OF_ANY_MODEL = ("quantization_config", "quant_config", "quant", "auto_register")
"""Quantised layers have parameters of their own, and a class of somebody's own may have any."""


@cache
def built_in() -> tuple[RuleFamily, ...]:
    folder = files("reshard.strategy") / "families"
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda e: e.name)
    return tuple(
        _with_common(make_family(read_own_yaml(entry.read_text(encoding="utf-8")), entry.name)) for entry in found
    )


def _with_common(family: RuleFamily) -> RuleFamily:
    own = {unread.key for unread in family.unread}
    return replace(family, unread=(*family.unread, *(Unread(key) for key in _OF_ANY_MODEL if key not in own)))


def family_of(job: Job) -> RuleFamily:
    """The built-in family that a job's model belongs to. Raises StrategyError naming those that are known."""
    for model in job.models:
        fits = [f for f in built_in() if model in f.models]
        of_core = [f for f in fits if job.mcore is None or f.mcore is job.mcore]
        if of_core:
            return of_core[0]
    core = {True: " with use_legacy: False", False: " with use_legacy: True", None: ""}[job.mcore]
    known = sorted(f"{m} ({f.name})" for f in built_in() for m in f.models)
    raise StrategyError(
        f"unknown family: model.arch.type / architectures {', '.join(job.models) or 'not given'}{core}",
        hint=f"describe it in a rules file (--rules); known are {', '.join(known)}",
    )
