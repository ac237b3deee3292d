"""Which tensors an optimizer keeps beside a weight, and how they are cut: as the weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from reshard.errors import StrategyError
from reshard.layout.tensor import Layout, Sharding

NONE = "none"
_PREFIXES: dict[str, tuple[str, ...]] = {
    NONE: (),
    "adamw": ("adam_m.", "adam_v."),
    "adamweightdecay": ("adam_m.", "adam_v."),
    "fp32stateadamweightdecay": ("adam_m.", "adam_v."),
    "pmaadamw": ("adam_m.", "adam_v."),
    "fusedcastadamweightdecay": ("adam_m.", "adam_v."),
    "fusedadamweightdecay": ("adam_m.", "adam_v."),
    "fused_adamw": ("adam_m.", "adam_v."),
    "fp32_adamw": ("adam_m.", "adam_v."),
    "fusedadamw": ("exp_avg.", "exp_avg_sq."),
    "came": (),
}


def check_optimizer(name: str) -> None:
    """Raises StrategyError where we do not know the states of an optimizer."""
    if name.lower() not in _PREFIXES:
        raise StrategyError(
            f"optimizer.type {name!r}: the states it keeps are not known",
            hint=f"known: {', '.join(sorted(_PREFIXES))}; --optimizer none makes a strategy of the weights alone",
        )


def optimizer_of(names: Iterable[str]) -> str:
    """The optimizer whose states a checkpoint holds; "" where it holds none that tell.

    >>> optimizer_of(["w", "exp_avg.w", "exp_avg_sq.w"])
    'FusedAdamW'
    """
    known = {"adam_m.": "AdamW", "exp_avg_sq.": "FusedAdamW", "exp_avg_sq_": "Came"}
    for name in names:
        for prefix, optimizer in known.items():
            if name.startswith(prefix):
                return optimizer
    return ""


def states_of(name: str, layout: Layout, optimizer: str) -> Iterator[tuple[str, Layout]]:
    """Names and layouts of the states of a weight that is trained."""
    if optimizer.lower() == "came":
        yield from _came(name, layout)
        return
    for prefix in _PREFIXES[optimizer.lower()]:
        yield prefix + name, layout


def _came(name: str, layout: Layout) -> Iterator[tuple[str, Layout]]:
    """Came keeps the mean whole and the variance as rows and columns, each the weight without one dim."""
    if layout.sharding.opt_parts > 1:
        raise StrategyError(
            f"{name}: how Came's row and column states are cut under optimizer parallel is not known",
            hint="--optimizer none makes a strategy of the weights alone",
        )
    yield f"exp_avg.{name}", layout
    ndim = len(layout.shape)
    if ndim == 1:
        yield f"exp_avg_sq_{name}", layout
    elif ndim > 1:
        yield f"exp_avg_sq_row_{name}", _without(layout, ndim - 1)
        yield f"exp_avg_sq_col_{name}", _without(layout, ndim - 2)


def _without(layout: Layout, dim: int) -> Layout:
    """The layout of the tensor that lacks a dim."""
    sharding = layout.sharding
    kept = tuple(axes for i, axes in enumerate(sharding.tensor_map) if i != dim)
    return Layout(tuple(n for i, n in enumerate(layout.shape) if i != dim), Sharding(sharding.device_matrix, kept))
