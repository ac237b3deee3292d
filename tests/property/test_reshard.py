"""For any two layouts: every target shard is the NumPy slice of the full tensor, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from random_layouts import Case, Job, cases

import reshard
from making import array, read_rank, same, shard_of, write_file, write_ranks, write_strategy
from reshard.families.open_checkpoint import open_source
from reshard.families.planner import make_plan
from reshard.families.rank_targets import ranks_or_full
from reshard.families.source import Source
from reshard.formats.base import Format
from reshard.formats.mindspore_ckpt import MindSporeCkpt
from reshard.formats.registry import format_named
from reshard.ops.convert import execute
from reshard.ops.observer import Observer
from reshard.ops.options import Options
from reshard.planning.bill import make_bill
from reshard.planning.target import Choices, Target
from reshard.strategy.folder import read_strategy
from thorough import examples

EXAMPLES = examples(30)
T = TypeVar("T")


class Disk:
    """A case laid out in a folder: the source's files, both strategies."""

    def __init__(self, folder: Path, case: Case, slice_nbytes: int = 1 << 29) -> None:
        self.case = case
        self.folder = folder
        self.full = {n: array(s, case.dtypes[n], i) for i, (n, s) in enumerate(case.shapes.items())}
        self.src_strategy = self._strategy("old", case.source)
        self.dst_strategy = self._strategy("new", case.target)
        source, suffix = case.source, case.source.suffix
        if source.stages:
            self.src = write_ranks(folder / "src", self.full, source.stages, suffix, slice_nbytes)
        else:
            self.src = write_file(folder / f"full{suffix}", self.full, slice_nbytes=slice_nbytes)

    def _strategy(self, name: str, job: Job) -> str:
        return str(write_strategy(self.folder / name, job.stages)) if job.stages else ""

    def options(self) -> Options:
        return Options(
            src_strategy=self.src_strategy,
            dst_strategy=self.dst_strategy,
            format=self.case.target.suffix[1:],
            fsync=False,
        )

    def held_by(self, job: Job, rank: int) -> dict[str, np.ndarray]:
        """What a rank must hold, by slicing the full tensors."""
        if job.stages is None:
            return self.full
        stage, local = divmod(rank, job.devices)
        return {name: shard_of(self.full[name], s, local) for name, s in job.stages[stage].items()}

    def assert_holds(self, folder: Path, job: Job) -> None:
        for rank in range(job.world):
            found, wanted = read_rank(folder, rank), self.held_by(job, rank)
            assert found.keys() == wanted.keys()
            for name in wanted:
                assert same(found[name], wanted[name]), f"{name} on rank {rank}"


@contextmanager
def on_disk(case: Case, slice_nbytes: int = 1 << 29) -> Iterator[Disk]:
    with TemporaryDirectory() as folder:
        yield Disk(Path(folder), case, slice_nbytes)


@EXAMPLES
@given(cases())
def test_convert_equals_slicing_the_full_tensor(case: Case) -> None:
    with on_disk(case) as disk:
        out = disk.folder / "out"
        done = reshard.convert(disk.src, out, disk.options())
        disk.assert_holds(out, case.target)
        assert done.written_nbytes == sum(p.stat().st_size for p in out.glob("rank_*/*"))
        assert done.read_nbytes == done.bill.read_nbytes
        if case.reads_once:
            assert done.read_nbytes == done.bill.needed_nbytes
        assert reshard.verify(out).files == case.target.world


@EXAMPLES
@given(cases())
def test_there_and_back_is_the_identity_and_nothing_differs(case: Case) -> None:
    with on_disk(case) as disk:
        out, back = disk.folder / "out", disk.folder / "back"
        reshard.convert(disk.src, out, disk.options())
        again = Options(src_strategy=disk.dst_strategy, dst_strategy=disk.src_strategy, fsync=False)
        reshard.convert(out, back, again)
        disk.assert_holds(back, case.source)
        a, b = Source(str(disk.src), disk.src_strategy), Source(str(out), disk.dst_strategy)
        compared = reshard.diff(a, b)
        assert compared.equal, compared.lines()
        assert compared.tensors == len(case.shapes)
        assert reshard.verify_content(a, b).tensors == len(case.shapes)


