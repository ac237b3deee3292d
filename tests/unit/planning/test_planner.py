"""Plans of catalogs that lie on no disk: what is covered, what stays behind, how files are called."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from catalogs import ROWS, WHOLE, file, full, ranks, strategy
from msgspec.structs import replace

from reshard.errors import PlanError, RunError, UsageError
from reshard.families.parts import Parts
from reshard.families.planner import make_plan
from reshard.families.rank_folders import catalog
from reshard.families.rank_targets import FullTarget, RankTarget, ranks_or_full
from reshard.formats.base import Format
from reshard.formats.mindspore_ckpt import MindSporeCkpt
from reshard.formats.safetensors import Safetensors
from reshard.layout.stages import Strategy
from reshard.layout.tensor import Sharding
from reshard.planning.bill import make_bill
from reshard.planning.catalog import Catalog
from reshard.planning.decide import Missing
from reshard.planning.plan import FileResult, Plan, Run, check_runs
from reshard.planning.target import Choices, Target
from reshard.planning.tasks import groups, tasks

CKPT = MindSporeCkpt()


def to(
    strategy: Strategy | None = None, format: Format = CKPT, dtype: str = "", ranks: frozenset[int] | None = None
) -> Target:
    return Target(ranks_or_full(strategy, format), dtype, ranks)


def planned(source: Catalog, target: Strategy | None = None, choices: Choices | None = None) -> Plan:
    return make_plan(source, to(target), choices or Choices())


def two_stages() -> Plan:
    source = full({"a": (4,), "b": (8,), "tied": (2,)})
    return planned(source, strategy({"a": ROWS, "tied": WHOLE}, {"b": ROWS, "tied": ROWS}))


# --- coverage


@pytest.mark.parametrize("missing", ["error", "drop"])
def test_a_slice_that_no_file_holds_is_never_excused(missing: Missing) -> None:
    source = catalog([file(0, {"w": (2, 3)})], strategy({"w": Sharding((2,), ((0,), ()))}))
    with pytest.raises(PlanError, match=r"w: 50% missing, from \[2, 0\] to \[4, 3\] of \[4, 3\]; rank 1"):
        planned(source, None, Choices(missing=missing))


def test_only_what_the_asked_ranks_need_must_be_there() -> None:
    source = catalog([file(0, {"w": (2,)})], strategy({"w": ROWS}))
    make_plan(source, to(strategy({"w": ROWS}), ranks=frozenset({0})), Choices())
    with pytest.raises(PlanError, match="rank 1 should hold it"):
        make_plan(source, to(strategy({"w": ROWS}), ranks=frozenset({1})), Choices())


def test_missing_slices_of_all_tensors_are_told() -> None:
    source = catalog([file(0, {"v": (2,), "w": (2,)})], strategy({"v": ROWS, "w": ROWS}))
    with pytest.raises(PlanError) as caught:
        planned(source)
    assert [line.split(":")[0] for line in caught.value.message.splitlines()[1:]] == ["v", "w"]


def test_replicas_share_the_reading() -> None:
    """Large and small tensors alternate, as weights and biases do."""
    shapes = {f"w{i}": (2 if i % 2 else 100,) for i in range(8)}
    source = ranks(strategy(dict.fromkeys(shapes, WHOLE)), *[shapes] * 2)
    read = Counter[int]()
    for tensor in planned(source).tensors:
        read[tensor.step.base.pieces[0].file] += tensor.spec.nbytes
    assert read[0] == read[1]


# --- values that differ from rank to rank


def test_a_varied_value_comes_from_the_rank_of_the_same_place() -> None:
    cut = Sharding((4,), ((0,),))
    source = ranks(strategy({"w": ROWS}), *[{"w": (4,), "step": ()}] * 2)
    plan = planned(source, strategy({"w": cut}, devices=4), Choices(agreed={"step": False}))
    held = [next(plan.tensors[s.tensor] for s in plan.forms[f.form].slots if s.layout) for f in plan.files]
    assert [t.step.base.pieces[0].file for t in held] == [0, 1, 0, 1]
    assert len(plan.warnings) == 1


# --- files


def test_names_of_files() -> None:
    plan = two_stages()
    assert [f.path for f in plan.files] == [f"rank_{r}/checkpoint_{r}.ckpt" for r in range(4)]
    assert [(f.rank, f.local_rank) for f in plan.files] == [(0, 0), (1, 1), (2, 0), (3, 1)]


def test_ranks_of_equal_shards_share_a_form() -> None:
    plan = two_stages()
    assert [f.form for f in plan.files] == [0, 0, 1, 1]


@pytest.mark.parametrize("prefix", ["a/b", "/", "\0"])
def test_a_prefix_that_would_leave_its_folder(prefix: str) -> None:
    with pytest.raises(UsageError, match="prefix"):
        FullTarget(CKPT, prefix=prefix)


def test_ranks_that_the_target_does_not_have() -> None:
    with pytest.raises(UsageError, match="rank 4 is not among the target's 4 ranks"):
        to(strategy({"a": ROWS}, {"b": ROWS}), ranks=frozenset({1, 4}))


def test_a_cast_leaves_states_and_integers_alone() -> None:
    source = catalog([file(0, {"w": (2,), "adam_m.w": (2,)}), file(0, {"i": (2,)}, dtype="int32")], None)
    plan = make_plan(source, to(dtype="bfloat16"), Choices())
    assert {t.name: t.spec.dtype for t in plan.tensors} == {"w": "bfloat16", "adam_m.w": "float32", "i": "int32"}


def test_strings_go_to_every_rank_and_are_warned_of_where_ranks_differ() -> None:
    files = [file(r, {"w": (2,)}, {"same": "x", "own": str(r)}) for r in range(2)]
    plan = planned(catalog(files, strategy({"w": ROWS})), strategy({"w": WHOLE}))
    headers = [b"".join(p for _, p in plan.forms[f.form].header) for f in plan.files]
    assert [(b"own" in h, "1".encode("utf-32-le") in h) for h in headers] == [(True, False), (True, True)]
    assert len(plan.warnings) == 1
    assert "own" in plan.warnings[0]


@pytest.mark.parametrize(
    ("form", "told", "parts", "note"),
    [
        ("ckpt", {}, None, "ms"),
        ("ckpt", {}, Parts(1 << 30), "pt"),
        ("ckpt", {}, Parts(1 << 30, "mindspore"), "ms"),
        ("safetensors", {}, None, "pt"),
        ("safetensors", {}, Parts(1 << 30, "mindspore"), "pt"),
        ("safetensors", {"format": "ms"}, Parts(1 << 30), "ms"),
        ("safetensors", {"format": "flax"}, None, "flax"),
    ],
)
def test_a_new_safetensors_says_whom_it_is_for(form: str, told: dict[str, str], parts: Parts | None, note: str) -> None:
    """Loaders for PyTorch refuse a file that says it is for MindSpore, which itself does not look."""
    (one,) = full({"w": (2,)}).files
    source = catalog([replace(one, format=form, contents=replace(one.contents, notes=told))], None)
    plan = make_plan(source, Target(parts or FullTarget(Safetensors())), Choices())
    assert f'"format":"{note}"'.encode() in plan.forms[0].header[0][1]


@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_ranks_keep_the_note_of_their_source(form: str) -> None:
    (one,) = full({"w": (4,)}).files
    source = catalog([replace(one, format=form)], None)
    plan = make_plan(source, to(strategy({"w": ROWS}), Safetensors()), Choices())
    assert f'"format":"{"ms" if form == "ckpt" else "pt"}"'.encode() in plan.forms[0].header[0][1]


# --- the plan is a value


def test_plan_there_and_back_through_json() -> None:
    plan = two_stages()
    assert msgspec.json.decode(plan.to_json(), type=Plan) == plan


def test_the_same_call_gives_the_same_plan() -> None:
    assert two_stages() == two_stages()


def test_identity_leaves_out_which_ranks_are_made() -> None:
    source, target = full({"w": (4,)}), strategy({"w": ROWS})
    one = make_plan(source, to(target, ranks=frozenset({0})), Choices())
    both = make_plan(source, to(target), Choices())
    assert one.identity == both.identity
    assert len(one.files) == 1


@pytest.mark.parametrize(
    "target",
    [
        to(strategy({"w": ROWS}), Safetensors()),
        Target(RankTarget(strategy({"w": ROWS}), CKPT, "x")),
        to(strategy({"w": WHOLE})),
        to(strategy({"w": ROWS}), dtype="float16"),
        to(strategy({"w": ROWS}), MindSporeCkpt(crc=True)),
        to(),
    ],
)
def test_identity_tells_other_targets_apart(target: Target) -> None:
    source = full({"w": (4,)})
    assert make_plan(source, target, Choices()).identity != planned(source, strategy({"w": ROWS})).identity


# --- read groups


def test_every_file_is_in_one_group_and_files_of_the_same_tensors_together() -> None:
    plan = two_stages()
    assert [[f.rank for (f,) in g] for g in groups(plan)] == [[0, 1], [2, 3]]
    assert [f.path for t in tasks(plan) for f in t.files] == [f.path for f in plan.files]


def test_a_group_has_no_more_files_than_may_be_open() -> None:
    cut = Sharding((10,), ((0,),))
    plan = planned(full({"w": (10,)}), strategy({"w": cut}, devices=10))
    assert [len(g) for g in groups(plan, max_files=4)] == [4, 4, 2]


def test_a_task_reads_only_the_files_that_it_needs() -> None:
    cut = Sharding((4,), ((0,),))
    source = ranks(strategy({"w": cut}, devices=4), *[{"w": (2,)}] * 4)
    plan = make_plan(source, to(strategy({"w": ROWS}), ranks=frozenset({1})), Choices())
    (task,) = tasks(plan)
    assert [s.path for s in task.sources] == ["rank_2/m.ckpt", "rank_3/m.ckpt"]
    assert [p.file for p in task.moves[0].step.base.pieces] == [0, 1]


def test_bill() -> None:
    bill = make_bill(two_stages(), 2, 1 << 20)
    assert (bill.target_files, bill.tensors, bill.tasks) == (4, 3, 2)
    assert bill.needed_nbytes == (4 + 8 + 2) * 4
    assert bill.read_nbytes == (4 + 8 + 2 + 2) * 4  # the tied one for each stage
    assert bill.written_nbytes == two_stages().nbytes
    assert bill.smallest_file_nbytes <= bill.largest_file_nbytes


def test_replicas_are_read_once_where_blocks_could_be_shared_and_none_is_alike() -> None:
    plan = planned(full({"a": (6,)}), strategy({"a": WHOLE}))
    assert make_bill(replace(plan, shared_block_nbytes=4096), 1, 1 << 20, checksum=False).read_nbytes == 24


# --- the last guard


def result(*runs: tuple[int, int]) -> FileResult:
    return FileResult("f", 10, tuple(Run(offset, nbytes, "") for offset, nbytes in runs))


def test_every_byte_once() -> None:
    check_runs(result((4, 6), (0, 4)))
    check_runs(result((4, 6), (4, 0), (0, 4)))


@pytest.mark.parametrize(
    "runs", [[(0, 4)], [(0, 4), (5, 5)], [(0, 5), (4, 6)], [(1, 9)], [(0, 10), (0, 10)], [(0, 4), (5, 6)], []]
)
def test_a_byte_never_or_twice(runs: list[tuple[int, int]]) -> None:
    with pytest.raises(RunError):
        check_runs(result(*runs))
