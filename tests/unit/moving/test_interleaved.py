"""Tensors that take turns in their files: what goes at once, and what goes another way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.index import MAX_DIMS, ZEROS, Coding, Extent
from reshard.layout.box import Box
from reshard.moving.interleaved import Interleaved, _evenly, _joined_dims, _pattern, _sides, _Stretches, interleaved
from reshard.moving.scratch import Scratch
from reshard.moving.task_inputs import Sources
from reshard.planning.plan import Move, SourceFile
from reshard.planning.steps import Assembly, Piece, Scaled

COUNT, ROWS, COLUMNS = 5, 4, 6
WIDE = ROWS * COLUMNS * 2
"""Bytes of one matrix."""
CUTS = {
    "whole": [Box((0, 0), (ROWS, COLUMNS))],
    "rows": [Box((0, 0), (2, COLUMNS)), Box((2, 0), (ROWS, COLUMNS))],
    "columns": [Box((0, 0), (ROWS, 2)), Box((0, 2), (ROWS, 4)), Box((0, 4), (ROWS, COLUMNS))],
    "both": [Box((r, c), (r + 2, c + 3)) for r, c in product((0, 2), (0, 3))],
}


def stacked(box: Box) -> Box:
    return Box((0, *box.start), (COUNT, *box.stop))


BOX = stacked(CUTS["whole"][0])


def laid(cuts: Sequence[Sequence[Box]], begin: int) -> tuple[list[list[Piece]], list[int]]:
    """Pieces of kinds that take turns in as many files as each has boxes, and where the files end."""
    ends = [begin] * len(cuts[0])
    extents: list[list[list[Extent]]] = [[[] for _ in boxes] for boxes in cuts]
    for _, (kind, boxes) in product(range(COUNT), enumerate(cuts)):
        for file, box in enumerate(boxes):
            extents[kind][file].append(Extent(ends[file], 2 * box.size))
            ends[file] += 2 * box.size
    return [
        [Piece(file, stacked(box), tuple(extents[kind][file])) for file, box in enumerate(boxes)]
        for kind, boxes in enumerate(cuts)
    ], ends


def move(sources: Sequence[Piece], targets: Sequence[Piece], dtype: str = "int16") -> Move:
    shape = (COUNT, ROWS, COLUMNS)
    return Move("w", Assembly("int16", shape, tuple(sources)), dtype, tuple(targets))


def together(moves: Sequence[Move]) -> Interleaved | None:
    return interleaved(moves, 1 << 20)


def part(values: np.ndarray, box: Box) -> bytes:
    return values[:, box.start[0] : box.stop[0], box.start[1] : box.stop[1]].tobytes()


def files_of(values: Sequence[np.ndarray], cuts: Sequence[Sequence[Box]]) -> list[bytes]:
    """What the files hold, from where their stretch begins."""
    return [
        b"".join(
            part(values[kind][i : i + 1], cuts[kind][file]) for i, kind in product(range(COUNT), range(len(values)))
        )
        for file in range(len(cuts[0]))
    ]


@pytest.mark.parametrize(("of", "to"), list(product(CUTS, CUTS)))
@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_every_cut_becomes_every_other(of: str, to: str, kinds: int, tmp_path: Path) -> None:
    values = [
        np.arange(k, k + COUNT * ROWS * COLUMNS, dtype=np.int16).reshape(COUNT, ROWS, COLUMNS) * 7 for k in range(kinds)
    ]
    cuts = [CUTS[of]] * kinds, [CUTS[to]] * kinds
    (sources, _), (targets, ends) = laid(cuts[0], 3), laid(cuts[1], 40)
    contents = [bytes(3) + held + b"rest" for held in files_of(values, cuts[0])]
    planned = []
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
        there = (tmp_path / str(number)).stat()
        planned.append(SourceFile(str(tmp_path / str(number)), there.st_size, there.st_mtime_ns))
    read, written = Sources(tuple(planned)), {}
    moves = [move(s, t) for s, t in zip(sources, targets, strict=True)]
    found = together(moves[::-1])
    assert found is not None
    assert together(moves) is not None

    def put(file: int, offset: int, data: memoryview, gaps: Sequence[tuple[int, int]]) -> None:
        assert not gaps
        written[file] = offset, bytes(data)

    found.run(read, Scratch(), put)
    wanted = files_of(values, cuts[1])
    assert written == {file: (40, wanted[file]) for file in range(len(wanted))}
    assert [40 + len(each) for each in wanted] == ends
    assert read.read_nbytes == kinds * COUNT * WIDE
    read.close()


def carried(tmp_path: Path, moves: Sequence[Move], content: bytes) -> tuple[Interleaved, dict[int, tuple[int, bytes]]]:
    """What goes to each file, and where its stretch begins."""
    (tmp_path / "in").write_bytes(content)
    there = (tmp_path / "in").stat()
    read = Sources((SourceFile(str(tmp_path / "in"), there.st_size, there.st_mtime_ns),))
    found = interleaved(moves, 2 * len(content))
    assert found is not None
    written: dict[int, tuple[int, bytes]] = {}
    found.run(read, Scratch(), lambda file, offset, data, _: written.update({file: (offset, bytes(data))}))
    read.close()
    return found, written


def test_replicas_are_made_once(tmp_path: Path) -> None:
    """However many they are, buffers are as large as those of one."""
    content = bytes(range(2 * WIDE)) * COUNT
    cuts = [box for box in CUTS["rows"] for _ in range(3)]
    (sources, _), (targets, _) = laid([CUTS["whole"]] * 2, 0), laid([cuts] * 2, 0)
    found, written = carried(tmp_path, [move(s, t) for s, t in zip(sources, targets, strict=True)], content)
    assert found.pattern.nbytes == len(content)
    wide = np.frombuffer(content, np.int16).reshape(2 * COUNT, ROWS, COLUMNS)
    assert written == {file: (0, part(wide, box)) for file, box in enumerate(cuts)}


@pytest.mark.parametrize("files", [(0, 1), (0, 0)], ids=["in two files", "in one"])
@pytest.mark.parametrize("falling", [False, True])
def test_what_looks_alike_is_not_the_same(files: tuple[int, int], falling: bool, tmp_path: Path) -> None:
    """Two kinds at the same places of two files, or one in whichever order its rows lie."""
    content = bytes(range(2 * WIDE)) * COUNT
    (sources, _) = laid([CUTS["whole"]] * 2, 0)
    step = WIDE * (2 if files == (0, 0) else 1)
    extents = [
        tuple(Extent(7 + n * step + (k * WIDE if files[k] == 0 else 0), WIDE) for n in range(COUNT)) for k in (0, 1)
    ]
    if falling:
        extents = [each[::-1] for each in extents]
    moves = [move(sources[k], [Piece(files[k], BOX, extents[k])]) for k in (0, 1)]
    _, written = carried(tmp_path, moves, content)
    wanted = {file: bytearray(7 + step * COUNT) for file in files}
    wide = np.frombuffer(content, np.int16).reshape(COUNT, 2, ROWS, COLUMNS)
    for k, n in product((0, 1), range(COUNT)):
        at = extents[k][n]
        wanted[files[k]][at.offset : at.end] = wide[n, k].tobytes()
    assert written == {file: (7, bytes(each[7:])) for file, each in wanted.items()}


def test_files_that_hold_the_same_kind_alike_and_others_before_it(tmp_path: Path) -> None:
    """Then it is elsewhere in the stretch of each."""
    content = bytes(range(2 * WIDE)) * COUNT
    (sources, _) = laid([CUTS["whole"]] * 2, 0)
    before = Extent(0, COUNT * WIDE), Extent(COUNT * WIDE, COUNT * WIDE)
    both = before[1:]
    targets = [Piece(0, BOX, before[:1])], [Piece(0, BOX, both), Piece(1, BOX, both)]
    _, written = carried(tmp_path, [move(s, t) for s, t in zip(sources, targets, strict=True)], content)
    wide = np.frombuffer(content, np.int16).reshape(COUNT, 2, ROWS * COLUMNS)
    first, second = wide[:, 0].tobytes(), wide[:, 1].tobytes()
    assert written == {0: (0, first + second), 1: (len(first), second)}


def test_rows_in_another_order_are_not_the_same(tmp_path: Path) -> None:
    (sources, _), extents = laid([CUTS["whole"]], 0), [Extent(n * WIDE, WIDE) for n in range(COUNT)]
    content = bytes(range(COUNT * WIDE))
    rows = [content[each.offset : each.end] for each in extents]
    targets = [Piece(0, BOX, tuple(extents)), Piece(1, BOX, tuple(extents[::-1]))]
    _, written = carried(tmp_path, [move(sources[0], targets)], content)
    assert written == {0: (0, content), 1: (0, b"".join(rows[::-1]))}


def test_no_more_is_held_than_of_a_block() -> None:
    (sources, _), (targets, _) = laid([CUTS["whole"]] * 2, 0), laid([CUTS["rows"] * 2] * 2, 0)
    moves = [move(s, t) for s, t in zip(sources, targets, strict=True)]
    assert interleaved(moves, 2 * COUNT * WIDE) is not None
    assert interleaved(moves, COUNT * WIDE) is None
    overlapping = [Box((0, 0), (ROWS - each, COLUMNS)) for each in range(ROWS)]
    (targets, _) = laid([overlapping] * 2, 0)
    moves = [move(s, t) for s, t in zip(sources, targets, strict=True)]
    assert interleaved(moves, 4 * COUNT * WIDE) is not None
    assert interleaved(moves, 2 * COUNT * WIDE) is None


@pytest.mark.parametrize(
    ("shape", "cuts"),
    [
        ((), [Box((), ())]),
        ((6,), [Box((0,), (2,)), Box((2,), (6,))]),
        ((6, 4), [Box((0, 0), (4, 4)), Box((4, 0), (6, 4))]),
        ((6, 4), [Box((3, 2), (6, 4)), Box((0, 0), (3, 4)), Box((3, 0), (6, 2))]),
    ],
)
def test_tensors_of_which_there_is_one(shape: tuple[int, ...], cuts: list[Box], tmp_path: Path) -> None:
    values = np.arange(prod(shape), dtype=np.int16).reshape(shape)
    (tmp_path / "in").write_bytes(b"head" + values.tobytes())
    there = (tmp_path / "in").stat()
    read, written = Sources((SourceFile(str(tmp_path / "in"), there.st_size, there.st_mtime_ns),)), {}
    of = Piece(0, Box.whole(shape), (Extent(4, values.nbytes),))
    targets = tuple(Piece(file, box, (Extent(10, 2 * box.size),)) for file, box in enumerate(cuts))
    found = interleaved([Move("w", Assembly("int16", shape, (of,)), "int16", targets)], 1 << 20)
    assert found is not None
    found.run(read, Scratch(), lambda file, offset, data, gaps: written.update({file: (offset, bytes(data))}))
    assert written == {file: (10, values[box.within(of.box)].tobytes()) for file, box in enumerate(cuts)}
    read.close()


def test_what_lies_alike_elsewhere_is_looked_at_once() -> None:
    patterns = []
    for begin in (8, 1000, 5000):
        (sources, _), (targets, _) = laid([CUTS["whole"]] * 2, begin), laid([CUTS["rows"]] * 2, 2 * begin)
        found = together([move(s, t) for s, t in zip(sources, targets, strict=True)])
        assert found is not None
        assert (found.of, found.to) == ({0: begin}, {0: 2 * begin, 1: 2 * begin})
        patterns.append(found.pattern)
    assert patterns[0] is patterns[1] is patterns[2]
    _pattern.cache_clear()


@pytest.mark.parametrize(
    ("kinds", "copies"), [(1, 1), (2, 2), (3, 3)], ids=["one after the other", "in turns of two", "in turns of three"]
)
def test_kinds_of_one_move_that_take_turns_go_by_few_copies(kinds: int, copies: int) -> None:
    """Gate and up are of one shape and cut: one move, whose rows are not all equally far apart."""
    rows = [1000 * layer + 10 * kind for layer in range(6) for kind in range(kinds)]
    found = _evenly(np.array(rows).tobytes(), np.array(rows).tobytes())
    assert len(found) == copies


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20),
    st.integers(1, 5),
)
def test_every_row_goes_once(rows: list[tuple[int, int]], period: int) -> None:
    repeated = [(100 * n + of, 50 * n + to) for n in range(period) for of, to in rows]
    of, to = (np.array([each[side] for each in repeated], np.int64) for side in (0, 1))
    found = [
        (even.of[0] + n * even.of[1], even.to[0] + n * even.to[1])
        for even in _evenly(of.tobytes(), to.tobytes())
        for n in range(even.count)
    ]
    assert sorted(found) == sorted(repeated)


def test_how_much_lies_together() -> None:
    assert _joined_dims(2, (4, 8), (16, 2), (16, 2)) == (64, [])
    assert _joined_dims(2, (4, 8), (16, 2), (32, 2)) == (16, [(4, 16, 32)])
    assert _joined_dims(2, (4, 8), (32, 2), (16, 2)) == (16, [(4, 32, 16)])
    assert _joined_dims(2, (4, 1), (16, 2), (2, 2)) == (2, [(4, 16, 2)])
    assert _joined_dims(2, (1, 8), (16, 2), (32, 2)) == (16, [])


def test_gaps_in_what_is_written_are_told() -> None:
    """Of which a file's header pieces may fill some."""
    (sources, _), _ = laid([CUTS["whole"]], 0), 0
    extents = tuple(Extent(100 + n * (WIDE + 10), WIDE) for n in range(COUNT))
    found = together([move(sources[0], [Piece(0, stacked(CUTS["whole"][0]), extents)])])
    assert found is not None
    assert found.gaps == {0: (100, [(n * (WIDE + 10) + WIDE, (n + 1) * (WIDE + 10)) for n in range(COUNT - 1)])}


