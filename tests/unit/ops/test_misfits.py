"""Values that a cast or a sum cannot keep: counted once each, told by tensor, whoever made the files and whenever."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from msgspec import convert

import reshard
from making import array, read_file, write_file, write_strategy
from reshard.layout.box import Box
from reshard.layout.tensor import Layout, Sharding
from reshard.ops.lora import lora_config, merge_lora
from reshard.ops.options import Options
from reshard.planning.misfits import Misfits
from reshard.planning.shares import Share

HALF = Options(dtype="float16", fsync=False)
WANTED = (Misfits("w", "float16", infinite=3),)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    w = np.ones((8, 6), np.float32)
    w[[0, 3, 7], [0, 5, 2]] = 1e6, -1e9, 65520
    w[1, 1] = np.nan
    return write_file(tmp_path / "full.safetensors", {"w": w, "n": np.ones(4, np.float32)})


@pytest.fixture
def cut(tmp_path: Path) -> str:
    """w in two parts, each on two ranks; n on all four."""
    layouts = {"w": Sharding((2, 2), ((0,), ())), "n": Sharding((2, 2), ((),))}
    return str(write_strategy(tmp_path / "strategy", [layouts]))


def with_cut(cut: str, **more: object) -> Options:
    return Options(dtype="float16", fsync=False, dst_strategy=cut, **more)  # type: ignore[arg-type]


def test_a_cast_tells(full: Path, tmp_path: Path) -> None:
    done = reshard.convert(full, tmp_path / "out.safetensors", HALF)
    assert done.misfits == WANTED
    (warning,) = done.warnings
    assert "w: 3 infinite" in warning
    assert np.isinf(read_file(tmp_path / "out.safetensors")["w"]).sum() == 3


def test_a_copy_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reshard.moving.elements.all_finite", None)
    source = write_file(tmp_path / "in.safetensors", {"w": array((8, 6))})
    assert reshard.convert(source, tmp_path / "out.safetensors", Options(fsync=False)).misfits == ()
    assert reshard.convert(source, tmp_path / "same.safetensors", Options(dtype="float32")).misfits == ()


MANY = {f"t{n:02}": ((4, 8), (8, 4), (32,), (), (4, 2, 4))[n % 5] for n in range(40)}


@pytest.mark.parametrize("dim", [0, -1], ids=["rows", "columns"])
@pytest.mark.parametrize("block_nbytes", [1 << 20, 48])
def test_of_many_that_are_cast_together_each_is_told(
    tmp_path: Path, dim: int, block_nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name and by the box that a file holds, whatever they are cast with."""
    monkeypatch.setattr("reshard.ops.options._MAX_BLOCK_NBYTES", block_nbytes)
    tensors = {name: np.ones(shape, np.float32) for name, shape in MANY.items()}
    for number, name in enumerate(sorted(MANY)[3::4]):
        tensors[name].reshape(-1)[-1 - number :] = 1e6
    cut = {}
    for name, shape in MANY.items():
        which = range(len(shape))[dim:][:1]
        cut[name] = Sharding((2,), tuple([(0,) if d in which else () for d in range(len(shape))]))
    source = write_file(tmp_path / "in.safetensors", tensors)
    done = reshard.convert(source, tmp_path / "out", with_cut(str(write_strategy(tmp_path / "cut", [cut]))))
    wanted = {name: int((array > 1).sum()) for name, array in tensors.items() if (array > 1).any()}
    assert {found.tensor: found.infinite for found in done.misfits} == wanted
    files = json.loads((tmp_path / "out/.reshard/manifest.json").read_text())["files"]
    for rank, file in enumerate(files):
        for found in file["misfits"]:
            name, box = found["counts"]["tensor"], convert(found["box"], Box)
            assert box == Layout(MANY[name], cut[name]).box(rank)
            assert found["counts"]["infinite"] == (tensors[name][tuple(map(slice, box.start, box.stop))] > 1).sum()


