"""``explain``: the bytes that it names, read by hand, are the slice; pictures and hints in the terminal."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reading_back import report_of, unfolded
from typer.testing import CliRunner

from golden.cases import unpack
from golden.readers import weight_files
from making import array, counted, shard_of, write_file, write_ranks, write_strategy
from reshard.cli.commands import app_for
from reshard.errors import CheckpointError, UsageError
from reshard.layout.tensor import Sharding
from reshard.names.wishes import Naming
from reshard.ops.explain import explain
from reshard.ops.inspect import opened
from reshard.ops.options import Options

FULL = {"w": counted(12, 8), "layers.0.bias": counted(12), "count": counted(), "adam_m.w": counted(12, 8)}
SOURCE = [
    {
        "w": Sharding((2, 2), ((0,), ()), -1), "adam_m.w": Sharding((2, 2), ((0,), ())),
        "layers.0.bias": Sharding((2, 2), ((0,),)), "count": Sharding((2, 2), ()),
    }
]  # fmt: skip
TARGET = [
    {"w": Sharding((3, 2), ((), (0,))), "layers.0.bias": Sharding((3, 2), ((1,),)), "count": Sharding((3, 2), ())}
]


@pytest.fixture(scope="module", params=[".ckpt", ".safetensors"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_ranks(folder / "ckpt", FULL, SOURCE, request.param, slice_nbytes=20)
    write_strategy(folder / "old", SOURCE)
    write_strategy(folder / "new", TARGET)
    return folder


def told(*words: str | Path) -> str:
    result = CliRunner().invoke(app_for(), ["explain", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout


def words_of(job: Path) -> list[str | Path]:
    return [job / "ckpt", "--src-strategy", job / "old", "--dst-strategy", job / "new"]


def read_extents(place: Any) -> bytes:
    content = Path(place["path"]).read_bytes()
    return b"".join(content[e["offset"] : e["offset"] + e["nbytes"]] for e in place["extents"])


@pytest.mark.parametrize("name", ["w", "layers.0.bias", "count"])
def test_source_parts_lie_where_it_says(job: Path, name: str) -> None:
    found = json.loads(told(name, *words_of(job), "--json"))
    held = [(place, part) for part in found["parts"] for place in part["held"]]
    assert sorted(place["rank"] for place, _ in held) == [0, 1, 2, 3]
    for place, part in held:
        expected = shard_of(FULL[name], SOURCE[0][name], place["rank"])
        assert read_extents(place) == expected.tobytes()
        assert part["shape"] == list(expected.shape)


@pytest.mark.parametrize("name", ["layers.0.bias", "count", "w"])
def test_bytes_that_it_names_make_each_slice(tmp_path: Path, name: str) -> None:
    """In files whose tensors lie in one piece: runs follow each other at equal distances in two dims."""
    write_ranks(tmp_path / "ckpt", FULL, SOURCE, ".safetensors")
    write_strategy(tmp_path / "old", SOURCE)
    write_strategy(tmp_path / "new", TARGET)
    found = json.loads(told(name, *words_of(tmp_path), "--json"))
    (target,) = found["targets"]
    made = {place["rank"]: part for part in target["made"] for place in part["part"]["held"]}
    assert sorted(made) == [0, 1, 2, 3, 4, 5]
    for rank, part in made.items():
        slab = np.full_like(FULL[name], -1)
        for taken in part["taken"]:
            box = tuple(slice(a, a + n) for a, n in zip(taken["start"], taken["shape"], strict=True))
            slab[box] = np.frombuffer(read_runs(taken), np.float32).reshape(taken["shape"])
        mine = part["part"]
        box = tuple(slice(a, a + n) for a, n in zip(mine["start"], mine["shape"], strict=True))
        np.testing.assert_array_equal(slab[box], shard_of(FULL[name], TARGET[0][name], rank))


def read_runs(taken: Any) -> bytes:
    content = Path(taken["path"]).read_bytes()
    runs, nbytes = taken["runs"], taken["run_nbytes"]
    step = (taken["end"] - taken["offset"] - nbytes) // (runs - 1) if runs > 1 else 0
    return b"".join(content[taken["offset"] + i * step :][:nbytes] for i in range(runs))


def test_it_names_the_sources_that_the_conversion_takes(job: Path, tmp_path: Path) -> None:
    """Replicas: what is named is what is read. Without these very bytes the target would not be what it is."""
    found = json.loads(told("layers.0.bias", *words_of(job), "--json"))
    for taken in (t for made in found["targets"][0]["made"] for t in made["taken"]):
        path = Path(taken["path"])
        content = bytearray(path.read_bytes())
        content[taken["offset"] : taken["offset"] + 4] = np.float32(77).tobytes()
        path.write_bytes(content)
    words = [str(w) for w in words_of(job)]
    CliRunner().invoke(app_for(), ["convert", words[0], str(tmp_path / "out"), *words[1:], "--quiet"])
    made = {p["rank"]: p for m in found["targets"][0]["made"] for p in m["part"]["held"]}
    for place in made.values():
        here = read_extents({**place, "path": str(tmp_path / "out" / place["path"])})
        assert np.float32(77) in np.frombuffer(here, np.float32)
    write_ranks(job / "ckpt", FULL, SOURCE, path.suffix, slice_nbytes=20)


def test_what_a_terminal_shows(job: Path) -> None:
    shown = told("w", job / "ckpt", "--src-strategy", job / "old")
    assert "w: float32[12, 8], 384 B" in shown
    assert "dim 0 downwards: 12 in 4 parts of 3; dim 1 across: 8" in shown
    assert [line for line in shown.splitlines() if line.startswith("| ")] == ["| 0 |", "| 2 |", "| 1 |", "| 3 |"]
    assert "the optimizer shard cuts dim 0 in 2 more" in shown
    assert "target" not in shown
    both = told("w", *words_of(job), "--on-rank", "4")
    assert "1,3,5" not in both
    assert "target: cut in 1×2 parts" in both


def test_a_tensor_that_the_target_does_not_get(job: Path) -> None:
    assert "target: does not get it; dropped: optimizer states" in told("adam_m.w", *words_of(job))


def test_a_name_after_renaming(job: Path) -> None:
    shown = told("w", *words_of(job)[:3], "--rename", "^w$=>x")
    assert shown == told("x", *words_of(job)[:3], "--rename", "^w$=>x")


def test_a_wrong_name_gives_the_closest(job: Path) -> None:
    options = Options(src_strategy=str(job / "old"))
    with pytest.raises(UsageError, match="no tensor is called") as error:
        explain("layer.0.bais", job / "ckpt", options)
    assert "layers.0.bias" in error.value.hint
    with pytest.raises(UsageError, match="inspect lists all") as error:
        explain("zzzzzz", job / "ckpt", options)


def test_a_rank_that_there_is_not(job: Path) -> None:
    options = Options(src_strategy=str(job / "old"), dst_strategy=str(job / "new"))
    with pytest.raises(UsageError, match="target rank 6 does not get w"):
        explain("w", job / "ckpt", options, rank=6)


def test_a_full_file_and_an_empty_tensor(tmp_path: Path) -> None:
    path = write_file(tmp_path / "full.safetensors", {"none": counted(0, 4), "one": counted()})
    assert "none: float32[0, 4], 0 B" in told("none", path)
    assert "one value" in told("one", path)


def test_a_missing_slice_is_shown_and_why_the_whole_is_refused(job: Path, tmp_path: Path) -> None:
    suffix = next((job / "ckpt/rank_0").iterdir()).suffix
    write_ranks(tmp_path / "ckpt", FULL, SOURCE, suffix)
    next((tmp_path / "ckpt/rank_2").iterdir()).unlink()
    (tmp_path / "ckpt/rank_2").rmdir()
    shown = told("w", tmp_path / "ckpt", "--src-strategy", job / "old")
    assert "| MISSING |" in shown
    assert "rank 2 should hold it" in shown
    words = [tmp_path / "ckpt", "--src-strategy", job / "old", "--dst-strategy", job / "new"]
    result = CliRunner().invoke(app_for(), ["explain", "layers.0.bias", *map(str, words)])
    assert result.exit_code == 0
    assert "the whole conversion is refused" in result.stderr


GOLDEN = ["dp2mp2pp2_to_dp1mp4pp2", "dp4mp2_optshard_to_dp2mp4", "full_to_layout_tuple", "layout_tuple_to_full"]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_case_is_explained_and_reported(name: str, tmp_path: Path) -> None:
    case = unpack(name, tmp_path)
    src, dst = (str(case.strategy(side) or "") for side in ("src", "dst"))
    files = weight_files(case.folder / "src")
    given = str(files[0] if len(files) == 1 else case.folder / "src")
    options = Options(src_strategy=src, dst_strategy=dst, missing="drop")
    names = list(opened(given, src).tensors)
    for tensor in names[::7]:
        found = explain(tensor, given, options)
        assert bool(found.targets) == (bool(dst) and not found.fate)
        for made in (made for target in found.targets for made in target.made):
            assert sum(prod(t.shape) for t in made.taken) == prod(made.part.shape)
    page = tmp_path / "case.html"
    words = [w for side, path in (("src", src), ("dst", dst)) if path for w in (f"--{side}-strategy", path)]
    result = CliRunner().invoke(app_for(), ["plan", given, *words, "--missing", "drop", "--report", str(page)])
    assert result.exit_code == 0, result.output
    report = report_of(page)
    assert {n for k in report["kinds"] for same in k["names"] for n in unfolded(same)} <= {*names}
    moved = report["conversions"][0]["movement"]["nbytes"]
    assert sum(map(sum, moved)) == sum(f["moved"] for f in report["conversions"][0]["target"]["files"])


def test_rank_folders_without_a_strategy_are_refused(job: Path) -> None:
    with pytest.raises(CheckpointError, match="no strategy"):
        explain("w", job / "ckpt", Options())


def test_scales_that_codes_are_multiplied_by(tmp_path: Path) -> None:
    """Both are read where it says; a name that goes into another tensor is told of as such."""
    codes, scales = array((6, 8), "int8", seed=1), array((3, 2), seed=2)
    write_file(tmp_path / "in" / "model.safetensors", {"up.weight": codes, "up.weight_scale": scales})
    (tmp_path / "in" / "config.json").write_text('{"quantization_config": {"weight_block_size": [2, 4]}}')
    write_strategy(tmp_path / "s", [{"up.weight": Sharding((2,), ((), (0,)))}])
    words = [tmp_path / "in", "--dequantize", "--dst-strategy", tmp_path / "s"]
    found = json.loads(told("up.weight", *words, "--json"))
    assert found["block"] == [2, 4]
    assert b"".join(read_extents(p["held"][0]) for p in found["scales"]) == scales.tobytes()
    for rank, made in enumerate(found["targets"][0]["made"]):
        of_codes, of_scales = (read_runs(taken) for taken in made["taken"])
        assert of_codes == codes[:, 4 * rank : 4 * rank + 4].tobytes()
        assert of_scales == scales[:, rank].tobytes()
        assert [taken["scales"] for taken in made["taken"]] == [False, True]
    assert "multiplied by scales, one for 2×4 elements" in told("up.weight", *words)
    assert "multiplied by its scales, as bfloat16" in told("up.weight", *words)
    with pytest.raises(UsageError, match="is left out: scales"):
        explain("up.weight_scale", tmp_path / "in", Options(naming=Naming(dequantize=True)))
