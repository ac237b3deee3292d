from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from catalogs import ROWS, file, full, ranks, strategy

import reshard
from making import array, read_file, same, write_file, write_strategy
from reshard.families.planner import make_plan
from reshard.families.rank_folders import catalog
from reshard.families.rank_targets import ranks_or_full
from reshard.formats.registry import format_named
from reshard.index import Extent
from reshard.layout.stages import Strategy
from reshard.layout.tensor import Sharding
from reshard.ops.options import Options
from reshard.planning.catalog import Catalog
from reshard.planning.plan import Move, Task
from reshard.planning.target import Choices, Target
from reshard.planning.tasks import tasks

COLUMNS = Sharding((2,), ((), (0,)))
TENSORS = {f"t{n}": (n % 3 + 1, 4) for n in range(50)}


def task_of(source: Catalog, target: Target) -> Task:
    (task,) = tasks(make_plan(source, target, Choices()), together=True)
    return task


def safetensors(strategy: Strategy | None = None, dtype: str = "") -> Target:
    return Target(ranks_or_full(strategy, format_named("safetensors")), dtype)


def test_neighbours_are_read_and_written_once() -> None:
    (move,) = task_of(full(dict(sorted(TENSORS.items()))), safetensors()).moves
    assert [len(p.extents) for p in (*move.step.base.pieces, *move.targets)] == [1, 1]


def test_in_another_order_they_are_written_once() -> None:
    shuffled = dict(sorted(TENSORS.items(), reverse=True))
    (move,) = task_of(full(shuffled), safetensors()).moves
    assert [len(p.extents) for p in move.targets] == [1]


def test_replicas_are_read_once_for_all_files() -> None:
    whole = dict.fromkeys(TENSORS, Sharding((2,), ((), ())))
    (move,) = task_of(full(dict(sorted(TENSORS.items()))), safetensors(strategy(whole))).moves
    assert [(len(move.step.base.pieces), p.file) for p in move.targets] == [(1, 0), (1, 1)]


def test_what_is_large_cut_or_cast_moves_by_itself() -> None:
    source = full({"large": (1 << 20,), "small": (2, 2), "tiny": (4,)})
    assert {m.name for m in task_of(source, safetensors()).moves} == {"large", "small"}
    assert len(task_of(source, safetensors(dtype="float16")).moves) == 3
    cut = strategy({"large": ROWS, "small": COLUMNS, "tiny": ROWS})
    assert len(task_of(source, safetensors(cut)).moves) == 3


def test_no_bundle_is_large() -> None:
    source = full({f"t{n:03}": (1 << 18,) for n in range(20)})
    moves = task_of(source, safetensors()).moves
    assert [m.targets[0].box.size for m in moves] == [4 << 20] * 5


def test_each_tensor_keeps_its_name_where_it_is_asked_for() -> None:
    (task,) = tasks(make_plan(full(TENSORS), safetensors(), Choices()))
    assert [m.name for m in task.moves] == list(TENSORS)


def runs_of(move: Move) -> list[tuple[int, Extent]]:
    return [(piece.file, extent) for piece in move.step.base.pieces for extent in piece.extents]


def test_rows_of_several_files_become_one_write() -> None:
    source = ranks(strategy({"a": ROWS, "b": ROWS}), {"a": (2,), "b": (2,)}, {"a": (2,), "b": (2,)})
    (move,) = task_of(source, safetensors()).moves
    assert runs_of(move) == [(0, Extent(0, 8)), (1, Extent(0, 8)), (0, Extent(8, 8)), (1, Extent(8, 8))]


def test_bytes_between_stay_apart() -> None:
    """In a .ckpt file each tensor has a header of its own."""
    target = Target(ranks_or_full(None, format_named("ckpt")))
    assert len(task_of(catalog([file(0, TENSORS)], None), target).moves) == len(TENSORS)


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
