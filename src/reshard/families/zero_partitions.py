"""ZeRO's partitions: where the elements of each parameter lie in the flat tensors of the data-parallel ranks.

Source: DeepSpeed 0.19.8, ``runtime/zero/stage_1_and_2.py``, ``stage3.py`` and ``utils/zero_to_fp32.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from reshard.errors import CheckpointError
from reshard.families.torch_parts import Flat
from reshard.families.zero_files import Shapes
from reshard.layout.box import Box
from reshard.layout.cover import boxes_of_range
from reshard.planning.catalog import Held, Shard

NamedShards = dict[str, list[Shard]]


def consecutive(shapes: Shapes, flats: Sequence[Flat], paddings: Sequence[int], length: int) -> NamedShards:
    """Stages 1 and 2: parameters lie one after the other in the ranks' partitions, which follow one another.

    Args:
        flats: the partition of each rank; the last may lack padding that moments have.
        paddings: elements after each parameter; empty for none.
        length: of a partition with its padding.

    Raises:
        CheckpointError: more or fewer elements than the shapes say.
    """
    gaps = [*paddings, *[0] * (len(shapes) - len(paddings))]
    needed = sum(map(prod, shapes.values())) + sum(gaps)
    there = sum(flat.count for flat in flats)
    if there < needed - (gaps[-1] if gaps else 0) or there - needed >= 2 * max(len(flats), 1):
        raise CheckpointError(
            f"param_shapes need {needed:,} elements, the partitions of {len(flats)} ranks hold {there:,}",
            hint="files of different saves lie together, or one was cut short: save again, or bring the right files",
        )
    found: NamedShards = {}
    at = 0
    for (name, shape), gap in zip(shapes.items(), gaps, strict=True):
        found[name] = list(_within(shape, at, flats, length))
        at += prod(shape) + gap
    return found


def _within(shape: tuple[int, ...], start: int, flats: Sequence[Flat], length: int) -> list[Shard]:
    stop = start + prod(shape)
    if start == stop:
        return [Shard(Box.whole(shape), (Held(flats[0].file, ()),))]
    shards = []
    for rank in range(start // length, min(-(-stop // length), len(flats))):
        first = rank * length
        low, high = max(start, first), min(stop, first + flats[rank].count)
        shards += _ranged(shape, (low - start, high - start), flats[rank], low - first, rank)
    return shards


def _ranged(shape: tuple[int, ...], part: tuple[int, int], flat: Flat, at: int, rank: int) -> list[Shard]:
    """The elements ``part`` of a tensor, which lie in ``flat`` from its element ``at`` on."""
    shards = []
    for box in boxes_of_range(shape, *part):
        shards.append(Shard(box, (Held(flat.file, flat.cut(at, at + box.size)),), (rank,)))
        at += box.size
    return shards


def interleaved(shapes: Shapes, flats: Sequence[Flat]) -> NamedShards:
    """Stage 3: each parameter is cut into equal parts, of which every rank holds one; what is beyond it is padding.

    Raises CheckpointError where a rank has more or fewer elements than the shapes say.
    """
    world = len(flats)
    parts = {name: -(-prod(shape) // world) for name, shape in shapes.items()}
    needed = sum(parts.values())
    for rank, flat in enumerate(flats):
        if flat.count != needed:
            raise CheckpointError(
                f"param_shapes need {needed:,} elements of each of {world} ranks, rank {rank} holds {flat.count:,}",
                hint="files of different saves lie together, or one was cut short",
            )
    found: NamedShards = {}
    at = 0
    for name, shape in shapes.items():
        numel, part = prod(shape), parts[name]
        found[name] = [
            shard
            for rank, flat in enumerate(flats)
            for shard in _ranged(shape, (min(rank * part, numel), min((rank + 1) * part, numel)), flat, at, rank)
        ] or [Shard(Box.whole(shape), (Held(flats[0].file, ()),))]
        at += part
    return found
