"""A few small reads that tell a wrong strategy: what it calls equal must be equal, what it calls different must differ.

Shapes cannot tell dp2·mp4 from dp4·mp2, nor dp8 from mp8. The first bytes of a few tensors can.
"""

from __future__ import annotations

from collections.abc import Iterator

from reshard.errors import CheckpointError
from reshard.plan.blocks import cut_extents
from reshard.plan.catalog import Catalog, Held, Tensor
from reshard.run.storage import DiskFile

_PROBE_NBYTES = 4096
_TENSORS = 8
_ENOUGH = 4
_FEW_VALUES = 8
_HINT = "is this the strategy of these files? if one rank's file is broken, move it away: its replicas stand in"


def probe(source: Catalog) -> None:
    """Raises CheckpointError where the strategy contradicts the bytes of one of the largest tensors."""
    cut = distinct = 0
    for tensor in _sample(source):
        for held in tensor.cells.values():
            if len(held) > 1 and _start(source, held[0]) != _start(source, held[-1]):
                ranks = " and ".join(str(source.files[h.file].rank) for h in (held[0], held[-1]))
                raise _contradiction(source, f"ranks {ranks} hold the same of {tensor.name}, and they do not")
        starts = {_start(source, held[0]) for held in tensor.cells.values()}
        if len(tensor.cells) > 1 and not any(map(_is_repeated, starts)):
            cut += 1
            distinct += len(starts) == len(tensor.cells)
    if cut >= _ENOUGH and not distinct:
        raise _contradiction(source, "tensors are cut finer than they are: different shards hold the same bytes")


def _contradiction(source: Catalog, what: str) -> CheckpointError:
    where = source.strategy.where if source.strategy else ""
    return CheckpointError(f"by the strategy {what}", where, _HINT)


def _is_repeated(start: bytes) -> bool:
    """Whether few values recur, as in states that training has not touched yet."""
    return len(set(start)) <= _FEW_VALUES


def _sample(source: Catalog) -> Iterator[Tensor]:
    """The largest tensors, of different cuts first."""
    cut = [t for t in source.tensors.values() if t.laid_out and t.cells]
    cut.sort(key=lambda t: (-t.spec.nbytes, t.name))
    kinds = {t.layout.sharding: t for t in reversed(cut)}
    chosen = {t.name: t for t in (*list(kinds.values())[:_TENSORS], *cut[:_TENSORS])}
    yield from chosen.values()


def _start(source: Catalog, held: Held) -> bytes:
    file = DiskFile(source.files[held.file].path)
    try:
        nbytes = min(_PROBE_NBYTES, held.stored.spec.nbytes)
        return b"".join(file.read(e.offset, e.nbytes) for e in cut_extents(held.stored.extents, 0, nbytes))
    finally:
        file.close()
