"""Which bytes of a target file may be those of a source file, by blocks."""

from __future__ import annotations

import pytest

from reshard.index import ZEROS, Coding, Extent
from reshard.layout.box import Box
from reshard.planning.plan import Move
from reshard.planning.shared import LEAST_NBYTES, Shared, same_bytes, shared_of, with_same_bytes, without_shared
from reshard.planning.steps import Assembly, Piece

BLOCK = 4096
LARGE = 4 * LEAST_NBYTES


def piece(start: int, stop: int, *extents: tuple[int, int], file: int = 0) -> Piece:
    return Piece(file, Box((start,), (stop,)), tuple(Extent(*e) for e in extents))


def copy(pieces: list[Piece], targets: list[Piece], dtype: str = "uint8", made: str = "uint8") -> Move:
    return Move("w", Assembly(dtype, (LARGE,), tuple(pieces)), made, tuple(targets))


@pytest.mark.parametrize(
    ("offset", "nbytes", "source_offset", "shared"),
    [
        (0, LARGE, 0, (0, LARGE)),
        (0, LARGE, BLOCK, (0, LARGE)),
        (100, LARGE, BLOCK + 100, (BLOCK, LARGE - BLOCK)),
        (100, LARGE, 101, None),
        (0, LARGE + 7, 0, (0, LARGE)),
        (0, LEAST_NBYTES - 1, 0, None),
        (1, LEAST_NBYTES, 1, None),
    ],
)
def test_whole_blocks(offset: int, nbytes: int, source_offset: int, shared: tuple[int, int] | None) -> None:
    found = Shared(offset, nbytes, 3, source_offset).in_blocks(BLOCK)
    assert (found and (found.offset, found.nbytes)) == shared
    if found:
        assert (found.source, found.source_offset - found.offset) == (3, source_offset - offset)


def test_a_range_of_rows_is_shared_and_neighbours_are_one() -> None:
    half = LARGE // 2
    targets = [piece(0, half, (BLOCK, half)), piece(half, LARGE, (BLOCK + half, half))]
    found = shared_of(with_same_bytes([copy([piece(0, LARGE, (0, LARGE))], targets)]), BLOCK)
    assert found == {0: [Shared(BLOCK, LARGE, 0, 0)]}


def test_several_files_and_extents() -> None:
    half = LARGE // 2
    sources = [piece(0, half, (0, half), file=5), piece(half, LARGE, (BLOCK, 10), (2 * BLOCK + 10, half - 10), file=6)]
    found = list(same_bytes(copy(sources, []).step, "uint8", piece(0, LARGE, (0, LARGE))))
    assert found == [
        Shared(0, half, 5, 0),
        Shared(half, 10, 6, BLOCK),
        Shared(half + 10, half - 10, 6, 2 * BLOCK + 10),
    ]


def test_what_changes_on_the_way_is_not_shared() -> None:
    whole = Box((0,), (LARGE,))
    target = piece(0, LARGE, (0, LARGE))
    assert shared_of(with_same_bytes([copy([piece(0, LARGE, (0, LARGE))], [target])]), BLOCK)
    assert not shared_of(with_same_bytes([copy([piece(0, LARGE, (0, LARGE))], [target], made="int8")]), BLOCK)
    assert not shared_of(with_same_bytes([copy([Piece(ZEROS, whole, ())], [target])]), BLOCK)
    assert not shared_of(with_same_bytes([copy([Piece(0, whole, (Extent(0, LARGE, Coding(2)),))], [target])]), BLOCK)
    square = Box((0, 0), (256, LARGE // 256))
    turned = Assembly("uint8", square.stop, (Piece(0, square, (Extent(0, LARGE),), order=(1, 0)),))
    assert not shared_of(with_same_bytes([Move("w", turned, "uint8", (Piece(0, square, (Extent(0, LARGE),)),))]), BLOCK)


def test_columns_lie_apart() -> None:
    whole, left = Box((0, 0), (1024, LARGE // 1024)), Box((0, 0), (1024, LARGE // 2048))
    step = Assembly("uint8", whole.stop, (Piece(0, whole, (Extent(0, LARGE),)),))
    assert not shared_of(
        with_same_bytes([Move("w", step, "uint8", (Piece(0, left, (Extent(0, LARGE // 2),)),))]), BLOCK
    )


def test_what_is_left_to_move() -> None:
    move = copy([piece(0, LARGE, (10, LARGE))], [piece(0, LARGE, (10, LARGE)), piece(0, 8, (0, 8), file=1)])
    rest = without_shared(with_same_bytes([move]), {0: [(BLOCK, 2 * BLOCK), (3 * BLOCK, 4 * BLOCK)]})
    assert rest.held == ((0, BLOCK, 2 * BLOCK), (0, 3 * BLOCK, 4 * BLOCK))
    left = [run for made in rest.moves for target in made.targets for run in same_bytes(made.step, "uint8", target)]
    assert left == [
        Shared(10, BLOCK - 10, 0, 10),
        Shared(2 * BLOCK, BLOCK, 0, 2 * BLOCK),
        Shared(4 * BLOCK, LARGE + 10 - 4 * BLOCK, 0, 4 * BLOCK),
        Shared(0, 8, 0, 10),
    ]


def test_moves_that_touch_elements_stay() -> None:
    cast = copy([piece(0, LARGE, (0, LARGE))], [piece(0, LARGE, (0, LARGE))], made="int8")
    assert without_shared(with_same_bytes([cast]), {0: [(0, BLOCK)]}).moves == (cast,)
