"""The blocks of a move tile its targets, and each target piece is written front to back."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import pytest

from making import dtype_named
from reshard.index import Extent, cut_extents
from reshard.layout.box import Box
from reshard.layout.tensor import Layout, Sharding
from reshard.planning.blocks import Access, Blocks
from reshard.planning.plan import Move
from reshard.planning.steps import Assembly, Piece

SHAPE = (4, 6, 8)
SHARDINGS = {
    "whole": Sharding((1,), ((), (), ())),
    "rows": Sharding((4,), ((0,), (), ())),
    "columns": Sharding((4,), ((), (), (0,))),
    "middle and last": Sharding((2, 4), ((), (1,), (0,))),
    "all dims": Sharding((2, 3, 2), ((2,), (1,), (0,))),
    "replicas": Sharding((2, 2), ((0,), (), ())),
}


def pieces(sharding: Sharding, itemsize: int, piece_nbytes: int = 1 << 30) -> tuple[Piece, ...]:
    """The shard of every rank in a file of its own, from byte 100 on, cut into extents with gaps between them."""
    layout = Layout(SHAPE, sharding)
    made = []
    for rank in range(sharding.devices):
        left, at, extents = layout.box(rank).size * itemsize, 100, []
        while left:
            nbytes = min(left, piece_nbytes)
            extents.append(Extent(at, nbytes))
            left, at = left - nbytes, at + nbytes + 7
        made.append(Piece(rank, layout.box(rank), tuple(extents)))
    return tuple(made)


def copied(*sources: Piece, shape: tuple[int, ...] = SHAPE) -> Assembly:
    return Assembly("float32", shape, sources)


def move(source: Sharding, target: Sharding, piece_nbytes: int = 1 << 30, dtype: str = "float32") -> Move:
    distinct = {p.box: p for p in pieces(source, 4, piece_nbytes)}
    itemsize = dtype_named(dtype).itemsize
    return Move("w", copied(*distinct.values()), dtype, pieces(target, itemsize, piece_nbytes))


@pytest.fixture(params=[8, 100, 768, 1 << 20])
def block_nbytes(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.parametrize("source", SHARDINGS)
@pytest.mark.parametrize("target", SHARDINGS)
@pytest.mark.parametrize("piece_nbytes", [20, 1 << 30])
def test_every_target_byte_is_written_once_and_in_order(
    source: str, target: str, piece_nbytes: int, block_nbytes: int
) -> None:
    made = move(SHARDINGS[source], SHARDINGS[target], piece_nbytes)
    blocks = Blocks(made, block_nbytes)
    ranges: dict[int, list[Extent]] = {n: [] for n in range(len(made.targets))}
    for i in range(len(blocks)):
        for write in blocks[i].writes:
            assert write.file == made.targets[write.piece].file
            assert write.box in made.targets[write.piece].box
            assert write.box in blocks[i].box
            assert sum(r.nbytes for r in write.ranges) == write.box.size * 4
            ranges[write.piece] += write.ranges
    for number, piece in enumerate(made.targets):
        joined = [b for r in ranges[number] for b in range(r.offset, r.end)]
        assert joined == [b for e in piece.extents for b in range(e.offset, e.end)]


@pytest.mark.parametrize("source", SHARDINGS)
@pytest.mark.parametrize("target", SHARDINGS)
def test_reads_hold_the_block(source: str, target: str, block_nbytes: int) -> None:
    made = move(SHARDINGS[source], SHARDINGS[target])
    blocks = Blocks(made, block_nbytes)
    for i in range(len(blocks)):
        block = blocks[i]
        assert sum((read.box & block.box).size for read in block.reads) == block.box.size
        for read in block.reads:
            assert read.box in made.step.base.pieces[read.piece].box
            assert sum(r.nbytes for r in read.ranges) == read.box.size * 4


@pytest.mark.parametrize("source", SHARDINGS)
@pytest.mark.parametrize("target", SHARDINGS)
def test_blocks_tile_the_hull_and_keep_their_size(source: str, target: str, block_nbytes: int) -> None:
    blocks = Blocks(move(SHARDINGS[source], SHARDINGS[target]), block_nbytes)
    boxes = [blocks[i].box for i in range(len(blocks))]
    assert sum(b.size for b in boxes) == blocks.hull.size
    assert not any((a & b).size for a, b in pairwise(sorted(boxes)))
    assert all(b.size * 4 <= block_nbytes for b in boxes)
    reads = [a for i in range(len(blocks)) for a in blocks[i].reads]
    assert all(sum(r.nbytes for r in a.ranges) <= block_nbytes for a in reads)


def test_a_narrow_target_reads_its_columns_only_where_rows_are_long() -> None:
    """A row of the source longer than a block is read in part."""
    rows = Sharding((4,), ((0,), (), ()))
    whole = move(rows, Sharding((8,), ((), (), (0,))))
    narrow = Move("w", whole.step, "float32", whole.targets[:1])
    blocks = Blocks(narrow, 16)
    assert sum(r.nbytes for i in range(len(blocks)) for a in blocks[i].reads for r in a.ranges) < prod(SHAPE) * 4


@pytest.mark.parametrize(("dtype", "itemsize"), [("float16", 2), ("float64", 8)])
def test_a_cast_counts_both_sizes(dtype: str, itemsize: int, block_nbytes: int) -> None:
    blocks = Blocks(move(SHARDINGS["rows"], SHARDINGS["columns"], dtype=dtype), block_nbytes)
    for i in range(len(blocks)):
        block = blocks[i]
        assert block.box.size * max(itemsize, 4) <= block_nbytes
        assert all(sum(r.nbytes for r in w.ranges) == w.box.size * itemsize for w in block.writes)


def test_a_scalar_is_one_block() -> None:
    box = Box((), ())
    piece = Piece(0, box, (Extent(8, 4),))
    blocks = Blocks(Move("s", copied(piece, shape=()), "float32", (piece, piece)), 1)
    assert len(blocks) == 1
    assert blocks[0].reads == (Access(0, 0, box, (Extent(8, 4),)),)
    assert [w.piece for w in blocks[0].writes] == [0, 1]


def test_an_empty_tensor_has_no_block() -> None:
    piece = Piece(0, Box((0, 0), (0, 5)), ())
    assert len(Blocks(Move("e", copied(piece, shape=(0, 5)), "float32", (piece,)), 64)) == 0


@pytest.mark.parametrize(
    ("start", "nbytes", "cut"),
    [
        (0, 20, [(100, 10), (200, 10)]),
        (0, 10, [(100, 10)]),
        (10, 10, [(200, 10)]),
        (9, 2, [(109, 1), (200, 1)]),
        (5, 0, []),
        (19, 1, [(209, 1)]),
    ],
)
def test_cut_extents(start: int, nbytes: int, cut: list[tuple[int, int]]) -> None:
    extents = (Extent(100, 10), Extent(200, 10))
    assert cut_extents(extents, start, nbytes) == tuple(Extent(*c) for c in cut)
