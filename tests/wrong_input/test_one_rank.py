"""What one rank of several holds is not taken for the whole unless somebody says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import reshard
from making import array, read_file, write_file
from reshard.cli.next_steps import next_steps
from reshard.errors import CheckpointError
from reshard.families.open_checkpoint import open_source
from reshard.families.rank_listing import lone_rank_of
from reshard.families.source import Source
from reshard.ops.lora import AdapterAt, lora_config, plan_lora
from reshard.planning.catalog import Catalog


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    for rank in range(2):
        write_file(tmp_path / "ckpt" / f"rank_{rank}" / "net.safetensors", {"w": array((2, 4), seed=rank)})
    return tmp_path / "ckpt"


@pytest.mark.parametrize("src", ["rank_0", "rank_0/net.safetensors"])
@pytest.mark.parametrize(
    "dst", ["full.ckpt", "parts", "rank_01/net.ckpt", "rank_1/net.ckpt", "xrank_0.ckpt", "rank_0/a/b.ckpt"]
)
def test_it_is_refused(src: str, dst: str, ranks: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rank_0, beside 1 other rank, holds may be slices") as caught:
        reshard.convert(ranks / src, tmp_path / "out" / dst)
    assert f"give {ranks}, with --src-strategy" in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "src", [".", "net.safetensors", "./net.safetensors", "../../link", "../../link/net.safetensors"]
)
def test_it_is_refused_by_whatever_name(src: str, ranks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (ranks.parent / "link").symlink_to(ranks / "rank_0")
    monkeypatch.chdir(ranks / "rank_0")
    with pytest.raises(CheckpointError, match="rank_0, beside 1 other rank, holds may be slices") as caught:
        reshard.convert(src, "../../full.ckpt")
    assert f"give {ranks}, with --src-strategy" in caught.value.hint
    source = open_source(Source(src))
    assert "its tensors may be slices" in source.warnings[0]
    assert f" {ranks} " in next_steps(source, src, "")[1]


@pytest.mark.parametrize(("dst", "family"), [("rank_0/net.ckpt", ""), ("net_rank_0.ckpt", ""), ("full.ckpt", "full")])
def test_it_is_converted_where_that_is_meant(dst: str, family: str, ranks: Path, tmp_path: Path) -> None:
    reshard.convert(ranks / "rank_0", tmp_path / dst, reshard.Options(family=family))
    assert np.array_equal(read_file(tmp_path / dst)["w"], array((2, 4), seed=0))


def test_nothing_is_added_to_it(ranks: Path, tmp_path: Path) -> None:
    factors = {"w.lora_A.weight": array((1, 4)), "w.lora_B.weight": array((2, 1))}
    adapter = write_file(tmp_path / "adapter.safetensors", factors)
    with pytest.raises(CheckpointError, match="may be slices"):
        plan_lora(ranks / "rank_0", tmp_path / "full.ckpt", [AdapterAt(str(adapter), lora_config(scaling="2"))])


def test_the_next_step_is_with_all_of_them(ranks: Path) -> None:
    source = open_source(Source(str(ranks / "rank_0")))
    steps = next_steps(source, str(ranks / "rank_0"), "")
    assert [str(ranks / "rank_0") in step or str(ranks) not in step for step in steps[1:]] == [False] * 3


def test_what_has_no_files_is_of_no_rank() -> None:
    assert lone_rank_of(Catalog((), {}, {}, {}, kind="full")) == ("", "")
