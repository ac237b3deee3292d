"""What we wrote is read back with no strategy: its manifest says how it is cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from making import array, differing, read_file, same, write_file, write_ranks, write_strategy
from reshard.errors import CheckpointError, PlanError, UsageError
from reshard.families import ours
from reshard.families.ours import _SamePlaces, _ToldTensors
from reshard.families.source import Source
from reshard.index import Extent, TensorSpec
from reshard.layout.box import Box
from reshard.layout.tensor import Sharding
from reshard.ops.diff import diff, verify_content
from reshard.ops.explain import explain
from reshard.ops.fingerprint import fingerprint
from reshard.ops.inspect import inspect
from reshard.ops.options import Options
from reshard.planning.catalog import Held
from reshard.planning.shares import Share
from reshard.target.manifest import read_manifest
from reshard.target.manifest_file import ToldCut

ROWS, WHOLE = Sharding((2, 2), ((1,), ())), Sharding((2, 2), ((), ()))
COLUMNS = Sharding((2, 2), ((), (0,)))
FULL = {
    "layers.0.w": array((8, 6), seed=1),
    "layers.1.w": array((6, 8), "float16", seed=2),
    "tied": array((4, 4), seed=3),
    "scale": array((), seed=4),
}
STAGES = [{"layers.0.w": ROWS, "tied": ROWS}, {"layers.1.w": COLUMNS, "tied": COLUMNS}]


class Made:
    """Four ranks in two stages, written by us from one full checkpoint; a tied tensor is cut differently in them."""

    def __init__(self, folder: Path, form: str = "safetensors") -> None:
        self.full = write_file(folder / "full.safetensors", FULL)
        self.strategy = str(write_strategy(folder / "s", STAGES))
        self.path = folder / "ours"
        reshard.convert(self.full, self.path, Options(dst_strategy=self.strategy, format=form))

    @property
    def manifest(self) -> Path:
        return self.path / ".reshard" / "manifest.json"

    def change(self, change: Callable[[Any], None]) -> None:
        content = json.loads(self.manifest.read_bytes())
        change(content)
        self.manifest.write_text(json.dumps(content))


def form_of(name: str, manifest: Any) -> Any:
    """What the first file's manifest says of a tensor and of those like it."""
    return manifest["files"][0]["forms"][place_of(name, manifest)[0]]


def place_of(name: str, manifest: Any) -> Any:
    """Number of its form, and where it lies in the first file."""
    return next(table["tensors"][name] for table in manifest["tables"] if 0 in table["files"])


def swap_ranks(manifest: Any) -> None:
    for file, rank in zip(manifest["files"], (1, 0), strict=False):
        file["rank"] = rank


