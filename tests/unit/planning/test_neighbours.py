from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from catalogs import ROWS, file, full, ranks, strategy
from msgspec.structs import replace

import reshard
from making import array, differing, read_file, same, shard_of, write_file, write_strategy
from reshard.families.planner import make_plan
from reshard.families.rank_folders import catalog
from reshard.families.rank_targets import ranks_or_full
from reshard.formats.registry import format_named
from reshard.index import ZEROS, Extent, TensorSpec
from reshard.layout.box import Box
from reshard.layout.stages import Strategy, layout_of_full
from reshard.layout.tensor import Sharding
from reshard.ops.options import Options
from reshard.planning.catalog import Catalog
from reshard.planning.plan import FileForm, Plan, PlannedFile, PlannedTensor, Slot, SourceFile, Task
from reshard.planning.steps import Assembly, Piece, Scaled
from reshard.planning.target import Choices, Target
from reshard.planning.tasks import Together, tasks

COLUMNS = Sharding((2,), ((), (0,)))
TENSORS = {f"t{n}": (n % 3 + 1, 4) for n in range(50)}


def task_of(source: Catalog, target: Target, together: Together = "in any order") -> Task:
    (task,) = tasks(make_plan(source, target, Choices()), together=together)
    return task


def safetensors(strategy: Strategy | None = None, dtype: str = "") -> Target:
    return Target(ranks_or_full(strategy, format_named("safetensors")), dtype)


KINDS = len({*TENSORS.values()})


def test_those_that_lie_alike_are_read_and_written_once() -> None:
    (move,) = task_of(full({f"t{n:02}": (2, 4) for n in range(50)}), safetensors()).moves
    assert [len(p.extents) for p in (*move.step.base.pieces, *move.targets)] == [1, 1]
    assert move.targets[0].box.shape == (50, 8)


def test_those_of_other_shapes_and_as_many_elements_are_of_their_kind_where_no_row_is_parted() -> None:
    source = full({f"t{n:02}": ((4, 8), (8, 4), (32,))[n % 3] for n in range(30)})
    cut = {name: Sharding((2,), ((0,), *((),) * (len(t.spec.shape) - 1))) for name, t in source.tensors.items()}
    (move,) = task_of(source, safetensors(Strategy((cut,), 2))).moves
    assert [len(p.extents) for p in move.targets] == [1, 1]
    columns = {n: COLUMNS if len(t.spec.shape) == 2 else Sharding((2,), ((0,),)) for n, t in source.tensors.items()}
    assert len(task_of(source, safetensors(Strategy((columns,), 2))).moves) == 3


def test_those_of_several_kinds_are_moves_of_their_kinds() -> None:
    moves = task_of(full(TENSORS), safetensors()).moves
    assert len(moves) == KINDS
    assert sum(move.targets[0].box.size for move in moves) == sum(rows * n for rows, n in TENSORS.values())