@pytest.mark.parametrize("replicas", [False, True], ids=["copied", "linked"])
def test_replicas_count_once(full: Path, tmp_path: Path, cut: str, replicas: bool) -> None:
    done = reshard.convert(full, tmp_path / "out", with_cut(cut, link_replicas=replicas))
    assert done.misfits == WANTED


@pytest.mark.parametrize("workers", [1, 3])
def test_blocks_add_up(full: Path, tmp_path: Path, cut: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reshard.ops.options._MAX_BLOCK_NBYTES", 8)
    assert reshard.convert(full, tmp_path / "out", with_cut(cut, workers=workers)).misfits == WANTED


def test_the_last_share_tells_of_all(full: Path, tmp_path: Path, cut: str) -> None:
    first, last = (
        reshard.convert(full, tmp_path / "out", with_cut(cut, share=Share(index, 2))).misfits for index in range(2)
    )
    assert last == WANTED
    assert sum(m.infinite for m in first) <= 3


def test_ranks_of_several_runs_are_told_together(full: Path, tmp_path: Path, cut: str) -> None:
    reshard.convert(full, tmp_path / "out", with_cut(cut, ranks=frozenset({0})))
    done = reshard.convert(full, tmp_path / "out", with_cut(cut, ranks=frozenset({1, 2, 3})))
    assert done.misfits == WANTED


def test_files_that_an_earlier_run_made_are_told_of(full: Path, tmp_path: Path, cut: str) -> None:
    reshard.convert(full, tmp_path / "out", with_cut(cut))
    done = reshard.convert(full, tmp_path / "out", with_cut(cut, resume=True))
    assert done.skipped_files == 4
    assert done.misfits == WANTED


def test_a_nan_of_a_factor_is_told(tmp_path: Path) -> None:
    a = np.ones((1, 6), np.float32)
    a[0, 2] = np.nan
    tensors = {"l.weight": np.ones((4, 6), np.float32), "l.lora_A": a, "l.lora_B": np.ones((4, 1), np.float32)}
    tensors |= {"k.weight": np.ones((4, 6), np.float32), "k.lora_A": a * 0 + 1, "k.lora_B": np.ones((4, 1), np.float32)}
    tensors["k.lora_A"][0, 2] = 1
    tensors["k.lora_B"][1, 0] = np.inf
    source = write_file(tmp_path / "in.safetensors", tensors)
    done = merge_lora(source, tmp_path / "out.safetensors", lora_config(scaling="1"), Options(fsync=False))
    assert set(done.misfits) == {Misfits("l.weight", "float32", nan=4), Misfits("k.weight", "float32", infinite=6)}


def test_a_sum_in_fp8_that_is_too_large_is_told(tmp_path: Path) -> None:
    factors = {"l.lora_A": np.full((1, 6), 100, np.float32), "l.lora_B": np.full((4, 1), 100, np.float32)}
    source = write_file(tmp_path / "in.safetensors", {"l.weight": np.ones((4, 6), np.float32), **factors})
    options = Options(dtype="float8_e4m3fn", fsync=False)
    done = merge_lora(source, tmp_path / "out.safetensors", lora_config(scaling="1"), options)
    assert done.misfits == (Misfits("l.weight", "float8_e4m3fn", largest=24),)
    assert (read_file(tmp_path / "out.safetensors")["l.weight"].astype(np.float32) == 448).all()


def test_the_manifest_keeps_them(full: Path, tmp_path: Path, cut: str) -> None:
    reshard.convert(full, tmp_path / "out", with_cut(cut))
    files = json.loads((tmp_path / "out/.reshard/manifest.json").read_text())["files"]
    assert [f["misfits"][0]["counts"]["infinite"] for f in files] == [2, 1, 2, 1]
    reshard.convert(full, tmp_path / "same", Options(dst_strategy=cut, fsync=False))
    assert "misfits" not in (tmp_path / "same/.reshard/manifest.json").read_text()
