"""An order of tensors in which they lie in the blocks of a file system as elsewhere, so that two files share blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from reshard.dtypes import ITEMSIZE
from reshard.formats.base import Phases
from reshard.index import TensorSpec

ALIGNED_NBYTES = 8


def width(spec: TensorSpec) -> int:
    """What an element begins at a multiple of; of three bytes, anywhere."""
    return ITEMSIZE[spec.dtype] & -ITEMSIZE[spec.dtype]


def in_phase(tensors: Mapping[str, TensorSpec], phases: Phases) -> tuple[int, list[str]]:
    """Where in a block the first tensor shall begin, and the order of all, widest elements first.

    >>> w, odd = TensorSpec("float32", (1024,)), TensorSpec("float32", (2,))
    >>> in_phase({"a": odd, "b": w, "c": w}, Phases(4096, {"b": 16, "c": 24}))
    (16, ['b', 'a', 'c'])
    """
    block_nbytes = phases.block_nbytes
    sizes = {name: spec.nbytes for name, spec in tensors.items()}
    begins = {name: at for name, at in phases.begins.items() if name in sizes and at % ALIGNED_NBYTES == 0}
    classes: dict[int, list[str]] = {}
    for name in sorted(tensors):
        classes.setdefault(width(tensors[name]), []).append(name)
    begin = _begin(classes, sizes, begins, block_nbytes)
    order: list[str] = []
    at = begin
    for _, names in sorted(classes.items(), reverse=True):
        order += _ordered(names, sizes, begins, at, block_nbytes)
        at += sum(sizes[name] for name in names)
    return begin, order


def _begin(
    classes: Mapping[int, list[str]], sizes: Mapping[str, int], begins: Mapping[str, int], block_nbytes: int
) -> int:
    """Where the most bytes of one class would be in phase; the first of such places, from which others are reached."""
    best = (0, 0)
    before = 0
    for _, names in sorted(classes.items(), reverse=True):
        sums: dict[int, int] = {}
        for name in names:
            if name in begins:
                sums[begins[name]] = sums.get(begins[name], 0) + sizes[name]
        for at, nbytes in sums.items():
            best = min(best, (-nbytes, (at - before) % block_nbytes))
        before += sum(sizes[name] for name in names)
    return best[1] if best[1] % ALIGNED_NBYTES == 0 else 0


def _ordered(
    names: Iterable[str], sizes: Mapping[str, int], begins: Mapping[str, int], at: int, block_nbytes: int
) -> list[str]:
    """Whoever begins where we are comes next, those first that leave us there; else whoever brings us to others."""
    waiting: dict[int, list[str]] = {}
    movers: dict[int, list[str]] = {}
    for name in sorted(names, key=lambda n: (sizes[n] % block_nbytes != 0, n), reverse=True):  # taken from the end
        if name in begins:
            waiting.setdefault(begins[name], []).append(name)
        else:
            movers.setdefault(sizes[name] % block_nbytes, []).append(name)
    order = []
    while waiting:
        if at % block_nbytes in waiting:
            next_ = _taken(waiting, at % block_nbytes)
        else:
            steps = ((phase - at) % block_nbytes for phase in waiting)
            step = next((step for step in steps if step in movers), None)
            if step is None:
                break
            next_ = _taken(movers, step)
        order.append(next_)
        at += sizes[next_]
    done = set(order)
    return [*order, *(name for name in names if name not in done)]


def _taken(groups: dict[int, list[str]], key: int) -> str:
    name = groups[key].pop()
    if not groups[key]:
        del groups[key]
    return name
