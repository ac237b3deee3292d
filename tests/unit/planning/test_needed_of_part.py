"""A part of a target: its plan has the pieces that its files need, and makes the same files."""

from __future__ import annotations

import pytest
from catalogs import full, ranks, strategy

from reshard.families.parts import Parts
from reshard.families.planner import make_plan
from reshard.families.rank_targets import ranks_or_full
from reshard.formats.registry import format_named
from reshard.index import Extent, TensorSpec
from reshard.layout.box import Box
from reshard.layout.tensor import Sharding
from reshard.planning.bill import make_bill
from reshard.planning.catalog import Catalog, Held, Shard, tensor_of_shards
from reshard.planning.plan import Piece
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


def test_no_share_makes_more_pieces_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Piece] = []
    real = Held.piece
    monkeypatch.setattr(Held, "piece", lambda *args: made.append(real(*args)) or made[-1])
    share = make_plan(SOURCE, Target(KIND, share=Share(1, 4)), Choices())
    assert made == [p for t in share.tensors for p in t.step.base.pieces]
    assert len(made) == 6


def test_a_share_of_parts_carries_no_others() -> None:
    names = [f"w{n}" for n in range(8)]
    source, kind = full(dict.fromkeys(names, (4,))), Parts(32)
    whole = make_plan(source, Target(kind), Choices())
    shares = [make_plan(source, Target(kind, share=Share(i, 4)), Choices()) for i in range(4)]
    assert [len(share.forms) for share in shares] == [1] * 4
    assert sorted(t.name for share in shares for t in share.tensors) == names
    assert {share.identity for share in shares} == {whole.identity}
    headers = [f.header for share in shares for task in tasks(share) for f in task.files]
    assert headers == [f.header for task in tasks(whole) for f in task.files]


def test_shards_wherever_they_lie_are_picked_as_well() -> None:
    loose = [((0,), (3,)), ((3,), (4,)), ((4,), (9,)), ((9,), (12,))]
    spec = TensorSpec("float32", (12,))
    shards = [Shard(Box(*box), (Held(0, (Extent(4 * box[0][0], 4 * (box[1][0] - box[0][0])),)),)) for box in loose]
    source = Catalog(full({"w": (12,)}).files, {"w": tensor_of_shards("w", spec, shards)}, {}, {})
    kind = ranks_or_full(strategy({"w": FEW}, devices=4), format_named("safetensors"))
    part = make_plan(source, Target(kind, ranks=frozenset({1})), Choices())
    assert [piece.box.start for piece in part.tensors[0].step.base.pieces] == [(3,), (4,)]
