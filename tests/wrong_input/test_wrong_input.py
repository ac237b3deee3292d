"""What a user may get wrong: each ends in one line, the right exit code, and nothing that looks finished."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import refused, run

from making import array, read_rank, same, shard_of, write_file, write_ranks, write_strategy
from reshard.layout.tensor import Sharding

USAGE, INPUT, STORAGE = 2, 3, 4
CUT = Sharding((2,), ((0,), ()))
WHOLE = Sharding((2,), ((), ()))
FULL = {"a": array((4, 6), seed=1), "b": array((8, 2), seed=2)}


class Work:
    """Two ranks that each hold half of ``a`` and of ``b``, and strategies to cut them otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.old = write_strategy(folder / "old", [{"a": CUT, "b": CUT}])
        self.new = write_strategy(folder / "new", [{"a": WHOLE, "b": WHOLE}])
        self.src = write_ranks(folder / "src", FULL, [{"a": CUT, "b": CUT}])

    def file(self, rank: int) -> Path:
        return self.src / f"rank_{rank}" / f"model_{rank}.ckpt"

    def command(self, *more: str | Path) -> tuple[str | Path, ...]:
        return ("convert", self.src, self.out, "--src-strategy", self.old, "--dst-strategy", self.new, *more)

    def refused(self, code: int, *more: str | Path) -> str:
        return refused(code, *self.command(*more), target=self.out)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def test_nothing_wrong(work: Work) -> None:
    said = run(*work.command())
    assert (said.code, said.err) == (0, "")
    assert same(read_rank(work.out, 1)["b"], FULL["b"])


# --- the source is incomplete


def test_rank_missing_that_no_replica_holds(work: Work) -> None:
    shutil.rmtree(work.src / "rank_1")
    error = work.refused(INPUT)
    assert "a: 50% missing, from [2, 0] to [4, 6] of [4, 6]; rank 1 should hold it" in error


def test_rank_missing_that_no_replica_holds_with_drop(work: Work) -> None:
    shutil.rmtree(work.src / "rank_1")
    assert "rank 1 should hold it" in work.refused(INPUT, "--missing", "drop")


def test_rank_missing_that_a_replica_holds(tmp_path: Path) -> None:
    replicated = Sharding((2, 2), ((0,), ()))
    stages = [dict.fromkeys(FULL, replicated)]
    strategy = write_strategy(tmp_path / "old", stages)
    src = write_ranks(tmp_path / "src", FULL, stages)
    shutil.rmtree(src / "rank_1")
    said = run("merge", src, tmp_path / "out", "--src-strategy", strategy)
    assert said.code == 0, said
    assert len(said.warnings) == 1
    assert "rank_1" in said.warnings[0]
    found = read_rank(tmp_path / "out", 0)
    assert all(same(found[name], FULL[name]) for name in FULL)


def test_tensor_missing(work: Work) -> None:
    for rank in range(2):
        write_file(work.file(rank), {"a": shard_of(FULL["a"], CUT, rank)})
    assert "b: no source file holds it" in work.refused(INPUT)


def test_tensor_missing_in_one_rank(work: Work) -> None:
    write_file(work.file(1), {"a": shard_of(FULL["a"], CUT, 1)})
    assert "b: 50% missing" in work.refused(INPUT)


def test_empty_folder(work: Work) -> None:
    shutil.rmtree(work.src)
    work.src.mkdir()
    assert "no weight files" in work.refused(INPUT)


def test_empty_rank_folders(work: Work) -> None:
    for rank in range(2):
        work.file(rank).unlink()
    assert "the rank_x folders hold no weight files" in work.refused(INPUT)


def test_no_such_source(work: Work) -> None:
    shutil.rmtree(work.src)
    assert f"{work.src}: no such file or folder" in work.refused(INPUT)


# --- a file is broken


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("left", [0.0, 0.3, 0.99])
def test_truncated_file(work: Work, suffix: str, left: float) -> None:
    whole = write_file(work.folder / f"full{suffix}", FULL)
    whole.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * left)])
    error = refused(INPUT, "split", whole, work.out, "--dst-strategy", work.new, target=work.out)
    assert str(whole) in error


