"""Kinds of targets: which one is made of what is asked, and one of a test's own, which needs no word elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
from msgspec import Struct

import reshard
from families.rows import FAMILIES
from making import array, read_file, same, tree, write_file
from reshard import Options
from reshard.cli.params import _CONVERSION
from reshard.errors import UsageError
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.families.targets import kinds
from reshard.formats.registry import format_named
from reshard.ops.convert import execute, plan_from
from reshard.ops.observer import Observer
from reshard.ops.verify import verify
from reshard.planning.plan import PlannedFile, SmallFile
from reshard.planning.shares import Share
from reshard.planning.target import Draft, Files

FULL = {"a": array((8, 6), seed=1), "b": array((3,), "float16", seed=2), "c": array((5, 5), seed=3)}
PLAIN = Options(fsync=False)


class Boxes(Struct, frozen=True):
    """A file for each tensor, in folders; an index says where in which file its bytes lie."""

    iteration: int = 1

    name: ClassVar[str] = "boxes"
    strategy: ClassVar[None] = None

    def files(self, draft: Draft) -> Files:
        formats = [format_named("safetensors"), format_named("ckpt")]
        files, index = [], {}
        for i, kept in enumerate(draft.kept):
            cut = draft.cut(kept, kept.layouts[0], 0)
            form = draft.form((cut,), (), formats[i % 2], ())
            path = f"iter_{self.iteration:07d}/mp_rank_{i:02d}/data{formats[i % 2].suffix}"
            files.append(PlannedFile(i, path, 0, 0, form, i))
            (extent,) = draft.forms[form].slots[0].extents
            index[kept.name] = (path, extent.offset, extent.nbytes)
        last = SmallFile("latest.txt", str(self.iteration).encode())
        return Files(draft.asked_for(files), len(files), (SmallFile("boxes.json", json.dumps(index).encode()), last))


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return write_file(tmp_path / "full.safetensors", FULL)


def make(full: Path, out: Path, **more: object) -> None:
    options = Options(fsync=False, **more)  # type: ignore[arg-type]
    plan = plan_from(open_source(Source(str(full))), str(out), options, kind=Boxes())
    execute(plan, out, options, Observer())


def files_of(folder: Path) -> set[str]:
    return {name for name in tree(folder) if not name.startswith(".reshard/")}


def test_files_in_folders_in_formats_of_their_own_and_an_index_of_their_bytes(full: Path, tmp_path: Path) -> None:
    make(full, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "boxes.json").read_bytes())
    assert files_of(tmp_path / "out") == {"boxes.json", "latest.txt", *(path for path, *_ in index.values())}
    for name, (path, offset, nbytes) in index.items():
        assert same(read_file(tmp_path / "out" / path)[name], FULL[name])
        assert (tmp_path / "out" / path).read_bytes()[offset : offset + nbytes] == FULL[name].tobytes()
    assert verify(tmp_path / "out").files == 5


@pytest.mark.parametrize("count", [2, 3, 5])
def test_whoever_makes_the_last_file_closes_the_target(full: Path, tmp_path: Path, count: int) -> None:
    make(full, tmp_path / "whole")
    for index in reversed(range(count)):
        assert not {"boxes.json", "latest.txt"} & files_of(tmp_path / "out")
        make(full, tmp_path / "out", share=Share(index, count))
    wanted, made = tree(tmp_path / "whole"), tree(tmp_path / "out")
    assert {n: wanted[n] for n in files_of(tmp_path / "whole")} == {n: made[n] for n in files_of(tmp_path / "out")}
    assert verify(tmp_path / "out").files == 5


def test_a_closing_file_that_was_lost_is_written_again(full: Path, tmp_path: Path) -> None:
    make(full, tmp_path / "out")
    (tmp_path / "out" / "boxes.json").unlink()
    make(full, tmp_path / "out", resume=True)
    assert verify(tmp_path / "out").files == 5


def test_each_field_of_a_kind_counts_in_the_identity(full: Path) -> None:
    source = open_source(Source(str(full)))
    plans = [plan_from(source, "out", PLAIN, kind=Boxes(iteration)) for iteration in (1, 2, 1)]
    assert plans[0].identity == plans[2].identity != plans[1].identity


# --- what is asked


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"to": "tape"}, "ranks, full, parts"),
        ({"to": "ranks"}, "give --dst-strategy"),
        ({"to": "parts", "prefix": "x"}, "no use for --prefix"),
        ({"to": "full", "max_shard_nbytes": 100}, "it is for --to parts"),
        ({"drop_redundancy": True}, "no use for --drop-redundancy"),
        ({"to": "parts", "format": "ckpt"}, "give --format safetensors"),
    ],
)
def test_what_a_kind_does_not_take_is_refused(full: Path, asked: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        reshard.plan(full, "out", Options(**asked))  # type: ignore[arg-type]
    assert told in str(caught.value)


def test_a_file_name_is_for_one_file(full: Path) -> None:
    with pytest.raises(UsageError, match=r"'m.safetensors' names a file"):
        reshard.plan(full, "m.safetensors", Options(to="parts"))


def test_all_kinds_are_told_in_help() -> None:
    (told,) = (kind for name, (kind, _) in _CONVERSION.items() if name == "to")
    assert all(name in told.__metadata__[0].help for name in kinds())


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({}, {"model.safetensors"}),
        ({"to": "full"}, {"rank_0/checkpoint_0.safetensors"}),
        ({"format": "ckpt"}, {"rank_0/checkpoint_0.ckpt"}),
        ({"format": "torch"}, {"pytorch_model.bin"}),
    ],
)
def test_a_source_that_is_neither_ranks_nor_full_becomes_parts(
    tmp_path: Path, options: dict[str, str], made: set[str]
) -> None:
    source = FAMILIES["DeepSpeed, stage 2"](tmp_path)
    reshard.convert(source.path, tmp_path / "out", Options(fsync=False, **options))  # type: ignore[arg-type]
    assert files_of(tmp_path / "out") == made


def test_full_sources_become_one_full_checkpoint_as_before(full: Path, tmp_path: Path) -> None:
    reshard.convert(full, tmp_path / "out", PLAIN)
    assert files_of(tmp_path / "out") == {"rank_0/checkpoint_0.safetensors"}
    reshard.convert(full, tmp_path / "parts", Options(to="parts", fsync=False))
    assert files_of(tmp_path / "parts") == {"model.safetensors"}


def test_parts_of_a_ckpt_are_safetensors(full: Path, tmp_path: Path) -> None:
    source = tmp_path / "m.ckpt"
    reshard.convert(full, source, PLAIN)
    reshard.convert(source, tmp_path / "out", Options(to="parts", fsync=False))
    assert files_of(tmp_path / "out") == {"model.safetensors"}
    with pytest.raises(UsageError, match="the target would be ckpt"):
        reshard.plan(source, "parts", Options(max_shard_nbytes=100))
