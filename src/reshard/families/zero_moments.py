"""States of an optimizer that ZeRO cuts: which of them lie as the weights do, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.errors import CheckpointError
from reshard.families.torch_parts import Flat
from reshard.families.zero_files import OptimizerStates
from reshard.formats.torch_values import TensorRef
from reshard.planning.names import is_state

_OTHERS = "optimizer_states."
MOMENTS_OF_ADAM = ("exp_avg", "exp_avg_sq")


def named_state(kind: str, name: str) -> str:
    """A parameter's state, so that everybody sees that it is one; the parameter itself where ``kind`` is empty.

    >>> named_state("exp_avg", "w"), named_state("sum", "w"), named_state("", "w")
    ('exp_avg.w', 'optimizer_states.sum.w', 'w')
    """
    if not kind:
        return name
    made = f"{kind}.{name}"
    return made if is_state(made) else _OTHERS + made


def state_of(name: str) -> tuple[str, str]:
    """The kind of a state and the parameter that it is of; "" and the name of what is no state.

    >>> state_of("exp_avg.w.b"), state_of("optimizer_states.sum.w"), state_of("w.b")
    (('exp_avg', 'w.b'), ('sum', 'w'), ('', 'w.b'))
    """
    if not is_state(name):
        return "", name
    kind, _, rest = name.removeprefix(_OTHERS).partition(".")
    return kind, rest


def of_group(
    ranks: Sequence[OptimizerStates], group: int, masters: Sequence[Flat], warnings: list[str]
) -> dict[str, list[Flat]]:
    """The states of a group by kind, of each rank, that lie as its weights do; all others go to ``warnings``.

    Raises CheckpointError where a rank lacks one.
    """
    by_rank = [_flats(states, group) for states in ranks]
    kinds = {kind for flats in by_rank for kind in flats}
    for states, flats in zip(ranks, by_rank, strict=True):
        if kinds - flats.keys():
            raise CheckpointError(
                f"group {group}: it lacks {min(kinds - flats.keys())}, which other ranks have", states.part.path
            )
    found = {kind: [flats[kind] for flats in by_rank] for kind in sorted(kinds)}
    cut = {kind: flats for kind, flats in found.items() if _lies_as(masters, flats)}
    left = [kind for kind in _states(ranks[0], group) if kind not in cut]
    warnings += [not_cut(ranks[0].part.path, kind) for kind in left]
    return cut


def not_cut(path: str, kind: str) -> str:
    """What is told of a state that no tensor is made of."""
    return f"{path}: a state that is not cut as weights becomes no tensor: {kind}"


def _states(states: OptimizerStates, group: int) -> Mapping[str, object]:
    named = states.groups[group] if group < len(states.groups) else {}
    return {str(kind): value for kind, value in named.items()}


def _flats(states: OptimizerStates, group: int) -> dict[str, Flat]:
    found = {k: v for k, v in _states(states, group).items() if isinstance(v, TensorRef) and len(v.shape) == 1}
    return {kind: states.part.flat(value) for kind, value in found.items()}


def _lies_as(masters: Sequence[Flat], flats: Sequence[Flat]) -> bool:
    """Whether ranks hold as many elements as of the weights, or all equally many with the padding that those lack."""
    counts, wanted = [flat.count for flat in flats], [flat.count for flat in masters]
    if counts == wanted:
        return True
    whole = len(set(counts)) == 1 and counts[0] >= max(wanted)
    return whole and sum(counts) - sum(wanted) < 2 * len(counts)