def test_header_announces_more_than_there_is(work: Work) -> None:
    whole = write_file(work.folder / "full.safetensors", FULL)
    whole.write_bytes((1 << 40).to_bytes(8, "little") + whole.read_bytes()[8:])
    error = refused(INPUT, "split", whole, work.out, "--dst-strategy", work.new, target=work.out)
    assert "1,099,511,627,776 bytes is announced" in error


def test_header_lies_about_a_shape(work: Work) -> None:
    whole = write_file(work.folder / "full.safetensors", FULL)
    whole.write_bytes(whole.read_bytes().replace(b"[4,6]", b"[4,7]"))
    error = refused(INPUT, "split", whole, work.out, "--dst-strategy", work.new, target=work.out)
    assert "tensor 'a' is 'F32'" in error or "tensor 'a' is F32" in error


def test_not_a_weight_file(work: Work) -> None:
    text = work.folder / "model.ckpt"
    text.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    refused(INPUT, "split", text, work.out, "--dst-strategy", work.new, target=work.out)


def test_unknown_suffix(work: Work) -> None:
    other = work.folder / "model.npz"
    other.write_bytes(b"\0" * 64)
    error = refused(INPUT, "split", other, work.out, "--dst-strategy", work.new, target=work.out)
    assert ".pth or .safetensors" in error


def test_formats_mixed_in_one_rank(work: Work) -> None:
    write_file(work.src / "rank_1" / "model_1.safetensors", {})
    assert "two formats in one rank folder" in work.refused(INPUT)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".bin"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><title>Sign in</title></html>", "web page"),
        (b"GGUF\3\0\0\0" + bytes(64), "GGUF"),
        (b"\x1f\x8b\x08" + bytes(64), "gzip"),
    ],
)
def test_what_a_file_is_instead(work: Work, suffix: str, content: bytes, said: str) -> None:
    strange = work.folder / f"strange{suffix}"
    strange.write_bytes(content)
    error = refused(INPUT, "split", strange, work.out, "--dst-strategy", work.new, target=work.out)
    assert said in error
    assert str(strange) in error


@pytest.mark.parametrize(
    ("name", "other"), [("a.ckpt", "b.safetensors"), ("a.safetensors", "b.ckpt"), ("a.pt", "b.safetensors")]
)
def test_a_file_under_the_name_of_another_format(work: Work, name: str, other: str) -> None:
    made = work.folder / name
    run("convert", write_file(work.folder / "full.ckpt", FULL), made)
    made.rename(work.folder / other)
    error = refused(INPUT, "convert", work.folder / other, work.folder / "out.ckpt")
    assert f"rename it: {'its name has to end in' if name != 'a.pt' else 'PyTorch'}" in error
    assert made.suffix in error