@pytest.fixture(params=["safetensors", "ckpt"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return Made(tmp_path, request.param)


def test_what_ranks_hold_at_the_same_places_is_told_once(tmp_path: Path) -> None:
    made = Made(tmp_path)
    manifest = json.loads(made.manifest.read_bytes())
    assert [table["files"] for table in manifest["tables"]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert not any("tensors" in file for file in manifest["files"])


def test_inspect_reads_the_manifest_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, read = Made(tmp_path), []
    monkeypatch.setattr(ours, "read_manifest", lambda place: read.append(place) or read_manifest(place))
    inspect(made.path)
    assert len(read) == 1


def test_it_becomes_one_file_again(made: Made, tmp_path: Path) -> None:
    reshard.convert(made.path, tmp_path / "again.safetensors")
    again = read_file(tmp_path / "again.safetensors")
    assert differing(again, FULL) == []


def test_it_is_recut(made: Made, tmp_path: Path) -> None:
    other = str(write_strategy(tmp_path / "t", [{name: Sharding((3, 2), ((0,), ())) for name in list(FULL)[:3]}]))
    reshard.convert(made.path, tmp_path / "out", Options(dst_strategy=other))
    reshard.convert(made.full, tmp_path / "wanted", Options(dst_strategy=other, format=_format(made)))
    assert diff(Source(str(tmp_path / "out")), Source(str(tmp_path / "wanted"))).equal


def _format(made: Made) -> str:
    return next(made.path.glob("rank_0/*")).suffix[1:]


def test_every_command_reads_it(made: Made, tmp_path: Path) -> None:
    source, path = str(made.full), str(made.path)
    assert diff(Source(source), Source(path)).equal
    verify_content(Source(source), Source(path))
    assert fingerprint(path).number == fingerprint(source).number
    found = inspect(path)
    assert {row.name: row.shape for row in found.tensors} == {name: a.shape for name, a in FULL.items()}
    assert (found.stages, found.ranks, not found.warnings) == (2, 8, True)
    told = explain("layers.0.w", path, Options())
    assert [len(part.held) for part in told.parts] == [2, 2]
    opened = reshard.open(path)
    assert all(same(np.asarray(opened[name].read()), FULL[name]) for name in FULL)


def test_a_value_of_each_rank_s_own_varies(tmp_path: Path) -> None:
    ranks = tmp_path / "ranks"
    for rank in range(2):
        write_file(
            ranks / f"rank_{rank}" / "m.ckpt",
            {"w": FULL["tied"][2 * rank : 2 * rank + 2], "seed": array((1,), seed=rank)},
        )
    strategy = str(write_strategy(tmp_path / "s", [{"w": Sharding((2,), ((0,), ()))}]))
    reshard.convert(ranks, tmp_path / "ours", Options(src_strategy=strategy, dst_strategy=strategy))
    reshard.convert(tmp_path / "ours", tmp_path / "again", Options(dst_strategy=strategy))
    for rank in range(2):
        again = read_file(tmp_path / "again" / f"rank_{rank}" / f"checkpoint_{rank}.ckpt")
        assert same(again["seed"], array((1,), seed=rank))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda made: made.change(lambda m: m.update(complete=False)), "a part of the target only"),
        (lambda made: made.change(lambda m: m.update(schema=99)), "schema 99"),
        (lambda made: made.manifest.write_bytes(b"{"), "not a manifest"),
        (lambda made: made.change(lambda m: (m["files"].pop(), m["tables"][1]["files"].pop())), "is none of its files"),
        (lambda made: made.change(lambda m: m["files"][0].update(path="rank_0/o.safetensors")), "none of its files"),
        (lambda made: made.change(lambda m: m.update(stages=3)), "8 ranks in 3 stages"),
        (lambda made: made.change(lambda m: m.update(world=1 << 40)), "names files of 8"),
        (lambda made: made.change(lambda m: form_of("layers.0.w", m).update(dtype="int32")), "holds other tensors"),
        (lambda made: made.change(lambda m: form_of("layers.0.w", m).update(dtype="int33")), "unknown dtype"),
        (lambda made: made.change(lambda m: form_of("layers.0.w", m).update(start=[1, 0])), "overlap"),
        (lambda made: made.change(lambda m: form_of("layers.0.w", m).update(full_shape=[9, 6])), "its manifest says"),
        (lambda made: made.change(lambda m: m["files"][0].update(forms=[])), "damaged"),
        (lambda made: made.change(lambda m: place_of("layers.0.w", m).__setitem__(0, -1)), "not a manifest"),
        (lambda made: made.change(lambda m: place_of("layers.0.w", m).append(4)), "damaged"),
        (lambda made: made.change(lambda m: place_of("layers.0.w", m).extend([4, 4])), "damaged"),
        (lambda made: made.change(lambda m: place_of("layers.0.w", m).__setitem__(1, 1 << 40)), "damaged"),
        (lambda made: made.change(lambda m: m["tables"][0]["files"].append(8)), "of file 8 of 8"),
        (lambda made: made.change(lambda m: m["tables"][0]["files"].append(4)), "of file 4 of 8, or twice"),
        (lambda made: made.change(lambda m: m["tables"].pop()), "holds other tensors"),
        (lambda made: made.change(lambda m: m["files"][0].update(rank=9)), "it says 9"),
        (lambda made: made.change(swap_ranks), "it says 1"),
        (lambda made: made.change(lambda m: (m.update(complete=False), swap_ranks(m))), "it says 1"),
    ],
)
def test_a_manifest_that_does_not_fit_is_not_trusted(tmp_path: Path, spoil: Callable[[Made], None], told: str) -> None:
    made = Made(tmp_path)
    spoil(made)
    with pytest.raises(CheckpointError, match="no strategy") as caught:
        reshard.plan(made.path, "out.safetensors")
    assert told in caught.value.message
    warnings = reshard.plan(made.path, "out.safetensors", Options(src_strategy=made.strategy)).warnings
    damaged = told != "a part of the target only"
    assert [told in warning and "not trusted" in warning for warning in warnings] == [True] * damaged
    assert told in inspect(made.path).warnings[0]


@pytest.mark.parametrize("ends", [(0, 4, 8), (0, 3, 8)], ids=["evenly", "unevenly"])
def test_layers_that_are_cut_alike_lie_each_at_its_place(ends: tuple[int, ...]) -> None:
    boxes = [Box((start,), (stop,)) for start, stop in pairwise(ends)]
    cuts = [ToldCut(TensorSpec("int8", box.shape), (8,), box) for box in boxes]
    tensors = _ToldTensors([_SamePlaces([(rank, rank, [cuts[rank]])], {}) for rank in range(2)], 2)
    for layer in range(3):
        extents = [(Extent(100 * layer + rank, box.size),) for rank, box in enumerate(boxes)]
        tensor = tensors.made(f"layers.{layer}", [(rank, 0, extents[rank]) for rank in range(2)])
        assert (tensor.name, list(tensor.shards.held())) == (
            f"layers.{layer}",
            [(box, (Held(rank, extents[rank]),)) for rank, box in enumerate(boxes)],
        )