@EXAMPLES
@given(cases(), st.data())
def test_load_equals_slicing_the_full_tensor(case: Case, data: st.DataObject) -> None:
    with on_disk(case) as disk:
        checkpoint = reshard.open(disk.src, disk.src_strategy)
        rank = data.draw(st.integers(0, case.target.world - 1))
        loaded = checkpoint.load(rank, disk.dst_strategy)
        wanted = disk.held_by(case.target, rank)
        assert set(loaded) == set(wanted)
        for name in wanted:
            assert same(np.asarray(loaded[name]), wanted[name])
        for name, full in disk.full.items():
            assert checkpoint[name].shape == full.shape
            assert same(np.asarray(checkpoint[name].read()), full)


def repeated(case: Case, layers: int) -> Case:
    """Every tensor in so many layers, one after the other."""

    def each(of: Mapping[str, T]) -> dict[str, T]:
        return {f"{layer:02}.{name}": value for layer in range(layers) for name, value in of.items()}

    source, target = (
        replace(job, stages=job.stages and [each(stage) for stage in job.stages]) for job in (case.source, case.target)
    )
    return Case(source, target, each(case.shapes), each(case.dtypes))


@EXAMPLES
@given(cases(), st.integers(2, 9))
def test_tensors_that_take_turns_equal_slices_of_the_full_ones(case: Case, layers: int) -> None:
    """However few they are."""
    of_few = patch.multiple("reshard.moving.any_order", _MANY_PARTS=2, _SOME_PARTS=2)
    with of_few, on_disk(repeated(case, layers)) as disk:
        done = reshard.convert(disk.src, disk.folder / "out", disk.options())
        disk.assert_holds(disk.folder / "out", disk.case.target)
        assert done.read_nbytes == done.bill.read_nbytes
        assert reshard.verify(disk.folder / "out").files == case.target.world


class TinyBlocks(Options):
    """Options that move a few bytes at a time."""

    nbytes = 0

    def block_nbytes(self, workers: int, others_nbytes: int = 0, *, turned: bool = False) -> int:
        return self.nbytes


@EXAMPLES
@given(cases(), st.sampled_from([1, 24, 100, 1000]), st.sampled_from([16, 64, 1000]))
def test_blocks_and_pieces_of_any_size_give_the_same_bytes(case: Case, block_nbytes: int, slice_nbytes: int) -> None:
    with on_disk(case, slice_nbytes) as disk:
        source = open_source(Source(str(disk.src), disk.src_strategy))
        strategy = read_strategy(disk.dst_strategy) if disk.dst_strategy else None
        form: Format = format_named(case.target.suffix[1:])
        if isinstance(form, MindSporeCkpt):
            form = MindSporeCkpt(slice_nbytes=slice_nbytes)
        plan = make_plan(source, Target(ranks_or_full(strategy, form)), Choices())
        options = type("Options", (TinyBlocks,), {"nbytes": block_nbytes})(fsync=False, workers=3)
        done = execute(plan, disk.folder / "out", options, Observer())
        disk.assert_holds(disk.folder / "out", case.target)
        assert done.read_nbytes == make_bill(plan, 1, block_nbytes).read_nbytes
        reshard.verify(disk.folder / "out")


@EXAMPLES
@given(cases(), st.data())
def test_ranks_made_apart_fill_one_target(case: Case, data: st.DataObject) -> None:
    with on_disk(case) as disk:
        world = range(case.target.world)
        first = data.draw(st.sets(st.sampled_from(world), min_size=1))
        rest = set(world) - first
        for ranks in (first, rest):
            if ranks:
                given_options = disk.options()
                options = Options(
                    src_strategy=given_options.src_strategy,
                    dst_strategy=given_options.dst_strategy,
                    format=given_options.format,
                    ranks=frozenset(ranks),
                    fsync=False,
                    resume=ranks is rest,
                )
                reshard.convert(disk.src, disk.folder / "out", options)
        disk.assert_holds(disk.folder / "out", case.target)
        assert reshard.verify(disk.folder / "out").files == len(world)