def test_a_header_above_the_limit(work: Work) -> None:
    large = work.folder / "large.safetensors"
    with large.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little") + b"{")
        file.truncate(100_000_100)
    error = refused(INPUT, "inspect", large)
    assert "a header of 100,000,001 bytes, 100,000,000 bytes at most" in error


@pytest.mark.parametrize("dry", [False, True])
def test_a_part_alone_is_no_whole(work: Work, dry: bool) -> None:
    part = write_file(work.folder / "m-00001-of-00002.safetensors", FULL)
    for target in ("out.safetensors", "m-00002-of-00002.safetensors", "folder"):
        if not dry:
            error = refused(INPUT, "convert", part, work.folder / target, target=work.folder / target)
            assert "m-00001-of-00002.safetensors: part 1 of 2" in error
    said = run("inspect", part)
    assert (said.code, len(said.warnings)) == (0, 1)
    assert run("convert", part, work.out / "m-00001-of-00002.ckpt", *(["--dry-run"] if dry else [])).code == 0


def test_empty_rank_beside_a_full_one(work: Work) -> None:
    work.file(1).unlink()
    error = refused(INPUT, "merge", work.src, work.out, target=work.out)
    assert "2 rank folders (1 without a weight file) and no strategy" in error


# --- the strategy does not fit


def test_strategy_of_another_model(work: Work) -> None:
    shutil.rmtree(work.new)
    write_strategy(work.new, [{"a": WHOLE, "other": WHOLE}])
    error = work.refused(INPUT)
    assert "b: only the source's strategy has it" in error
    assert "other: no source file holds it" in error


def test_strategy_of_another_job(work: Work) -> None:
    shutil.rmtree(work.old)
    write_strategy(work.old, [dict.fromkeys(FULL, Sharding((1,), ((), ())))])
    assert "rank_1 to rank_1 are beyond the 1 rank " in work.refused(INPUT)


def test_strategy_cuts_other_dims(work: Work) -> None:
    shutil.rmtree(work.old)
    write_strategy(work.old, [dict.fromkeys(FULL, Sharding((2,), ((0,),)))])
    assert "the strategy cuts 1 dims, the shard has 2" in work.refused(INPUT)


def test_strategy_that_does_not_divide(work: Work) -> None:
    shutil.rmtree(work.new)
    write_strategy(work.new, [dict.fromkeys(FULL, Sharding((3,), ((0,), ())))])
    error = work.refused(INPUT)
    assert "a: dim 0 of [4, 6] has 4, not divisible into 3 parts" in error
    assert "b: dim 0 of [8, 2] has 8, not divisible into 3 parts" in error


def two_stages(folder: Path) -> tuple[Path, Path]:
    stages = [{"a": CUT}, {"b": CUT}]
    return write_ranks(folder / "pp", FULL, stages), write_strategy(folder / "pp_strategy", stages)


def test_strategy_of_the_first_of_two_stages(tmp_path: Path) -> None:
    src, strategy = two_stages(tmp_path)
    out = tmp_path / "out"
    error = refused(3, "merge", src, out, "--src-strategy", strategy / "ckpt_strategy_rank_0.ckpt", target=out)
    assert "rank_2 to rank_3 are beyond the 2 ranks" in error
    assert "one pipeline stage" in error


def test_strategy_of_the_last_of_two_stages(tmp_path: Path) -> None:
    src, strategy = two_stages(tmp_path)
    out = tmp_path / "out"
    error = refused(3, "merge", src, out, "--src-strategy", strategy / "ckpt_strategy_rank_2.ckpt", target=out)
    assert "stage 1 alone" in error


def test_strategy_folder_without_the_first_stage(tmp_path: Path) -> None:
    src, strategy = two_stages(tmp_path)
    (strategy / "ckpt_strategy_rank_0.ckpt").unlink()
    error = refused(INPUT, "merge", src, tmp_path / "out", "--src-strategy", strategy, target=tmp_path / "out")
    assert "1 found, 0 missing" in error


def test_weights_given_as_a_strategy(work: Work) -> None:
    weights = write_file(work.folder / "full.ckpt", FULL)
    error = refused(INPUT, "split", weights, work.out, "--dst-strategy", weights, target=work.out)
    assert str(weights) in error


def test_no_such_strategy(work: Work) -> None:
    shutil.rmtree(work.new)
    assert f"{work.new}: no such file or folder" in work.refused(INPUT)


def test_rank_folders_without_strategy(work: Work) -> None:
    error = refused(INPUT, "convert", work.src, work.out, "--dst-strategy", work.new, target=work.out)
    assert "--src-strategy" in error


# --- the command is wrong


def test_target_not_empty(work: Work) -> None:
    work.out.mkdir()
    (work.out / "notes.txt").write_text("mine")
    assert "not empty" in work.refused(USAGE)
    assert (work.out / "notes.txt").read_text() == "mine"


def test_target_inside_the_source_rank_folders_is_untouched(work: Work) -> None:
    before = {p: p.read_bytes() for p in work.src.rglob("*.ckpt")}
    for more in ([], ["--overwrite"], ["--resume"]):
        command = ["convert", work.src, work.src, "--src-strategy", work.old, "--dst-strategy", work.new, *more]
        refused(USAGE, *command, target=work.src)
        assert {p: p.read_bytes() for p in work.src.rglob("*.ckpt")} == before


def test_target_that_is_the_source_file(work: Work) -> None:
    full = write_file(work.folder / "full.safetensors", FULL)
    for more in ([], ["--overwrite"], ["--resume"]):
        refused(USAGE, "convert", full, full, "--dtype", "bfloat16", *more, target=full)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prefix", "a/b"], "prefix 'a/b'"),
        (["--prefix", "/tmp/b"], "prefix '/tmp/b'"),
        (["--select", "bogus"], "natural, name, mtime, step"),
        (["--include", "("], "not a regular expression"),
        (["--exclude", "[z-a]"], "not a regular expression"),
        (["--rename", "*=>x"], "not a regular expression"),
        (["--rename", r"(a)=>\2"], "rename '(a)'"),
        (["--rename", "a"], "lacks '=>'"),
        (["--ranks", "7"], "rank 7 is not among the target's 2 ranks"),
        (["--ranks", "5-3"], "does not name ranks"),
        (["--missing", "maybe"], "error, drop"),
        (["--dtype", "int8"], "cannot cast to 'int8'"),
        (["--dtype", "float33"], "cannot cast to 'float33'"),
        (["--format", "onnx"], "ckpt, safetensors"),
        (["--checksum", "md5"], "xxh3 or off"),
        (["--workers", "0"], "--workers '0'"),
        (["--max-memory", "1KiB"], "--max-memory"),
        (["--max-memory", "lots"], "--max-memory: 'lots' is not a size"),
        (["--max-rate", "0/s"], "--max-rate: '0' is no room for anything"),
        (["--max-shard-size", "5GiB"], "has no use for --max-shard-size"),
        (["--resume", "--overwrite"], "contradict"),
    ],
)
def test_wrong_option(work: Work, options: list[str], said: str) -> None:
    assert said in work.refused(USAGE, *options)


