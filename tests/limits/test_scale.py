"""What planning costs, counted and not timed: layers and ranks that repeat are understood once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reshard
from making import array, write_file, write_ranks, write_strategy
from reshard import Options
from reshard.formats import safetensors
from reshard.index import Extent
from reshard.layout.tensor import Layout, Sharding
from reshard.ops.convert import bill_of
from reshard.planning import bill
from reshard.planning.plan import Move
from reshard.planning.shares import Share
from reshard.planning.steps import Assembly, Piece

ROWS, COLUMNS = ((0,), ()), ((), (0,))


class Counted:
    """Counts the calls of a function."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.calls = 0
        self._real: Callable[..., Any] = getattr(owner, name)
        patch.setattr(owner, name, lambda *args, **named: self._counted(*args, **named))

    def _counted(self, *args: Any, **named: Any) -> Any:
        self.calls += 1
        return self._real(*args, **named)


def job(folder: Path, layers: int, ranks: int) -> tuple[Path, Options]:
    """Two stages of ``ranks`` that cut rows, to become one stage of as many that cuts columns."""
    full = {f"layers.{i}.w": array((64, 64), seed=i) for i in range(layers)}
    halves = [dict.fromkeys(list(full)[i::2], Sharding((1, ranks), ROWS)) for i in range(2)]
    new = [dict.fromkeys(full, Sharding((1, ranks), COLUMNS))]
    source = write_ranks(folder / "src", full, halves, ".safetensors")
    strategies = [str(write_strategy(folder / name, s)) for name, s in (("old", halves), ("new", new))]
    return source, Options(src_strategy=strategies[0], dst_strategy=strategies[1])


@pytest.mark.parametrize("ranks", [4, 16])
def test_the_work_of_a_bill_does_not_grow_with_layers_that_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    counts = []
    for layers in (4, 32):
        source, options = job(tmp_path / f"{layers}", layers, ranks)
        with monkeypatch.context() as patch:
            moves, headers = Counted(patch, bill, "reads"), Counted(patch, safetensors, "_read_again")
            boxes = Counted(patch, Layout, "box_of")
            bill_of(reshard.plan(source, "out", options), "out", options)
            counts.append((moves.calls, boxes.calls))
            assert headers.calls == 2 * ranks
    assert counts[0][0] == counts[1][0] == 1
    assert counts[1][1] <= counts[0][1]


def test_equal_headers_are_understood_once(tmp_path: Path) -> None:
    source, options = job(tmp_path, 6, 8)
    safetensors._read_again.cache_clear()
    reshard.plan(source, "out", options)
    kept = safetensors._read_again.cache_info()
    assert kept.hits + kept.misses == 16
    assert len({id(f.contents) for f in _files(source)}) == kept.currsize == 2


def _files(source: Path) -> list[Any]:
    from reshard.families.discover import discover
    from reshard.families.headers import index_files

    return index_files(discover(source))


def test_a_share_s_plan_is_as_large_as_its_part(tmp_path: Path) -> None:
    """Of a target of eight stages the plan of one share names the tensors of one."""
    full = {f"layers.{i}.w": array((8, 8), seed=i) for i in range(64)}
    stages = [dict.fromkeys(list(full)[8 * i : 8 * i + 8], Sharding((1, 2), ROWS)) for i in range(8)]
    source = write_file(tmp_path / "full.safetensors", full)
    options = Options(dst_strategy=str(write_strategy(tmp_path / "new", stages)))
    whole = reshard.plan(source, "out", options)
    part = reshard.plan(source, "out", Options(dst_strategy=options.dst_strategy, share=Share(3, 8)))
    assert (len(whole.tensors), len(part.tensors)) == (64, 8)
    assert 5 * len(part.to_json()) < len(whole.to_json())


def test_what_is_needed_and_read_is_counted_as_the_tasks_say(tmp_path: Path) -> None:
    """The short count of a bill is that of the moves themselves."""
    from reshard.planning.tasks import tasks

    source, options = job(tmp_path, 5, 4)
    plan = reshard.plan(source, "out", options)
    read = sum(sum(bill.reads(move, 8 << 20)) for task in tasks(plan) for move in task.moves)
    assert bill_of(plan, "out", options).read_nbytes == read
    narrow = Move("w", Assembly("float32", (4, 4), (Piece(0, _box((0, 0), (4, 4)), (Extent(0, 64),)),)), "float32",
                  (Piece(0, _box((0, 0), (4, 1)), (Extent(0, 16),)),))  # fmt: skip
    assert list(bill.reads(narrow, 8 << 20)) == [64]


def _box(start: tuple[int, ...], stop: tuple[int, ...]) -> Any:
    from reshard.layout.box import Box

    return Box(start, stop)


def test_what_a_part_of_the_ranks_needs_is_no_more_than_it_reads(tmp_path: Path) -> None:
    source, options = job(tmp_path, 4, 4)
    for ranks in ({0}, {0, 1}, {0, 1, 2, 3}):
        made = reshard.plan(source, "out", Options(**{**_fields(options), "ranks": frozenset(ranks)}))
        told = bill_of(made, "out", options)
        assert told.needed_nbytes == len(ranks) * 4 * 64 * 16 * 4 <= told.read_nbytes


def _fields(options: Options) -> dict[str, Any]:
    return {"src_strategy": options.src_strategy, "dst_strategy": options.dst_strategy}


def test_replicas_share_a_task_where_a_group_is_cut(tmp_path: Path) -> None:
    """Rank r and rank r + 4 hold the same; in tasks of four files each shard is read once all the same."""
    from reshard.planning.tasks import groups

    full = {"w": array((8, 8)), "norm": array((4,), seed=1)}
    cuts = {"w": Sharding((2, 4), ROWS), "norm": Sharding((2, 4), ((),))}
    source = write_file(tmp_path / "full.safetensors", full)
    plan = reshard.plan(source, "out", Options(dst_strategy=str(write_strategy(tmp_path / "new", [cuts]))))
    made = groups(plan, max_files=4)
    assert [sorted(same[0].rank for same in group) for group in made] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    counting = bill.ReadCount(plan, 8 << 20)
    assert sum(counting.of([same[0] for same in group]) for group in made) == full["w"].nbytes + 2 * full["norm"].nbytes
