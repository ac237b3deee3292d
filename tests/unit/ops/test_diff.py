from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from hub_model import qwen3, write_hub
from making import array, counted, read_file, write_file, write_ranks, write_strategy
from reshard.cli.environment import original
from reshard.cli.main import main
from reshard.errors import CheckpointError, DifferenceError, StorageError, UsageError
from reshard.families.discover import Found
from reshard.families.source import Source
from reshard.layout.tensor import Sharding
from reshard.moving.mover import Mover
from reshard.names.wishes import Naming
from reshard.ops.convert import convert
from reshard.ops.diff import Comparison, verify_content
from reshard.ops.options import Options
from reshard.planning.names import NameRules

FULL = {"a": array((4, 6), seed=1), "b": counted(8, 2)}


@pytest.fixture
def a(tmp_path: Path) -> Source:
    return Source(str(write_file(tmp_path / "a.ckpt", FULL)))


def against(a: Source, folder: Path, other: dict[str, np.ndarray], **more: object) -> Comparison:
    return reshard.diff(a, Source(str(write_file(folder / "b.safetensors", other))), **more)  # type: ignore[arg-type]


def changed(index: tuple[int, int], value: float) -> dict[str, np.ndarray]:
    b = FULL["b"].copy()
    b[index] = value
    return {**FULL, "b": b}


def test_equal_in_another_format(a: Source, tmp_path: Path) -> None:
    found = against(a, tmp_path, FULL)
    assert (found.equal, found.tensors, found.lines()) == (True, 2, [])


def test_the_first_element_that_differs(a: Source, tmp_path: Path) -> None:
    found = against(a, tmp_path, changed((5, 1), 0.5))
    assert found.lines() == [f"b[5, 1]: 11.0 in A, 0.5 in {tmp_path}/b.safetensors"]