def test_bad_regex_of_inspect(work: Work) -> None:
    assert "regular expression" in refused(USAGE, "inspect", work.src, "--tensor", "(")


def test_bad_regex_of_strategy_show(work: Work) -> None:
    assert "regular expression" in refused(USAGE, "strategy", "show", work.old, "--tensor", "(")


def test_suffix_that_no_file_has(work: Work) -> None:
    assert "no file whose name ends in '9_9'" in work.refused(INPUT, "--suffix", "9_9")


def test_format_that_contradicts_the_target_name(work: Work) -> None:
    full = write_file(work.folder / "full.ckpt", FULL)
    target = work.folder / "x.safetensors"
    refused(USAGE, "convert", full, target, "--format", "ckpt", target=target)


def test_what_the_format_cannot_hold(work: Work) -> None:
    full = write_file(work.folder / "full.safetensors", FULL)
    error = refused(INPUT, "convert", full, work.folder / "x.ckpt", "--dtype", "float8_e5m2")
    assert "tensor 'a' is float8_e5m2, which .ckpt cannot hold" in error
    assert not (work.folder / "x.ckpt").exists()


# --- the disk says no


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_no_space(tmp_path: Path, small_disk: Path) -> None:
    full = write_file(tmp_path / "full.ckpt", {"w": array((40_000,))})
    error = refused(STORAGE, "convert", full, small_disk / "out", target=small_disk)
    assert "160,0" in error
    assert "free" in error


@pytest.fixture
def powerless() -> tuple[str, ...]:
    """What goes before a command so that modes of files bind it also where root runs the tests."""
    if os.geteuid() != 0:
        return ()
    setpriv = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    if shutil.which("setpriv") is None or subprocess.run([*setpriv, "true"], capture_output=True).returncode:
        pytest.skip("root is above the modes of files, and there is no setpriv to give that up")
    return setpriv


def test_no_permission_to_write(work: Work, powerless: tuple[str, ...]) -> None:
    locked = work.folder / "locked"
    locked.mkdir(mode=0o555)
    full = write_file(work.folder / "full.ckpt", FULL)
    error = refused(STORAGE, "convert", full, locked / "out", target=locked, before=powerless)
    assert f"{locked}: not allowed to write here" in error


def test_no_permission_to_read(work: Work, powerless: tuple[str, ...]) -> None:
    work.file(1).chmod(0)
    error = refused(STORAGE, *work.command(), target=work.out, before=powerless)
    assert f"{work.file(1)}: not allowed" in error


def test_no_permission_to_list(work: Work, powerless: tuple[str, ...]) -> None:
    work.file(1).parent.chmod(0)
    error = refused(STORAGE, *work.command(), target=work.out, before=powerless)
    work.file(1).parent.chmod(0o755)
    assert f"{work.file(1).parent}: not allowed" in error


def test_no_permission_to_read_a_strategy(work: Work, powerless: tuple[str, ...]) -> None:
    strategy = work.old / "ckpt_strategy_rank_0.ckpt"
    strategy.chmod(0)
    assert str(strategy) in refused(STORAGE, *work.command(), target=work.out, before=powerless)