def test_what_is_written_twice_is_a_gap_that_nothing_fills() -> None:
    (sources, _), _ = laid([CUTS["whole"]], 0), 0
    extents = tuple(Extent(100 + n * (WIDE - 2), WIDE) for n in range(COUNT))
    found = together([move(sources[0], [Piece(0, stacked(CUTS["whole"][0]), extents)])])
    assert found is not None
    assert all(stop > start for stop, start in found.gaps[0][1])
    assert len(found.gaps[0][1]) == COUNT - 1


def test_what_lies_together_is_one_row_however_long() -> None:
    """Of a vector each element would be one, of which eight bytes are kept."""
    sources = [Piece(0, Box((0,), (9,)), (Extent(8, 18),))]
    targets = [Piece(file, Box((a,), (b,)), (Extent(40, 2 * (b - a)),)) for file, (a, b) in enumerate([(0, 4), (4, 9)])]
    sides = _sides(sources, targets)
    stretches = _Stretches()
    assert all(stretches.finds(side, "int16") for side in sides)
    assert [[len(laid.rows) for laid in stretches.laid(side, "int16")] for side in sides] == [[8], [8, 8]]
    found = interleaved([Move("w", Assembly("int16", (9,), tuple(sources)), "int16", tuple(targets))], 1 << 20)
    assert found is not None
    assert [copy.shape for copy in found.pattern.copies] == [(1,), (1,)]