@pytest.mark.parametrize("block_nbytes", [16, 1 << 20])
def test_it_is_the_first_of_the_whole_tensor_however_b_is_cut(
    block_nbytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the first part was told, here of the left columns."""
    monkeypatch.setattr("reshard.ops.diff._BLOCK_NBYTES", block_nbytes)
    full = write_file(tmp_path / "full.safetensors", {"w": counted(4, 6)})
    other = counted(4, 6)
    other[1, 5] = other[2, 3] = other[3, 0] = -1
    layout = [{"w": Sharding((3,), ((), (0,)))}]
    write_ranks(tmp_path / "cut", {"w": other}, layout)
    cut = Source(str(tmp_path / "cut"), str(write_strategy(tmp_path / "s", layout)))
    for a, b in ((full, cut), (cut, full)):
        (found,) = reshard.diff(a, b).differences
        assert found.index == (1, 5)


def test_zeros_of_other_sign_differ(a: Source, tmp_path: Path) -> None:
    (line,) = against(a, tmp_path, changed((0, 0), -0.0)).lines()
    assert line.startswith("b[0, 0]: ")


def test_nans_of_other_payload_differ_and_equal_ones_do_not(tmp_path: Path) -> None:
    bits = np.array([0x7FC00000, 0x7FC00000], np.uint32)
    a = Source(str(write_file(tmp_path / "a.ckpt", {"w": bits.view(np.float32)})))
    assert against(a, tmp_path, {"w": bits.view(np.float32)}).equal
    bits[1] += 1
    (line,) = against(a, tmp_path, {"w": bits.view(np.float32)}).lines()
    assert "0x7fc00000 in A, 0x7fc00001" in line


def test_names_shapes_and_types(a: Source, tmp_path: Path) -> None:
    found = against(a, tmp_path, {"a": FULL["a"].reshape(6, 4), "c": FULL["b"]})
    assert sorted(found.lines()) == [
        "a: type or shape: float32[4, 6] in A, float32[6, 4] in B",
        "b: only in A",
        "c: only in B",
    ]


def test_names_of_other_conventions_are_told_with_what_compares_them(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub", qwen3())
    convert(hub, tmp_path / "core.safetensors", Options(naming=Naming(dst="mcore")))
    convert(hub, tmp_path / "megatron", Options(to="megatron"))
    core, ranks = Source(str(tmp_path / "core.safetensors")), Source(str(tmp_path / "megatron"))
    assert reshard.diff(Source(str(hub)), core).hint.endswith(
        "reshard verify A B --dst-names mcore compares what they hold"
    )
    assert reshard.diff(ranks, hub).hint.startswith("A has names of megatron, B of hf: ")
    with pytest.raises(DifferenceError) as told:
        verify_content(hub, tmp_path / "megatron")
    assert "--dst-names megatron" in told.value.hint
    verify_content(Source(str(hub)), ranks, naming=Naming(dst="megatron"))


def test_only_the_names_that_are_asked_for(a: Source, tmp_path: Path) -> None:
    rules = NameRules(include=("^a$",), rename=(("a", "x"),))
    assert against(a, tmp_path, {"x": FULL["a"], "zzz": FULL["b"]}, rules=rules).tensors == 1


def test_a_replica_that_differs_is_found_by_verify(a: Source, tmp_path: Path) -> None:
    stages = [dict.fromkeys(FULL, Sharding((2,), ((), ())))]
    strategy = str(write_strategy(tmp_path / "s", stages))
    out = write_ranks(tmp_path / "out", FULL, stages)
    target = Source(str(out), strategy)
    assert reshard.verify_content(a, target).nbytes == 2 * (96 + 64)
    write_file(out / "rank_1" / "model_1.ckpt", changed((7, 1), 9.0))
    assert reshard.diff(a, target).equal
    with pytest.raises(DifferenceError, match=r"b\[7, 1\]: 15.0 in A, 9.0 in .*rank_1"):
        reshard.verify_content(a, target)


@pytest.mark.parametrize("odd", range(4))
def test_a_value_that_nobody_calls_a_replica_is_compared_on_every_rank_of_b(odd: int, tmp_path: Path) -> None:
    """One with another value was found where it was the first, and passed over on any other."""
    layout = {"w": Sharding((2, 2), ((1,), ()))}
    for folder, values in (("a", [1] * 4), ("b", [1 + (rank == odd) for rank in range(4)])):
        write_ranks(tmp_path / folder, {"w": counted(4, 3)}, [layout], ".safetensors")
        for rank, value in enumerate(values):
            (file,) = (tmp_path / folder / f"rank_{rank}").iterdir()
            write_file(file, {**read_file(file), "step": np.array([value], np.int32)})
    strategy = str(write_strategy(tmp_path / "s", [layout]))
    a, b = (Source(str(tmp_path / folder), strategy) for folder in "ab")
    (found,) = reshard.diff(a, b).differences
    assert str(found).startswith("step[0]: 1 in A, 2 in ")
    assert f"rank_{odd}" in found.where
    assert reshard.diff(b, a).equal  # the one that A has, as after a merge


def test_verify_knows_both_sides_by_their_own_headers(
    a: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest may tell of headers, in object storage; a proof does not ask it."""
    asked: list[Found] = []
    monkeypatch.setattr("reshard.families.headers._told_by_manifest", lambda found: asked.append(found) or {})
    b = Source(str(write_file(tmp_path / "b.safetensors", FULL)))
    assert reshard.diff(a, b).equal
    assert len(asked) == 2
    assert reshard.verify_content(a, b).equal
    assert len(asked) == 2


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_file_written_to_while_it_is_compared(
    a: Source, tmp_path: Path, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_file(tmp_path / "b.safetensors", FULL)
    real = Mover.run

    def run(self: Mover, *args: Any) -> None:
        real(self, *args)
        os.utime(a.path if side == "a" else path, (5, 5))

    monkeypatch.setattr(Mover, "run", run)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        reshard.diff(a, Source(str(path)), NameRules(include=("^a$",)))


def test_the_program_may_have_more_files_open_than_at_first_and_a_library_says_what_to_do(tmp_path: Path) -> None:
    stages = [{"w": Sharding((64,), ((0,),))}]
    full = {"w": counted(64)}
    strategy = str(write_strategy(tmp_path / "s", stages))
    src = write_ranks(tmp_path / "src", full, stages)
    whole = write_file(tmp_path / "w.ckpt", full)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = sorted(set(range(before[0])) - set(map(int, os.listdir("/proc/self/fd"))))
    few = (free[30], before[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, few)
    try:
        with pytest.raises(StorageError, match="Too many open files") as caught:
            reshard.diff(Source(str(whole)), Source(str(src), strategy))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == few
        with pytest.raises(SystemExit) as stop:
            main(["diff", str(whole), str(src), "--b-strategy", strategy])
        original()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == few
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "ulimit -n" in caught.value.hint
    assert not stop.value.code


def test_a_missing_shard_is_no_equality(a: Source, tmp_path: Path) -> None:
    stages = [dict.fromkeys(FULL, Sharding((2,), ((0,), ())))]
    strategy = str(write_strategy(tmp_path / "s", stages))
    out = write_ranks(tmp_path / "out", FULL, stages)
    (out / "rank_1" / "model_1.ckpt").unlink()
    assert sorted(reshard.diff(a, Source(str(out), strategy)).lines()) == ["a: incomplete", "b: incomplete"]


def test_strings_are_compared(tmp_path: Path) -> None:
    a = Source(str(write_file(tmp_path / "a.ckpt", FULL, {"note": "x"})))
    b = Source(str(write_file(tmp_path / "b.ckpt", FULL, {"note": "y"})))
    assert [d.name for d in reshard.diff(a, b).differences] == ["note"]
    assert reshard.diff(a, a).equal


def test_a_cast_is_checked_as_a_cast(a: Source, tmp_path: Path) -> None:
    from reshard.ops.options import Options

    target = tmp_path / "half.ckpt"
    reshard.convert(a.path, target, Options(dtype="float16", fsync=False))
    assert reshard.verify_content(a, Source(str(target)), dtype="float16").tensors == 2
    with pytest.raises(DifferenceError, match="float32"):
        reshard.verify_content(a, Source(str(target)))


def test_two_tensors_that_a_rename_makes_one_are_not_compared_as_one(tmp_path: Path) -> None:
    one = write_file(tmp_path / "a.safetensors", {"w1": counted(2), "w2": counted(2) + 1})
    two = write_file(tmp_path / "b.safetensors", {"w": counted(2) + 1})
    with pytest.raises(UsageError, match="w1 and w2 would both be called w"):
        verify_content(Source(str(one)), Source(str(two)), NameRules(rename=((r"\d", ""),)))
