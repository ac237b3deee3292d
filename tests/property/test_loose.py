"""Catalogs of boxes in no grid: tilings, replicas, among others, zeros. Every command takes them as any other."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from random_boxes import Store, seeded, tilings
from random_layouts import shardings

from making import array, read_rank, same, shard_of, write_file
from reshard.checkpoint import Checkpoint
from reshard.errors import CheckpointError, PlanError
from reshard.families.planner import make_plan
from reshard.families.probe import agreements, probe
from reshard.families.rank_targets import ranks_or_full
from reshard.families.replicas import replica_faults
from reshard.families.source import Source
from reshard.formats.registry import format_named
from reshard.index import ZEROS, Contents, Extent, TensorSpec
from reshard.layout.box import Box
from reshard.layout.cover import gaps, overlap
from reshard.layout.stages import Strategy
from reshard.layout.tensor import Sharding
from reshard.ops import diff, explain, fingerprint
from reshard.ops.convert import bill_of, execute
from reshard.ops.observer import Observer
from reshard.ops.options import Means, Options
from reshard.planning.assembly import assembled
from reshard.planning.catalog import Catalog, Held, IndexedFile, Ranks, Shard, tensor_of_shards
from reshard.planning.target import Choices, Target
from reshard.report.html import page
from reshard.report.make import checkpoint_report, plan_report
from reshard.report.movement import movement, read_of_files
from thorough import examples

EXAMPLES = examples(10)
SHAPES = st.one_of(
    st.just(()), st.just((0, 4)), st.tuples(st.sampled_from((2, 4, 6)), st.sampled_from((1, 4, 12))).map(tuple)
)
DTYPES = ("float32", "bfloat16", "int8")


class Scattered:
    """Tensors in boxes somewhere in the files of a folder, one file a rank."""

    def __init__(self, data: st.DataObject, folder: Path, full: dict[str, np.ndarray], *, zeros: bool = True) -> None:
        store = Store(data.draw(seeded), folder)
        self.full = full
        self.tensors = {}
        for name, values in full.items():
            shards = []
            for box in data.draw(tilings(Box.whole(values.shape))):
                if zeros and data.draw(st.integers(0, 4)) == 0:
                    values[box.within(Box.whole(values.shape))] = np.zeros((), values.dtype)
                    shards.append(Shard(box, (Held(ZEROS, ()),)))
                    continue
                for _ in range(data.draw(st.integers(1, 2))):
                    piece = store.piece(values, box)
                    shards.append(Shard(box, (Held(piece.file, piece.extents, piece.outer),), (piece.file,)))
            spec = TensorSpec(values.dtype.name, values.shape)
            self.tensors[name] = tensor_of_shards(name, spec, shards)
        self.files = tuple(
            IndexedFile(f.path, f.path, f.nbytes, f.mtime_ns, rank, "safetensors", Contents({}))
            for rank, f in enumerate(store.files())
        )

    @property
    def catalog(self) -> Catalog:
        ranks = Ranks(1, len(self.files))
        return Catalog(self.files, self.tensors, {}, {}, ranks, tuple(self.tensors))

    def change(self, held: Held, box: Box, element: int, itemsize: int) -> None:
        """Turn the bits of one element as one file holds it."""
        at = [b for e in held.extents_of(box, itemsize) for b in range(e.offset, e.end)][element * itemsize]
        path = Path(self.files[held.file].path)
        content = bytearray(path.read_bytes())
        content[at] ^= 0xFF
        path.write_bytes(content)
        files = list(self.files)
        files[held.file] = replace(files[held.file], mtime_ns=path.stat().st_mtime_ns)
        self.files = tuple(files)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, np.ndarray]:
    return {f"t{n}": array(draw(SHAPES), draw(st.sampled_from(DTYPES)), n) for n in range(draw(st.integers(1, 3)))}


@EXAMPLES
@given(tensors(), st.data())
def test_every_command_takes_them(full: dict[str, np.ndarray], data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        source = Scattered(data, folder / "files", full)
        catalog = source.catalog
        plain = str(write_file(folder / "plain.safetensors", full))
        entries = {
            n: data.draw(shardings(2, a.ndim).filter(lambda s, a=a: divides(s, a.shape))) for n, a in full.items()
        }
        strategy = Strategy((entries,), 2, "strategy")
        converts(catalog, strategy, full, folder)
        checkpoint = Checkpoint(catalog, "somewhere")
        assert checkpoint._repr_html_()
        for tensor, values in full.items():
            assert same(np.asarray(checkpoint[tensor].read()), values)
        assert not replica_faults(catalog)
        assert all(agreements(catalog, catalog.tensors.values()).values())
        probe(catalog)
        with patch.object(fingerprint, "open_source", lambda _: catalog):
            there = fingerprint.fingerprint("there")
        assert there.number == fingerprint.fingerprint(plain).number
        opened = {"A": catalog, "B": diff.open_source(Source(plain))}
        with patch.object(diff, "open_source", lambda side, **_: opened[side.path]):
            for a, b in (("A", "B"), ("B", "A"), ("A", "A")):
                assert diff.diff(Source(a), Source(b)).equal
                assert diff.verify_content(Source(a), Source(b)).tensors == len(full)
        explains(catalog, full)


def divides(sharding: Sharding, shape: tuple[int, ...]) -> bool:
    return all(n % m == 0 for n, m in zip(shape, sharding.parts, strict=True))


def converts(catalog: Catalog, strategy: Strategy, full: dict[str, np.ndarray], folder: Path) -> None:
    """To ranks; what is read, and the report, as the bill has it."""
    target = Target(ranks_or_full(strategy, format_named("safetensors")))
    plan = make_plan(catalog, target, Choices())
    means = Means(fsync=False)
    done = execute(plan, folder / "out", means, Observer())
    bill = bill_of(plan, folder / "out", means)
    assert done.read_nbytes == bill.read_nbytes
    for rank in range(2):
        found = read_rank(folder / "out", rank)
        for name, values in full.items():
            assert same(found[name], shard_of(values, strategy.stages[0][name], rank))
    assert sum(read_of_files(catalog, plan, means.block_nbytes(1), link_replicas=False)) == bill.read_nbytes
    zeros = sum(
        (piece.box & box).size * plan.tensors[slot.tensor].spec.itemsize
        for file in plan.files
        for slot, box in plan.slots(file)
        for piece in plan.tensors[slot.tensor].step.base.pieces
        if piece.file == ZEROS
    )
    assert sum(map(sum, movement(catalog, plan).nbytes)) == plan.tensor_nbytes - zeros
    report = plan_report(catalog, plan, ("from", "to"), bill)
    assert page(report)
    assert page(checkpoint_report(catalog, "from"))


def explains(catalog: Catalog, full: dict[str, np.ndarray]) -> None:
    """What is said to hold a part holds it."""
    with patch.object(explain, "opened", lambda _, options: (catalog, options)):
        for name, values in full.items():
            for part in explain.explain(name, "there", Options()).parts:
                box = Box(part.start, tuple(a + n for a, n in zip(part.start, part.shape, strict=True)))
                for place in part.held:
                    content = Path(place.path).read_bytes()
                    held = b"".join(content[e.offset : e.end] for e in place.extents)
                    assert held == np.ascontiguousarray(values[box.within(Box.whole(values.shape))]).tobytes()


@EXAMPLES
@given(st.sampled_from(DTYPES), st.data())
def test_one_changed_element_is_found(dtype: str, data: st.DataObject) -> None:
    full = {"w": array((data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))), dtype)}
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        source = Scattered(data, folder / "files", full, zeros=False)
        plain = str(write_file(folder / "plain.safetensors", full))
        shards = tuple(source.tensors["w"].shards)
        shard = data.draw(st.sampled_from(shards))
        held = data.draw(st.sampled_from(shard.held))
        element = data.draw(st.integers(0, shard.box.size - 1))
        source.change(held, shard.box, element, full["w"].itemsize)
        within = np.unravel_index(element, shard.box.shape)
        index = [int(i) + a for i, a in zip(within, shard.box.start, strict=True)]
        opened = {"A": source.catalog, "B": diff.open_source(Source(plain))}
        with patch.object(diff, "open_source", lambda side, **_: opened[side.path]):
            with pytest.raises(diff.DifferenceError) as caught:
                diff.verify_content(Source("B"), Source("A"))
            assert f"w{index}" in caught.value.message
            assert diff.diff(Source("A"), Source("B")).equal == (held != shard.held[0])
        faults = replica_faults(source.catalog)
        assert len(faults) == (len(shard.held) > 1)
        assert all(fault.startswith(f"w{index}") for fault in faults)
        assert agreements(source.catalog, source.tensors.values()) == {"w": len(shard.held) == 1}


@EXAMPLES
@given(st.tuples(st.sampled_from((2, 4)), st.sampled_from((2, 4))), st.data())
def test_a_plan_is_refused_where_it_needs_what_nobody_holds(shape: tuple[int, int], data: st.DataObject) -> None:
    boxes = data.draw(tilings(Box.whole(shape)))
    lost = data.draw(st.sets(st.sampled_from(boxes)))
    shards = [Shard(box, (Held(0, (_extent(box),)),)) for box in boxes if box not in lost]
    tensor = tensor_of_shards("w", TensorSpec("int8", shape), shards)
    cut = data.draw(shardings(4, 2).filter(lambda s: divides(s, shape)))
    wanted = frozenset(data.draw(st.sets(st.integers(0, 3), min_size=1)))
    file = IndexedFile("f", "f", 100, 0, 0, "safetensors", Contents({}))
    catalog = Catalog((file,), {"w": tensor}, {}, {})
    target = Target(ranks_or_full(Strategy(({"w": cut},), 4, "s"), format_named("safetensors")), ranks=wanted)
    there = np.zeros(shape, bool)
    for shard in shards:
        there[shard.box.within(Box.whole(shape))] = True
    if all(shard_of(there, cut, rank).all() for rank in wanted):
        make_plan(catalog, target, Choices())
    else:
        with pytest.raises(PlanError, match="slices that no file holds"):
            make_plan(catalog, target, Choices())


def _extent(box: Box) -> Extent:
    return Extent(0, box.size)


boxes_in = st.lists(st.sampled_from((0, 1, 2, 3, 5)), max_size=3).map(tuple)


@st.composite
def some_boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Box]:
    made = []
    for _ in range(draw(st.integers(0, 6))):
        ends = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
        made.append(Box(tuple(a for a, _ in ends), tuple(b for _, b in ends)))
    return made


@examples(75)
@given(boxes_in, st.data())
def test_gaps_and_overlaps_are_those_of_elements(shape: tuple[int, ...], data: st.DataObject) -> None:
    whole = Box.whole(shape)
    boxes = data.draw(some_boxes(shape))
    count = np.zeros(shape, int)
    for box in boxes:
        count[box.within(whole)] += 1
    for box in gaps(boxes, whole):
        assert box.size
        assert not count[box.within(whole)].any()
        count[box.within(whole)] = -1
    assert not (count == 0).any()
    found = overlap(boxes)
    assert (found is not None) == bool((count > 1).any())
    assert found is None or (found[0] & found[1]).size


@examples(50)
@given(boxes_in, st.data())
def test_shards_tile_their_tensor(shape: tuple[int, ...], data: st.DataObject) -> None:
    whole, spec = Box.whole(shape), TensorSpec("int8", shape)
    tiling = data.draw(tilings(whole))
    told = data.draw(st.lists(st.sampled_from(tiling), max_size=6)) + data.draw(st.sampled_from(([], [whole])))
    shards = [Shard(box, (Held(n, (_extent(box),)),), (n,)) for n, box in enumerate(told)]
    distinct = {box for box in told if box.size}
    if whole in distinct and len(distinct) > 1:
        with pytest.raises(CheckpointError, match="overlap"):
            tensor_of_shards("w", spec, shards)
        return
    tensor = tensor_of_shards("w", spec, shards)
    count = np.zeros(shape, int)
    for shard in tensor.shards:
        count[shard.box.within(whole)] += 1
        assert (
            {h.file for h in shard.held} == set(shard.expected) == {n for n, box in enumerate(told) if box == shard.box}
        )
    assert (count == 1).all()
    missing = sum(shard.box.size for shard in tensor.shards.missing())
    assert missing == whole.size - sum(box.size for box in distinct)
    assert [p.box for p in assembled(tensor).pieces] == sorted(p.box for p in assembled(tensor).pieces)


@pytest.mark.parametrize(
    ("box", "held", "said"),
    [
        (Box((0, 0), (2, 5)), (), "beyond its shape"),
        (Box((-1, 0), (2, 4)), (), "beyond its shape"),
        (Box((0,), (2,)), (), "beyond its shape"),
        (Box((0, 0), (2, 4)), (7,), "takes 7 bytes"),
    ],
)
def test_what_cannot_be_is_refused(box: Box, held: tuple[int, ...], said: str) -> None:
    shard = Shard(box, tuple(Held(0, (Extent(0, n),)) for n in held))
    with pytest.raises(CheckpointError, match=said):
        tensor_of_shards("w", TensorSpec("int8", (2, 4)), [shard])