def test_files_that_are_written_front_to_back_get_nothing_between() -> None:
    names = [f"t{n:02}" for n in range(50)]
    cut = safetensors(strategy(dict.fromkeys(names, COLUMNS)))
    source = full({name: ((2, 4), (4, 4))[n // 25] for n, name in enumerate(names)})
    first, second = task_of(source, cut, "front to back").moves
    assert [len(p.extents) for p in (*first.targets, *second.targets)] == [1, 1, 1, 1]
    other = full({name: ((2, 4), (4, 4))[n % 2] for n, name in enumerate(names)})
    assert len(task_of(other, cut, "front to back").moves) == 50


def test_whole_ones_of_several_kinds_that_follow_one_another_are_one_move_of_bytes() -> None:
    source = full({f"t{n:02}": (n % 3 + 1, 4) for n in range(50)})
    for together in ("in any order", "front to back"):
        (move,) = task_of(source, safetensors(), together).moves
        assert (move.dtype, [len(p.extents) for p in (*move.step.base.pieces, *move.targets)]) == ("uint8", [1, 1])
        assert move.targets[0].box.shape == (sum(t.spec.nbytes for t in source.tensors.values()),)


def test_replicas_of_them_are_written_by_the_same_move() -> None:
    names = {f"t{n:02}": (n % 3 + 1, 4) for n in range(50)}
    whole = strategy(dict.fromkeys(names, Sharding((2,), ((), ()))))
    (move,) = task_of(full(names), safetensors(whole)).moves
    assert [(p.file, len(p.extents)) for p in move.targets] == [(0, 1), (1, 1)]


def test_what_lies_between_them_parts_them() -> None:
    a, b = [planned(name, lies(offset, n, (n,)), (n,), (n,)) for name, offset, n in (("a", 0, 8), ("b", 12, 4))]
    for together in ("in any order", "front to back"):
        assert list(one_task([a, b], ["ab"], 1, together)) == ["a", "b"]
        assert list(one_task([planned("a", lies(4)), b], ["ab"], 1, together)) == ["a"]
        assert list(one_task([planned("a", lies(4)), b], ["ba"], 1, together)) == ["b", "a"]


def test_files_written_front_to_back_get_them_in_order_where_the_source_has_a_gap() -> None:
    made = [
        planned(name, lies(offset, n, (n,)), (n,), (n,))
        for name, offset, n in zip("abc", (0, 9, 17), (8, 8, 4), strict=True)
    ]
    assert list(one_task(made, ["abc"], 1, "front to back")) == ["a", "c"]
    assert list(one_task(made, ["cba"], 1, "front to back")) == ["c", "b"]


@pytest.mark.parametrize("together", ["in any order", "front to back"])
def test_zeros_that_no_file_holds_follow_nothing(together: Together) -> None:
    made = [planned(name, Piece(ZEROS, Box((0,), (n,)), ()), (n,), (n,)) for name, n in (("a", 8), ("b", 4))]
    assert list(one_task(made, ["ab"], 1, together)) == ["a", "b"]


def test_those_of_a_new_kind_begin_anew_so_that_layers_go_alike() -> None:
    shapes = {f"t{n:04}": (64, 64) if n % 1000 else (32, 64) for n in range(3000)}
    moves = task_of(full(shapes), safetensors(strategy(dict.fromkeys(shapes, COLUMNS)))).moves
    assert [m.targets[0].box.shape[0] for m in moves] == [32, 511, 488] * 3


def test_in_another_order_they_are_written_once() -> None:
    (move,) = task_of(full({f"t{n:02}": (2,) for n in range(50, 0, -1)}), safetensors()).moves
    assert [len(p.extents) for p in move.targets] == [1]


def test_replicas_are_read_once_for_all_files() -> None:
    whole = dict.fromkeys(TENSORS, Sharding((2,), ((), ())))
    moves = task_of(full(TENSORS), safetensors(strategy(whole))).moves
    assert [[p.file for p in move.targets] for move in moves] == [[0, 1]] * KINDS


def test_the_parts_of_all_files_are_read_once() -> None:
    names = [f"t{n:02}" for n in range(50)]
    (move,) = task_of(full(dict.fromkeys(names, (4, 4))), safetensors(strategy(dict.fromkeys(names, COLUMNS)))).moves
    assert [len(p.extents) for p in (*move.step.base.pieces, *move.targets)] == [1, 1, 1]
    assert [p.box for p in move.targets] == [Box((0, 0, 0), (50, 4, 2)), Box((0, 0, 2), (50, 4, 4))]


def test_what_is_large_moves_by_itself() -> None:
    source = full({"large": (1 << 20,), "small": (2, 2), "tiny": (2, 2)})
    assert {m.name for m in task_of(source, safetensors()).moves} == {"large", "small"}


def test_what_is_computed_moves_by_itself() -> None:
    """Beside what is cast as it is."""
    piece = lies(0)
    of = Assembly("uint8", (8,), (piece,))
    made = [PlannedTensor(name, TensorSpec("uint8", (8,)), Scaled(of, of, (1,))) for name in "ab"]
    assert len(one_task(made, ["ab"], 1, "in any order")) == 2


def test_what_is_cast_alike_moves_together_and_keeps_names_and_shapes() -> None:
    source = full({"a": (4, 2), "b": (2, 4), "c": (8,), "d": (2, 3)})
    moves = task_of(source, safetensors(dtype="float16")).moves
    assert [(m.step.base.dtype, m.dtype) for m in moves] == [("float32", "float16")] * 2
    assert [(each.name, each.shape) for each in moves[0].stacked] == [("a", (4, 2)), ("b", (2, 4)), ("c", (8,))]
    assert [len(p.extents) for p in (*moves[0].step.base.pieces, *moves[0].targets)] == [1, 1]
    assert not any(move.stacked for move in task_of(source, safetensors()).moves)


def test_what_becomes_another_dtype_is_of_another_kind() -> None:
    tensors = {
        name: TensorSpec(dtype, (4,)) for name, dtype in zip("abc", ("float16", "float32", "float32"), strict=True)
    }
    of = Assembly("float32", (4,), (Piece(0, Box((0,), (4,)), (Extent(0, 16),)),))
    found = one_task([PlannedTensor(name, spec, of) for name, spec in tensors.items()], ["abc"], 1, "in any order")
    assert [len(pieces[0].extents) for pieces in found.values()] == [1, 1]
    assert found.keys() == {"a", "b"}


def test_what_is_cast_shares_no_bytes_with_its_source() -> None:
    """And so is small like any other: of what is copied files may share more than 64 KiB."""
    source = full({f"t{n}": (1 << 15,) for n in range(4)})
    plans = [make_plan(source, safetensors(dtype=dtype), Choices()) for dtype in ("", "float16")]
    copied, cast = (list(tasks(replace(plan, shared_block_nbytes=4096), together="in any order")) for plan in plans)
    assert [len(task.moves) for task in (*copied, *cast)] == [4, 1]


@pytest.mark.parametrize(("dtype", "elements"), [("", 2 << 20), ("float16", 2 << 20), ("float64", 1 << 20)])
def test_no_move_is_large(dtype: str, elements: int) -> None:
    """Neither before a cast nor after it."""
    source = full({f"t{n:03}": (1 << 13,) for n in range(640)})
    moves = task_of(source, safetensors(dtype=dtype)).moves
    assert [m.targets[0].box.size for m in moves] == [elements] * (5 * 2**20 // elements) + [1 << 20] * (
        elements > 1 << 20
    )


def test_each_tensor_keeps_its_name_where_it_is_asked_for() -> None:
    (task,) = tasks(make_plan(full(TENSORS), safetensors(), Choices()))
    assert [m.name for m in task.moves] == list(TENSORS)


def test_rows_of_several_files_become_one_write() -> None:
    source = ranks(strategy({"a": ROWS, "b": ROWS}), {"a": (2,), "b": (2,)}, {"a": (2,), "b": (2,)})
    (move,) = task_of(source, safetensors()).moves
    assert [(p.file, p.extents) for p in move.step.base.pieces] == [(0, (Extent(0, 16),)), (1, (Extent(0, 16),))]


def planned(name: str, piece: Piece, shape: tuple[int, ...] = (8,), view: tuple[int, ...] = (8,)) -> PlannedTensor:
    return PlannedTensor(name, TensorSpec("uint8", shape), Assembly("uint8", view, (piece,)))


def one_task(
    tensors: Sequence[PlannedTensor], forms: Sequence[str], ranks: int, together: Together
) -> dict[str, tuple[Piece, ...]]:
    """The targets of each move: files of each form hold the tensors of these names, one after the other, by rows."""
    numbers = {tensor.name: number for number, tensor in enumerate(tensors)}
    cut = [Sharding((ranks,), ((0,), *((),) * (len(tensor.spec.shape) - 1))) for tensor in tensors]
    layouts = tuple(layout_of_full(each, tensor.spec.shape) for each, tensor in zip(cut, tensors, strict=True))
    kinds = tuple(dict.fromkeys(layouts))
    made, files = [], []
    for form, names in enumerate(forms):
        slots, at = [], 0
        for number in map(numbers.__getitem__, names):
            nbytes = tensors[number].spec.nbytes // ranks
            slots.append(Slot(number, kinds.index(layouts[number]), (Extent(at, nbytes),)))
            at += nbytes
        made.append(FileForm(at, (), tuple(slots)))
        files += [PlannedFile(len(files) + rank, f"{form}.{rank}", rank, rank, form, 0) for rank in range(ranks)]
    plan = Plan((SourceFile("in", 1 << 10, 0),), kinds, tuple(tensors), tuple(made), tuple(files))
    (task,) = tasks(plan, together=together)
    return {move.name: move.targets for move in task.moves}


def lies(offset: int, nbytes: int = 8, shape: tuple[int, ...] = (8,)) -> Piece:
    return Piece(0, Box.whole(shape), (Extent(offset, nbytes),))


@pytest.mark.parametrize("together", ["in any order", "front to back"])
@pytest.mark.parametrize("names", ["ab", "ba"])
def test_one_that_is_seen_in_a_view_goes_with_one_that_is_not(names: str, together: Together) -> None:
    tensors = [planned("a", lies(0)), planned("b", lies(8, shape=(2, 2, 2)), (4, 2), (2, 2, 2))]
    (targets,) = one_task(tensors, [names], 2, together).values()
    assert [(p.file, p.box, p.extents) for p in targets] == [
        (0, Box((0, 0), (2, 4)), (Extent(0, 8),)),
        (1, Box((0, 4), (2, 8)), (Extent(0, 8),)),
    ]


def test_those_in_other_files_are_of_another_kind() -> None:
    tensors = [planned(name, lies(8 * n)) for n, name in enumerate("abc")]
    found = one_task(tensors, ["ab", "ac", "bc"], 1, "in any order")
    assert {name: [piece.file for piece in pieces] for name, pieces in found.items()} == {
        "a": [0, 1],
        "b": [0, 2],
        "c": [1, 2],
    }


def test_a_part_of_what_is_stored_is_of_another_kind() -> None:
    part = Piece(0, Box((0,), (8,)), (Extent(8, 16),), Box((0,), (16,)))
    assert len(one_task([planned("a", lies(0)), planned("b", part)], ["ab"], 1, "in any order")) == 2


def test_front_to_back_they_are_next_to_each_other_in_every_file() -> None:
    tensors = [planned("a", lies(0)), planned("b", lies(8)), planned("c", lies(16, 16, (16,)), (16,), (16,))]
    assert len(one_task(tensors, ["ab", "ab"], 1, "front to back")) == 1
    assert len(one_task(tensors, ["ab", "acb"], 1, "front to back")) == 3
    assert len(one_task(tensors, ["ab", "acb"], 1, "in any order")) == 2


def test_each_source_file_has_them_where_it_has_them() -> None:
    source = ranks(strategy({"a": ROWS, "b": ROWS}), {"a": (2,), "b": (2,)}, {"b": (2,), "a": (2,)})
    (move,) = task_of(source, safetensors()).moves
    assert [p.extents for p in move.step.base.pieces] == [(Extent(0, 16),), (Extent(8, 8), Extent(0, 8))]


def test_bytes_between_stay_apart() -> None:
    """In a .ckpt file each tensor has a header of its own."""
    target = Target(ranks_or_full(None, format_named("ckpt")))
    moves = task_of(catalog([file(0, TENSORS)], None), target).moves
    assert sum(len(move.targets[0].extents) for move in moves) == len(TENSORS)


@pytest.mark.parametrize("dtype", ["", "float16"])
@pytest.mark.parametrize("axes", [((0,), ()), ((0,), (1,))], ids=["rows", "blocks"])
def test_of_rows_that_others_hold_none_are_read(tmp_path: Path, axes: tuple[tuple[int, ...], ...], dtype: str) -> None:
    """Several that moved together were read whole, whatever part of them a rank holds."""
    tensors = {f"t{n}": np.full((8, 4 + n % 3 // 2 * 4), n, np.float32) for n in range(30)}
    cut = dict.fromkeys(tensors, Sharding((2, 4), axes))
    options = Options(dst_strategy=str(write_strategy(tmp_path / "cut", [cut])), dtype=dtype, fsync=False)
    src = write_file(tmp_path / "full.safetensors", tensors)
    done = reshard.convert(src, tmp_path / "out", replace(options, ranks=frozenset({1})))
    assert done.read_nbytes == done.bill.read_nbytes == sum(a.nbytes for a in tensors.values()) // 4
    made = read_file(tmp_path / "out/rank_1/checkpoint_1.safetensors")
    wanted = {n: shard_of(a, cut[n], 1).astype(dtype or a.dtype) for n, a in tensors.items()}
    assert not differing(made, wanted)


@pytest.mark.parametrize("source_form", ["ckpt", "safetensors"])
@pytest.mark.parametrize("target_form", ["ckpt", "safetensors"])
def test_values_stay(tmp_path: Path, source_form: str, target_form: str) -> None:
    """There and back by two cuts, with a tensor of every kind among small ones."""
    tensors = {f"b{n}": array((n % 4 * 2, 4), seed=n) for n in range(60)}
    tensors |= {f"h{n}": array((2, 2), "float16", seed=n) for n in range(30)}
    tensors |= {"scalar": array((), seed=99), "long": array((1 << 19,), seed=98)}
    cut = {n: Sharding((4,), ((0,), ())) for n, a in tensors.items() if a.ndim == 2 and a.shape[0] % 4 == 0}
    cut |= {n: Sharding((4,), ((), (0,))) for n, a in tensors.items() if n not in cut and a.shape[1:] == (4,)}
    cut |= {n: Sharding((4,), ((),) * a.ndim) for n, a in tensors.items() if n not in cut}
    src = write_file(tmp_path / f"full.{source_form}", tensors)
    new = str(write_strategy(tmp_path / "new", [cut]))
    reshard.convert(src, tmp_path / "cut", Options(dst_strategy=new, format=target_form, fsync=False))
    back = tmp_path / f"back.{source_form}"
    reshard.convert(tmp_path / "cut", back, Options(src_strategy=new, fsync=False, verify=True))
    found = read_file(back)
    assert found.keys() == tensors.keys()
    assert all(same(found[name], np.asarray(value)) for name, value in tensors.items())
