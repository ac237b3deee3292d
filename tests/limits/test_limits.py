"""Promises that do not depend on the machine: memory under a limit, bytes and calls, growth of plans."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import reshard
from reshard import Options
from reshard.formats.registry import format_named
from reshard.index import TensorSpec
from reshard.layout.tensor import Sharding
from reshard.ops.convert import execute
from reshard.ops.observer import Observer
from reshard.storage.machine import auto_workers, paced
from reshard.strategy.protobuf import encode_layout, encode_made, write_protobuf

MIB = 1 << 20
COLUMN, ROW = ((0,), ()), ((), (0,))


def sparse_file(path: Path, specs: dict[str, TensorSpec]) -> Path:
    """A full checkpoint of zeros that takes no room on the disk."""
    frame = format_named(path.suffix[1:]).frame(specs, {}, {})
    with path.open("wb") as file:
        file.truncate(frame.nbytes)
        for offset, piece in frame.pieces:
            file.seek(offset)
            file.write(piece)
    return path


def strategy(path: Path, dp: int, mp: int, maps: dict[str, tuple[tuple[int, ...], ...]]) -> str:
    path.write_bytes(
        write_protobuf([encode_made(0)], {n: encode_layout(Sharding((dp, mp), m)) for n, m in maps.items()}, 1)
    )
    return str(path)


def limited(nbytes: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (nbytes, nbytes))


@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_max_memory_is_kept_under_a_hard_limit(tmp_path: Path, form: str) -> None:
    """Tensors of 320 MiB, cut along either dim, in a process that may not have 200 MiB of data."""
    specs = {"a": TensorSpec("bfloat16", (10240, 16384)), "b": TensorSpec("bfloat16", (16384, 10240))}
    source = sparse_file(tmp_path / f"full.{form}", specs)
    target = strategy(tmp_path / "s.ckpt", 1, 4, {"a": COLUMN, "b": ROW})
    program = str(Path(sys.executable).with_name("reshard"))
    argv = [program, "convert", str(source), str(tmp_path / "out"), "--dst-strategy", target, "--workers", "2"]
    argv += ["--max-memory", "200MiB", "--no-fsync", "--quiet"]
    done = subprocess.run(argv, preexec_fn=limited(200 * MIB), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    sizes = {p.stat().st_size // MIB for p in (tmp_path / "out").glob(f"rank_*/*.{form}")}
    assert sizes == {160}


def test_a_limit_below_what_is_needed_is_refused(tmp_path: Path) -> None:
    source = sparse_file(tmp_path / "full.ckpt", {"a": TensorSpec("float32", (4, 4))})
    with pytest.raises(reshard.ReshardError, match=r"max-memory of 1,000 bytes is below"):
        reshard.convert(source, tmp_path / "out", Options(max_memory_nbytes=1000))


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Bytes that each call of an ``os`` function moves from now on."""
    calls: list[int] = []
    real = getattr(os, name)

    def counting(*args: object) -> int:
        moved: int = real(*args)
        calls.append(moved)
        return moved

    monkeypatch.setattr(os, name, counting)
    return calls


@pytest.mark.parametrize("tensor_map", [COLUMN, ROW])
def test_calls_and_bytes_of_a_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor_map: tuple[tuple[int, ...], ...]
) -> None:
    """64 MiB into 8 ranks, whichever dim is cut: read once for all, in blocks of 16 MiB, and written by the MiB."""
    source = sparse_file(tmp_path / "full.safetensors", {"a": TensorSpec("float32", (4096, 4096))})
    options = Options(dst_strategy=strategy(tmp_path / "s.ckpt", 1, 8, {"a": tensor_map}), fsync=False)
    plan = reshard.plan(source, tmp_path / "out", options)
    read, written = count_calls(monkeypatch, "preadv"), count_calls(monkeypatch, "pwrite")
    done = execute(plan, tmp_path / "out", options, Observer())
    assert [n for n in read if n > MIB] == [16 * MIB] * 4
    assert sum(n for n in read if n > MIB) == done.read_nbytes == done.bill.needed_nbytes == 64 * MIB
    assert [n for n in written if n >= MIB] == [MIB] * 64


def test_a_copy_does_not_wait_for_what_only_cuts_casts_and_hashes_of_others_need(tmp_path: Path) -> None:
    source = sparse_file(tmp_path / "full.safetensors", {"a": TensorSpec("bfloat16", (64, 64))})
    code = (
        "import sys; from reshard.cli.main import main\n"
        f"try: main(['convert', {str(source)!r}, {str(tmp_path / 'out')!r}, '--quiet'])\n"
        "except SystemExit as end: sys.exit(end.code or bool({'numpy', 'ml_dtypes', 'hashlib'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert list(tmp_path.glob("out/rank_0/*.safetensors"))


def test_a_plan_grows_as_its_tensors_and_not_as_its_copies(tmp_path: Path) -> None:
    sizes = []
    for layers in (10, 40, 160):
        specs = {f"layers.{i}.w": TensorSpec("float32", (64, 64)) for i in range(layers)}
        source = sparse_file(tmp_path / f"{layers}.safetensors", specs)
        target = strategy(tmp_path / f"{layers}.ckpt", 4, 16, dict.fromkeys(specs, COLUMN))
        sizes.append(len(reshard.plan(source, tmp_path / "out", Options(dst_strategy=target)).to_json()))
    assert sizes[2] < 4.5 * sizes[1]
    assert sizes[1] < 4.5 * sizes[0]


def test_linked_replicas_are_written_once(tmp_path: Path) -> None:
    values = np.arange(4096, dtype=np.float32).reshape(64, 64)
    save_file({"a": values}, tmp_path / "full.safetensors")
    target = strategy(tmp_path / "s.ckpt", 8, 1, {"a": ((), ())})
    options = Options(dst_strategy=target, link_replicas=True)
    done = reshard.convert(tmp_path / "full.safetensors", tmp_path / "out", options)
    files = sorted((tmp_path / "out").glob("rank_*/*.safetensors"))
    assert len(files) == 8
    assert done.written_nbytes == files[0].stat().st_size == done.bill.written_nbytes
    assert done.bill.linked_files == 7
    assert len({p.read_bytes() for p in files}) == 1
    assert reshard.verify(tmp_path / "out").files == 8
    if files[0].stat().st_nlink == 8:
        assert "hard links" in done.warnings[0]


def test_a_rate_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of our own: ten calls of 100 bytes at 1,000 a second take a second."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    seen: list[int] = []
    slow = paced(seen.append, 1000)
    for _ in range(10):
        slow(100)
    assert sum(seen) == 1000
    assert now[0] == pytest.approx(1.0)


def test_workers_suit_a_network_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert 2 <= auto_workers([str(tmp_path)]) <= 8
    monkeypatch.setattr("reshard.storage.machine._mounts", lambda: {"/": ("ext4", ""), str(tmp_path): ("nfs4", "")})
    assert auto_workers([str(tmp_path / "out")]) == 16
