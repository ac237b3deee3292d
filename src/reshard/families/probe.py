"""A few small reads that tell a wrong strategy: what it calls equal must be equal, what it calls different must differ.

Shapes cannot tell dp2·mp4 from dp4·mp2, nor dp8 from mp8. The first bytes of a few tensors can.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from reshard.errors import CheckpointError
from reshard.index import ZEROS, Extent, cut_extents
from reshard.planning.catalog import Catalog, Held, Shard, Tensor
from reshard.storage.storages import storage_of

_PROBE_NBYTES = 4096
_TENSORS = 8
_ENOUGH = 3
_FEW_VALUES = 8
_Bytes = tuple[int, tuple[Extent, ...]]
"""The number of a file, and bytes of it."""
_HINT = "is this the strategy of these files? if one rank's file is broken, move it away: its replicas stand in"


def probe(source: Catalog) -> tuple[str, ...]:
    """Raises CheckpointError where a source's strategy contradicts the bytes of most of the tensors that are looked at.

    Gives a warning for a few that differ: states that each rank keeps for itself do.
    """
    if "strategy" not in source.told_by:
        return ()
    replicated, unequal, cut, alike = 0, [], 0, 0
    sample = list(_sample(source))
    start_of = _starts(source, sample)
    for tensor in sample:
        differing = _differing_replicas(source, tensor, start_of)
        held = [shard for shard in tensor.shards if shard.held]
        replicated += any(len(shard.held) > 1 for shard in held)
        if differing:
            unequal.append(f"ranks {differing[0]} and {differing[1]} hold the same of {tensor.name}, and they do not")
        starts = {start_of[_first_bytes(tensor, shard, shard.held[0])] for shard in held}
        if len(held) > 1 and not any(map(_is_repeated, starts)):
            cut += 1
            alike += len(starts) < len(held)
    if len(unequal) >= _ENOUGH and 2 * len(unequal) > replicated:
        raise _contradiction(source, unequal[0])
    if cut >= _ENOUGH and cut == alike:
        raise _contradiction(source, "tensors are cut finer than they are: different shards hold the same bytes")
    return tuple(f"by the strategy {u}: --check-replicas looks at all" for u in unequal[:1])


def _differing_replicas(source: Catalog, tensor: Tensor, start_of: Mapping[_Bytes, bytes]) -> tuple[int, int] | None:
    """Two ranks that should begin with the same bytes and do not."""
    for shard in tensor.shards:
        if len(shard.held) > 1:
            one, other = shard.held[0], shard.held[-1]
            if start_of[_first_bytes(tensor, shard, one)] != start_of[_first_bytes(tensor, shard, other)]:
                return source.files[one.file].rank, source.files[other.file].rank
    return None


def _contradiction(source: Catalog, what: str) -> CheckpointError:
    return CheckpointError(f"by the strategy {what}", source.ranks.where, _HINT)


def _is_repeated(start: bytes) -> bool:
    """Whether few values recur, as in states that training has not touched yet."""
    return len(set(start)) <= _FEW_VALUES


def _sample(source: Catalog) -> Iterator[Tensor]:
    """The largest tensors, of different cuts first."""
    cut = [t for t in source.tensors.values() if t.known and t.cut and any(s.held for s in t.shards)]
    cut.sort(key=lambda t: (-t.spec.nbytes, t.name))
    kinds = {t.cut.sharding: t for t in reversed(cut) if t.cut}
    chosen = {t.name: t for t in (*list(kinds.values())[:_TENSORS], *cut[:_TENSORS])}
    yield from chosen.values()


def _starts(source: Catalog, tensors: Iterable[Tensor]) -> Mapping[_Bytes, bytes]:
    """The first bytes of each shard of some tensors, as the first and the last of its holders have them."""
    ends = (_first_bytes(t, s, s.held[end]) for t in tensors for s in t.shards if s.held for end in (0, -1))
    wanted = list(dict.fromkeys(ends))
    with ThreadPoolExecutor(storage_of(source.files[0].path).at_once) as pool:
        return dict(zip(wanted, pool.map(partial(_start, source), wanted), strict=True))


def _first_bytes(tensor: Tensor, shard: Shard, held: Held) -> _Bytes:
    extents = held.extents_of(shard.box, tensor.spec.itemsize)
    return held.file, cut_extents(extents, 0, _PROBE_NBYTES)


def _start(source: Catalog, first: _Bytes) -> bytes:
    number, extents = first
    if number == ZEROS:
        return b""
    path = source.files[number].path
    file = storage_of(path).open(path)
    try:
        return b"".join(file.read(e.offset, e.nbytes) for e in extents)
    finally:
        file.close()