def test_a_replica_stands_in_for_a_rank_without_file(made: Made, tmp_path: Path) -> None:
    next(made.path.glob("rank_3/*")).unlink()
    (warning,) = reshard.plan(made.path, "out.safetensors").warnings
    assert "no file of rank_3" in warning
    assert diff(Source(str(made.full)), Source(str(made.path))).equal
    next(made.path.glob("rank_2/*")).unlink()
    with pytest.raises(PlanError, match=r"layers.0.w: 50% missing.*ranks 2, 3 should hold it"):
        reshard.plan(made.path, "out.safetensors")


@pytest.mark.parametrize("ranks", [{0}, {0, 1}])
def test_a_target_of_some_ranks_is_not_taken_for_the_whole(made: Made, tmp_path: Path, ranks: set[int]) -> None:
    options = Options(dst_strategy=made.strategy, ranks=frozenset(ranks))
    reshard.convert(made.full, tmp_path / "some", options)
    with pytest.raises(CheckpointError, match=r"not whole|no strategy"):
        reshard.plan(tmp_path / "some", "out.safetensors")
    (tmp_path / "some" / ".reshard" / "manifest.json").unlink()  # as after a kill
    with pytest.raises(CheckpointError, match="has not ended"):
        reshard.plan(tmp_path / "some", "out.safetensors")


def test_parts_that_are_being_written_are_no_checkpoint(made: Made, tmp_path: Path) -> None:
    reshard.convert(made.path, tmp_path / "parts", Options(format="safetensors", max_shard_nbytes=100))
    (tmp_path / "parts" / ".reshard" / "begun.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="has not ended"):
        reshard.plan(tmp_path / "parts", "out.safetensors")


def test_what_the_user_says_it_is_counts(made: Made, tmp_path: Path) -> None:
    write_file(made.path / "model.safetensors", {"other": FULL["tied"]})
    assert [t.name for t in reshard.plan(made.path, "o.safetensors", Options(family="full")).tensors] == ["other"]
    assert len(reshard.plan(made.path, "o.safetensors", Options(family="ranks")).tensors) == len(FULL)
    with pytest.raises(UsageError, match="no rank folders"):
        reshard.plan(made.full, "o.safetensors", Options(family="ranks"))


def test_a_strategy_that_lacks_a_name_does_not_overrule_the_manifest(tmp_path: Path) -> None:
    full = {"w": np.zeros((4, 2), np.float32), "x": FULL["tied"]}
    strategy = str(write_strategy(tmp_path / "s", [dict.fromkeys(full, Sharding((2,), ((0,), ())))]))
    reshard.convert(write_file(tmp_path / "f.ckpt", full), tmp_path / "ours", Options(dst_strategy=strategy))
    lacking = str(write_strategy(tmp_path / "l", [{"x": Sharding((2,), ((0,), ()))}]))
    with pytest.raises(CheckpointError, match="w on rank 1"):
        reshard.plan(tmp_path / "ours", "out.ckpt", Options(src_strategy=lacking))


def test_a_strategy_beside_it_is_compared(made: Made, tmp_path: Path) -> None:
    assert reshard.plan(made.path, "out", Options(src_strategy=made.strategy)).tensors
    other = [{"layers.0.w": ROWS, "tied": ROWS}, {"layers.1.w": WHOLE, "tied": COLUMNS}]
    wrong = str(write_strategy(tmp_path / "wrong", other))
    with pytest.raises(CheckpointError, match=r"not the one of these files.*layers.1.w"):
        reshard.plan(made.path, "out", Options(src_strategy=wrong))


def test_shares_make_one_that_is_read(made: Made, tmp_path: Path) -> None:
    for index in range(2):
        options = Options(dst_strategy=made.strategy, share=Share(index, 2))
        reshard.convert(made.path, tmp_path / "out", options)
    assert diff(Source(str(made.full)), Source(str(tmp_path / "out"))).equal


def test_foreign_ranks_still_need_their_strategy(tmp_path: Path) -> None:
    write_ranks(tmp_path / "ranks", {"w": FULL["tied"]}, [{"w": ROWS}])
    with pytest.raises(CheckpointError, match="nobody can know how the tensors were cut"):
        reshard.plan(tmp_path / "ranks", "out.ckpt")


def test_ranks_that_keep_nothing_of_their_own_are_ours_too(tmp_path: Path) -> None:
    """Without redundancy a rank may have a file that holds no tensor."""
    full = write_file(tmp_path / "full.safetensors", {"w": array((2, 2))})
    strategy = str(write_strategy(tmp_path / "s", [{"w": WHOLE}]))
    made = tmp_path / "made"
    reshard.convert(full, made, Options(dst_strategy=strategy, drop_redundancy=True, fsync=False))
    assert [len(read_file(path)) for path in sorted(made.glob("rank_*/*"))] == [1, 0, 0, 0]
    for by in ("", strategy):
        opened = reshard.open(made, by)
        assert not opened.warnings
        assert same(opened["w"].read(), array((2, 2)))
