"""Replicas compared: all ranks that should hold the same of a tensor, each read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import numpy as np
import numpy.typing as npt

from reshard.dtypes import numpy_dtype
from reshard.errors import named_ranks
from reshard.layout.box import Box
from reshard.moving.task_inputs import SourceFiles, Sources, files_of
from reshard.planning.catalog import Catalog, Held, Tensor
from reshard.storage.machine import auto_workers

_BLOCK_NBYTES = 4 << 20
_Bytes = npt.NDArray[np.uint8]


def replica_faults(source: Catalog) -> list[str]:
    """One line for each element at which a rank parts from the others: tensor, index in the full tensor, the values
    and the ranks that have them. Of each rank the first such element. Raises InputError, StorageError.
    """
    files = files_of(source)
    with ThreadPoolExecutor(auto_workers(f.path for f in source.files[:1])) as pool:
        found = pool.map(partial(_faults_of, source, files), source.tensors.values())
        return [fault for faults in found for fault in faults]


def _faults_of(source: Catalog, files: SourceFiles, tensor: Tensor) -> list[str]:
    faults: list[str] = []
    for shard in (shard for shard in tensor.shards if len(shard.held) > 1):
        with closing(Sources(files)) as sources:
            comparison = _CellHolders(tensor, shard.box, sources)
            for element, values in comparison.partings(shard.held):
                shown = shown_values(tensor.spec.dtype, list(values))
                who = (
                    f"{value} in {named_ranks([source.rank_of(h) for h in holders])}"
                    for value, holders in zip(shown, values.values(), strict=True)
                )
                faults.append(f"{tensor.name}{list(element)}: {'; '.join(who)}")
            sources.check_unchanged()
    return faults


class _CellHolders:
    """Of all that hold one cell, whose elements are ``box`` of the tensor."""

    def __init__(self, tensor: Tensor, box: Box, sources: Sources) -> None:
        self._box = box
        self._itemsize = tensor.spec.itemsize
        self._sources = sources

    def partings(self, held: Sequence[Held]) -> Iterator[tuple[tuple[int, ...], dict[bytes, list[Held]]]]:
        """Elements at which some part from the rest, and who has which bytes there, the most first. Those who parted
        are no longer looked at.
        """
        nbytes = self._box.size * self._itemsize
        block_nbytes = _BLOCK_NBYTES - _BLOCK_NBYTES % self._itemsize
        for start in range(0, nbytes, block_nbytes):
            while len(held) > 1:
                found = self._parting(held, start, min(block_nbytes, nbytes - start))
                if found is None:
                    break
                at, values = found
                yield self._index(at), values
                held = next(iter(values.values()))

    def _parting(self, held: Sequence[Held], start: int, nbytes: int) -> tuple[int, dict[bytes, list[Held]]] | None:
        """The first element of a block at which not all have the same."""
        first = self._read(held[0], start, nbytes)
        differing: dict[int, dict[bytes, list[Held]]] = {}
        for other in held[1:]:
            theirs = self._read(other, start, nbytes)
            if not np.array_equal(first, theirs):
                at = int(np.flatnonzero(first != theirs)[0]) // self._itemsize
                differing.setdefault(at, {}).setdefault(self._item(theirs, at), []).append(other)
        if not differing:
            return None
        at = min(differing)
        apart = [h for holders in differing[at].values() for h in holders]
        values = {self._item(first, at): [h for h in held if h not in apart], **differing[at]}
        ordered = dict(sorted(values.items(), key=lambda value: -len(value[1])))
        return start // self._itemsize + at, ordered

    def _read(self, held: Held, start: int, nbytes: int) -> _Bytes:
        return np.frombuffer(self._sources.shard_bytes(held, self._box, self._itemsize, start, nbytes), np.uint8)

    def _item(self, data: _Bytes, at: int) -> bytes:
        return data[at * self._itemsize : (at + 1) * self._itemsize].tobytes()

    def _index(self, at: int) -> tuple[int, ...]:
        """In the full tensor."""
        within = np.unravel_index(at, self._box.shape)
        return tuple(int(i) + start for i, start in zip(within, self._box.start, strict=True))


def shown_values(dtype: str, values: Sequence[bytes]) -> list[str]:
    """Values that differ, so that one sees it: in bits where NaNs differ in payload or zeros in sign.

    >>> import struct
    >>> shown_values("float32", [struct.pack("<f", x) for x in (1.5, 2.0)])
    ['1.5', '2.0']
    >>> shown_values("float32", [bytes([0, 0, 192, 127]), bytes([1, 0, 192, 127])])
    ['0x7fc00000', '0x7fc00001']
    """
    texts = [str(np.frombuffer(value, numpy_dtype(dtype))[0]) for value in values]
    if len(set(texts)) < len(texts):
        return ["0x" + value[::-1].hex() for value in values]
    return texts
