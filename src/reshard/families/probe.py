"""What only bytes can tell: a wrong strategy, by a few small reads, and ranks that disagree.

What a strategy calls equal must be equal, what it calls different must differ.
Shapes cannot tell dp2·mp4 from dp4·mp2, nor dp8 from mp8. The first bytes of a few tensors can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import chain, islice

from reshard.errors import CheckpointError
from reshard.layout.box import Box
from reshard.moving.task_inputs import SourceFiles, Sources, files_of
from reshard.planning.catalog import Catalog, Grid, Held, Tensor
from reshard.storage.storages import storage_of

_PROBE_NBYTES = 4096
_TENSORS = 8
_ENOUGH = 2
_SHARDS, _HOLDERS = 4, 8
"""Of a tensor of a source that says itself what is equal: slices, and how many that hold one."""
_FEW_VALUES = 8
_BLOCK_NBYTES = 8 << 20
_REMOTE_COMPARISONS = 16  # each with two blocks
_REMOTE_BLOCK_NBYTES = 1 << 20
_Opening = tuple[Held, Box, int]
"""Who holds a shard, its box, and bytes of an element."""
_ASKED = "is this the strategy of these files?"
_HINT = f"{_ASKED} if one rank's file is broken, move it away: its replicas stand in"


def probe(source: Catalog) -> tuple[str, ...]:
    """Raises CheckpointError where a source's strategy contradicts the bytes of most of the tensors that are looked at.

    Gives a warning for a few that do: states that each rank keeps for itself differ, experts made of one are alike.
    """
    if not source.by_strategy:
        return _told_of_replicas(source)
    replicated, unequal, cut, alike = 0, [], 0, []
    sample = list(_sample(source))
    start_of = _starts(source, sample)
    for tensor in sample:
        differing = _differing_replicas(source, tensor, start_of)
        held = [shard for shard in tensor.shards if shard.held]
        replicated += any(len(shard.held) > 1 for shard in held)
        if differing:
            unequal.append(f"ranks {differing[0]} and {differing[1]} hold the same of {tensor.name}, and they do not")
        starts = {start_of[shard.held[0], shard.box, tensor.spec.itemsize] for shard in held}
        if len(held) > 1 and not any(map(_is_repeated, starts)):
            cut += 1
            alike += [tensor.name] * (len(starts) < len(held))
    if len(unequal) >= _ENOUGH and 2 * len(unequal) > replicated:
        raise _contradiction(source, unequal[0])
    if cut >= _ENOUGH and cut == len(alike):
        raise _contradiction(source, "tensors are cut finer than they are: different shards hold the same bytes")
    odd = [f"by the strategy {u}: --check-replicas looks at all" for u in unequal[:1]]
    odd += [f"by the strategy slices of {name} differ, and they hold the same bytes: {_ASKED}" for name in alike[:1]]
    return tuple(odd)


def _told_of_replicas(source: Catalog) -> tuple[str, ...]:
    """The same of a source that says itself what is equal. Raises CheckpointError for a file of which all slices that
    are looked at are others than their replicas: it lies under another's name, or is of another save.
    """
    openings = [
        [(held, shard.box, tensor.spec.itemsize) for held in shard.held[:_HOLDERS]]
        for tensor in _replicated(source)
        for shard in islice((s for s in tensor.shards if len(s.held) > 1), _SHARDS)
    ]
    start_of = _read(source, chain.from_iterable(openings))
    equal, unequal = Counter[int](), Counter[int]()
    for first, *others in openings:
        for other in others:
            same = start_of[first] == start_of[other]
            (equal if same else unequal).update((first[0].file, other[0].file))
    wrong = [source.files[file].name for file in unequal if unequal[file] >= _ENOUGH and not equal[file]]
    if wrong:
        raise CheckpointError(
            f"{' and '.join(wrong[:2])} should hold the same as other files do, and hold something else",
            source.ranks.where,
            "are files under each other's names, or of two saves? copy them again; --check-replicas looks at all",
        )
    odd = [source.files[file].name for file in unequal]
    return (f"{' and '.join(odd[:2])} should hold the same, and do not: --check-replicas looks at all",) * bool(odd)


def _replicated(source: Catalog) -> Iterator[Tensor]:
    """Tensors that are cut and of whose slices several files hold the same: two of each file, the largest."""
    taken: Counter[int] = Counter()
    known = [(t, t.shards.cells) for t in source.tensors.values() if t.known and isinstance(t.shards, Grid)]
    cut = [(tensor, cells) for tensor, cells in known if len(cells) > 1]
    for tensor, cells in sorted(cut, key=lambda each: -each[0].spec.nbytes):
        held = next((held for held in cells.values() if len(held) > 1), ())
        if held and taken[held[0].file] < _ENOUGH and len(taken) <= _TENSORS:
            taken[held[0].file] += 1
            yield tensor


def _differing_replicas(source: Catalog, tensor: Tensor, start_of: Mapping[_Opening, bytes]) -> tuple[int, int] | None:
    """Two ranks that should begin with the same bytes and do not."""
    for shard in tensor.shards:
        if len(shard.held) > 1:
            one, other = shard.held[0], shard.held[-1]
            first, last = (start_of[held, shard.box, tensor.spec.itemsize] for held in (one, other))
            if first != last:
                return source.rank_of(one), source.rank_of(other)
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


def _starts(source: Catalog, tensors: Iterable[Tensor]) -> Mapping[_Opening, bytes]:
    """The first bytes of each shard of some tensors, as the first and the last of its holders have them."""
    ends = ((s.held[end], s.box, t.spec.itemsize) for t in tensors for s in t.shards if s.held for end in (0, -1))
    return _read(source, ends)


def _read(source: Catalog, openings: Iterable[_Opening]) -> Mapping[_Opening, bytes]:
    wanted = list(dict.fromkeys(openings))
    if not wanted:
        return {}
    files = files_of(source)
    with ThreadPoolExecutor(storage_of(source.files[0].path).at_once) as pool:
        return dict(zip(wanted, pool.map(partial(_start, files), wanted), strict=True))


def _start(files: SourceFiles, start: _Opening) -> bytes:
    held, box, itemsize = start
    with closing(Sources(files)) as sources:
        return bytes(sources.shard_bytes(held, box, itemsize, 0, _PROBE_NBYTES))


def agreements(source: Catalog, names: Iterable[Tensor]) -> dict[str, bool]:
    """Whether all ranks that hold a tensor hold the same bytes, by reading them."""
    remote = any(storage_of(f.path).remote for f in source.files[:1])
    block_nbytes = _REMOTE_BLOCK_NBYTES if remote else _BLOCK_NBYTES
    files, tensors = files_of(source), list(names)
    with ThreadPoolExecutor(_REMOTE_COMPARISONS if remote else 1) as pool:
        found = pool.map(lambda tensor: _agree(files, tensor, block_nbytes), tensors)
        return {tensor.name: same for tensor, same in zip(tensors, found, strict=True)}


def _agree(files: SourceFiles, tensor: Tensor, block_nbytes: int) -> bool:
    """Two at a time, so that of thousands of files few are open."""
    itemsize = tensor.spec.itemsize
    for shard in tensor.shards:
        for other in shard.held[1:]:
            with closing(Sources(files)) as sources:
                for start in range(0, shard.box.size * itemsize, block_nbytes):
                    one, two = (
                        sources.shard_bytes(held, shard.box, itemsize, start, block_nbytes)
                        for held in (shard.held[0], other)
                    )
                    if one != two:
                        return False
    return True
