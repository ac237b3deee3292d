"""Which of a folder's torch files are weights, by their names: trainers lay much else beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from reshard.formats.registry import suffixes

_STATES = re.compile(
    r"(training_args|optimizer|scheduler|lr_scheduler|scaler|grad_scaler|rng_state|random_states|sampler|trainer_state)"
    r"([._-].*)?\.(bin|pt|pth)"
)
_FULL = re.compile(r"(pytorch_model|model|adapter_model).*\.(bin|safetensors)(\.index\.json)?")
_WEIGHTS = re.compile(r"pytorch_model([._-].*)?\.bin")


def weight_names(names: Iterable[str]) -> set[str]:
    """Of the names of weight files in one folder those that are taken: no torch files where there are others, as
    loaders for PyTorch choose, too; else ``pytorch_model…``; else all but a trainer's own.

    >>> sorted(weight_names(["model.safetensors", "pytorch_model.bin", "optimizer.pt"]))
    ['model.safetensors']
    >>> sorted(weight_names(["a.pt", "b.pth", "rng_state_0.pth"]))
    ['a.pt', 'b.pth']
    """
    there = set(names)
    torch = {name for name in there if suffixes().get("." + name.rpartition(".")[2]) == "torch"}
    weights = {name for name in torch if _WEIGHTS.fullmatch(name)}
    return there - torch or weights or {name for name in torch if not _STATES.fullmatch(name)}


def full_names(names: Iterable[str]) -> list[str]:
    """Of the names in a folder those that full weights have, whatever else trainers lay there.

    >>> full_names(["model.safetensors.index.json", "data.pt", "scheduler.pt"])
    ['model.safetensors.index.json']
    """
    return sorted(name for name in names if _FULL.fullmatch(name))