def odd(**changes: object) -> Piece:
    (pieces, _) = laid([CUTS["whole"]], 0)
    return Piece(**{"file": 0, "box": pieces[0][0].box, "extents": pieces[0][0].extents, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "piece",
    [
        odd(outer=Box(BOX.start, (COUNT, ROWS, COLUMNS + 1))),
        odd(order=(0, 2, 1)),
        odd(file=ZEROS, extents=()),
        odd(extents=(Extent(0, WIDE - 2), Extent(500, COUNT * WIDE - WIDE + 2))),
        odd(extents=(Extent(0, COUNT * WIDE, Coding(2)),)),
        odd(extents=tuple(Extent(n * WIDE * 2, WIDE) for n in range(COUNT))),
    ],
    ids=["a part", "turned", "zeros", "a row in two", "coded", "little of what lies between"],
)
def test_sources_that_go_another_way(piece: Piece) -> None:
    (targets, _) = laid([CUTS["rows"]], 0)
    assert together([move([odd()], targets[0])]) is not None
    assert together([move([piece], targets[0])]) is None


def test_files_that_get_nothing_go_another_way() -> None:
    (sources, _), (targets, _) = laid([CUTS["whole"]], 0), laid([CUTS["rows"]], 0)
    none = Piece(2, Box((0, ROWS, 0), (COUNT, ROWS, COLUMNS)), ())
    assert together([move(sources[0], [*targets[0], none])]) is None


@pytest.mark.parametrize("dims", [MAX_DIMS - 1, MAX_DIMS])
def test_as_many_dims_as_numpy_takes(dims: int, tmp_path: Path) -> None:
    box = Box((0,) * dims, (2,) * 4 + (1,) * (dims - 4))
    whole = Assembly("int16", box.shape, (Piece(0, box, (Extent(0, 32),)),))
    moves = [Move("w", whole, "int16", (Piece(0, box, (Extent(0, 32),)),))]
    if dims == MAX_DIMS:
        assert together(moves) is None
    else:
        assert carried(tmp_path, moves, bytes(range(32)))[1] == {0: (0, bytes(range(32)))}


def test_a_part_that_needs_little_of_what_it_would_read() -> None:
    """As a share of ranks does: its rows alone are read, not those of all."""
    (sources, _), (targets, _) = laid([CUTS["whole"]], 0), laid([CUTS["rows"]], 0)
    assert together([move(sources[0], targets[0][:1])]) is None


def test_elements_that_change_go_another_way() -> None:
    (sources, _), (targets, _) = laid([CUTS["whole"]], 0), laid([CUTS["rows"]], 0)
    assert together([move(sources[0], targets[0], "int32")]) is None
    of = Assembly("int16", (COUNT, ROWS, COLUMNS), tuple(sources[0]))
    scaled = Move("w", Scaled(of, of, (1, 1, 1)), "int16", tuple(targets[0]))
    assert together([scaled]) is None


def test_rows_that_lie_together_nearly_all_go_another_way() -> None:
    """There may be millions of them, as of bytes."""
    of = tuple(Piece(0, Box((4 * n,), (4 * n + 4,)), (Extent(4 * n, 4),)) for n in range(4))
    to = Piece(0, Box((0,), (16,)), tuple(Extent(8 * n, 4) for n in range(4)))
    assert interleaved([Move("w", Assembly("uint8", (16,), of), "uint8", (to,))], 1 << 20) is None
