"""Shares: what divides a target among processes, and four processes that fill one."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import reshard
from forks import Running, forks
from making import array, tree, write_file, write_ranks, write_strategy
from reshard import Options
from reshard.cli.sharing import parse_share
from reshard.errors import UsageError
from reshard.layout.tensor import Sharding
from reshard.ops.convert import bill_of
from reshard.planning.shares import Group, Share, divided
from thorough import examples
from waiting import wait_until

ROWS, COLUMNS, WHOLE = (Sharding((2, 4), m) for m in (((0,), ()), ((), (0,)), ((), ())))
OLD = Sharding((2, 2), ((0,), ()))


class Work:
    """Two stages of four ranks, to become two stages of eight."""

    def __init__(self, folder: Path) -> None:
        full = {f"layers.{i}.{w}": array((16, 8), seed=4 * i + j) for i in range(4) for j, w in enumerate("abc")}
        full |= {"layers.0.m": array((7,), "bfloat16", 99)}
        stages = [[n for n in full if n[7] in half] for half in ("01", "23")]
        old = [{n: OLD if n[-1] != "m" else Sharding((2, 2), ((),)) for n in names} for names in stages]
        cuts = {"a": ROWS, "b": COLUMNS, "c": WHOLE, "m": Sharding((2, 4), ((),))}
        new = [{n: cuts[n[-1]] for n in names} for names in stages]
        self.full = write_file(folder / "full.safetensors", full)
        self.src = write_ranks(folder / "src", full, old)
        self.options = Options(
            src_strategy=str(write_strategy(folder / "old", old)),
            dst_strategy=str(write_strategy(folder / "new", new)),
            fsync=False,
        )
        self.out = folder / "out"
        reshard.convert(self.src, folder / "wanted", self.options)
        self.wanted = tree(folder / "wanted")

    def start(self, share: str, *more: str, src: Path | None = None, env: Mapping[str, str] | None = None) -> Running:
        strategies = ["--src-strategy", self.options.src_strategy, "--dst-strategy", self.options.dst_strategy]
        words = ("convert", src or self.src, self.out, *strategies, "--share", share, *more)
        return forks().start(*words, env={**os.environ, **(env or {})})

    def published(self) -> bool:
        return (self.out / ".reshard" / "manifest.json").exists()


def ended(process: Running) -> tuple[int, str]:
    found = process.ended()
    return found.code, found.said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("shares"))


@pytest.fixture
def work(made: Work) -> Work:
    shutil.rmtree(made.out, ignore_errors=True)
    return made


def test_four_processes_one_killed_and_run_again(work: Work) -> None:
    slow = work.start("2/4", "--max-rate", "300B/s")
    wait_until(lambda: list(work.out.rglob("*.part")))
    others = [work.start(f"{i}/4") for i in (0, 1, 3)]
    for process in others:
        code, said = ended(process)
        assert (code, "still to be made" in said) == (0, True), said
    slow.kill(signal.SIGKILL)
    ended(slow)
    assert not work.published()
    assert not [p for p in tree(work.out) if not p.endswith(".part") and tree(work.out)[p] != work.wanted[p]]
    code, said = ended(work.start("2/4"))
    assert (code, "still to be made" in said) == (0, False), said
    assert tree(work.out) == work.wanted
    assert reshard.verify(work.out).ranks == 16


def test_all_at_once_the_last_one_publishes(work: Work) -> None:
    runs = [ended(process) for process in [work.start(f"{i}/3", "--quiet") for i in range(3)]]
    assert runs == [(0, "")] * 3
    assert tree(work.out) == work.wanted
    reshard.verify(work.out)


def test_a_share_that_is_done_has_nothing_to_do(work: Work) -> None:
    share = Share(0, 2)
    first = reshard.convert(work.src, work.out, replace(work.options, share=share))
    assert first.missing_files == 8
    again = reshard.convert(work.src, work.out, replace(work.options, share=share))
    assert (again.written_nbytes, again.skipped_files, again.missing_files) == (0, 8, 8)


def test_what_another_share_made_and_is_gone_completes_nothing(work: Work) -> None:
    def run(index: int) -> int:
        return reshard.convert(work.src, work.out, replace(work.options, share=Share(index, 2))).missing_files

    assert run(0) == 8
    made = next(iter(work.out.glob("rank_*/*")))
    for before in ("of a part", "of a whole target"):
        made.unlink()
        assert run(1) == 1, before
        assert run(0) == 0, before
        assert tree(work.out) == work.wanted
        reshard.verify(work.out)


def test_a_share_under_way_is_not_begun_twice(work: Work) -> None:
    slow = work.start("1/4", "--max-rate", "300B/s")
    wait_until(lambda: list(work.out.rglob("*.part")))
    code, said = ended(work.start("1/4"))
    assert code == 2
    assert "another conversion is writing here: rank_" in said
    slow.kill(signal.SIGINT)
    assert ended(slow)[0] == 130


def test_machines_with_copies_of_the_source_fill_one_target(work: Work, tmp_path: Path) -> None:
    shutil.copytree(work.src, tmp_path / "copy")
    assert ended(work.start("0/2", "--quiet"))[0] == 0
    assert ended(work.start("1/2", "--quiet", src=tmp_path / "copy")) == (0, "")
    assert tree(work.out) == work.wanted


def test_a_launcher_says_which_share(work: Work) -> None:
    for i in range(2):
        assert ended(work.start("auto", "--quiet", env={"SLURM_PROCID": str(i), "SLURM_NTASKS": "2"})) == (0, "")
    assert tree(work.out) == work.wanted
    code, said = ended(work.start("auto"))
    assert code == 2
    assert "no launcher" in said


def test_shares_of_parts(work: Work, tmp_path: Path) -> None:
    options = {
        "src_strategy": work.options.src_strategy,
        "format": "safetensors",
        "max_shard_nbytes": 2000,
        "fsync": False,
    }
    reshard.convert(work.src, tmp_path / "wanted", Options(**options))  # type: ignore[arg-type]
    missing = [
        reshard.convert(work.src, work.out, Options(**options, share=Share(i, 3))).missing_files  # type: ignore[arg-type]
        for i in (2, 0, 1)
    ]
    assert missing[0] > missing[1] > missing[2] == 0
    assert tree(work.out) == tree(tmp_path / "wanted")


def test_more_shares_than_files(work: Work, tmp_path: Path) -> None:
    done = [
        reshard.convert(work.full, tmp_path / "one.ckpt", Options(share=Share(i, 3), fsync=False)) for i in range(3)
    ]
    assert sorted(d.bill.target_files for d in done) == [0, 0, 1]
    reshard.verify(tmp_path / "one.ckpt")


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "1/0", "a/b", "1/4/2", ""])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(UsageError):
        parse_share(text, {})


ARRAY = {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_MAX": "8"}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}  # what the script of a batch job sees


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({"RANK_ID": "1", "MS_WORKER_NUM": "8"}, Share(1, 8)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, Share(3, 4)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, Share(2, 3)),
        ({"PMI_RANK": "2", "PMI_SIZE": "3", **BATCH}, Share(2, 3)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "6"}, Share(5, 6)),
        (ARRAY, Share(4, 7)),
        ({**ARRAY, "SLURM_PROCID": "0"}, Share(4, 7)),
        ({**ARRAY, **BATCH}, Share(4, 7)),
        ({**ARRAY, "SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_COUNT": "4"}, Share(2, 4)),
        ({**ARRAY, **BATCH, "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, Share(4 * 4 + 3, 7 * 4)),
        ({**ARRAY, **BATCH, "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, Share(4 * 2 + 1, 7 * 2)),
    ],
)
def test_what_launchers_say(environment: dict[str, str], share: Share) -> None:
    assert parse_share("auto", environment) == share


@pytest.mark.parametrize(
    "wrong", [{"SLURM_ARRAY_TASK_COUNT": "3"}, {"SLURM_ARRAY_TASK_STEP": "3"}, {"SLURM_ARRAY_TASK_ID": "9"}]
)
def test_an_array_with_holes_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        parse_share("auto", {**ARRAY, **wrong})


@pytest.mark.parametrize("contradiction", [{"overwrite": True}, {"ranks": frozenset({0})}])
def test_what_a_share_cannot_be_combined_with(contradiction: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="contradict each other"):
        Options(share=Share(0, 2), **contradiction)  # type: ignore[arg-type]


# --- the division

GROUPS = st.lists(
    st.builds(Group, st.lists(st.integers(0, 1000), min_size=1, max_size=9).map(tuple), st.integers(0, 5000)),
    max_size=9,
)


@examples(25)
@given(GROUPS, st.integers(1, 20))
def test_shares_have_every_file_once_and_in_order(groups: list[Group], count: int) -> None:
    shares = divided(groups, count)
    assert len(shares) == count
    assert [f for share in shares for f in share] == [
        (g, i) for g, of in enumerate(groups) for i in range(len(of.written))
    ]


@examples(25)
@given(st.integers(1, 12), st.integers(1, 32), st.integers(1, 40))
def test_shares_of_equal_ranks_are_balanced(stages: int, ranks: int, count: int) -> None:
    """No share has more than a fair one and one of the pieces that it may be made of."""
    sizes = [len(share) for share in divided([Group((10,) * ranks, 10 * ranks)] * stages, count)]
    fair = stages * ranks / count
    assert max(sizes) <= fair + -(-ranks // max(min(4 * -(-count // stages), ranks), 1))


def test_groups_are_kept_whole_where_that_is_fair() -> None:
    shares = divided([Group((5,) * 8, 40)] * 6, 3)
    assert [sorted({g for g, _ in share}) for share in shares] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16])
def test_the_shares_of_a_plan_are_the_plan(work: Work, count: int) -> None:
    whole = reshard.plan(work.src, work.out, work.options)
    plans = [reshard.plan(work.src, work.out, replace(work.options, share=Share(i, count))) for i in range(count)]
    assert {p.identity for p in plans} == {whole.identity}
    assert sorted(f.path for p in plans for f in p.files) == sorted(f.path for f in whole.files)
    written = [bill_of(p, work.out, work.options).written_nbytes for p in plans]
    assert sum(written) == whole.nbytes
