"""A part of a target: its plan has the pieces that its files need, and makes the same files."""

from __future__ import annotations

from catalogs import ranks, strategy

from reshard.families.planner import make_plan
from reshard.families.rank_targets import ranks_or_full
from reshard.formats.registry import format_named
from reshard.layout.tensor import Sharding
from reshard.planning.bill import make_bill
from reshard.planning.shares import Share
from reshard.planning.target import Choices, Target
from reshard.planning.tasks import tasks

MANY, FEW = Sharding((12,), ((0,),)), Sharding((4,), ((0,),))
SOURCE = ranks(strategy({"w": MANY, "b": MANY}, devices=12), *[{"w": (2,), "b": (1,)}] * 12)
KIND = ranks_or_full(strategy({"w": FEW, "b": FEW}, devices=4), format_named("safetensors"))


def test_its_pieces_are_those_of_its_files() -> None:
    whole = make_plan(SOURCE, Target(KIND), Choices())
    part = make_plan(SOURCE, Target(KIND, ranks=frozenset({1, 2})), Choices())
    assert [len(t.step.base.pieces) for t in whole.tensors] == [12, 12]
    assert [len(t.step.base.pieces) for t in part.tensors] == [6, 6]
    assert len(part.to_json()) < len(whole.to_json())
    assert make_bill(part, 1, 1 << 20).read_nbytes == (12 + 6) * 4
    (all_of,), (some,) = tasks(whole, max_files=4), tasks(part, max_files=4)
    assert [f.header for f in some.files] == [f.header for f in all_of.files[1:3]]
    assert [s.path for s in some.sources] == [f"rank_{n}/m.ckpt" for n in range(3, 9)]


def test_shares_together_need_what_the_whole_does() -> None:
    parts = [make_plan(SOURCE, Target(KIND, share=Share(i, 2)), Choices()) for i in range(2)]
    pieces = [p for part in parts for t in part.tensors for p in t.step.base.pieces]
    assert len(pieces) == len(set(pieces)) == 24
