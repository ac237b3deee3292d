from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

import reshard
from making import array, write_file, write_strategy
from reshard.cli.main import main
from reshard.errors import CheckpointError, DifferenceError, InputError
from reshard.index import TensorSpec
from reshard.layout.box import Box
from reshard.layout.tensor import Sharding
from reshard.ops.options import Options
from reshard.target.manifest import MANIFEST, read_manifest
from reshard.target.target_paths import META, Place


@pytest.fixture
def out(tmp_path: Path) -> Path:
    src = write_file(tmp_path / "full.ckpt", {"w": array((8,)), "b": array((4,), "bfloat16", 1)})
    strategy = write_strategy(tmp_path / "new", [{"w": Sharding((2,), ((0,),)), "b": Sharding((2,), ((),))}])
    reshard.convert(src, tmp_path / "out", Options(dst_strategy=str(strategy), fsync=False))
    return tmp_path / "out"


def test_it_says_where_each_shard_lies(out: Path) -> None:
    manifest = read_manifest(Place.of(out, single=False))
    assert (manifest.world, manifest.complete) == (2, True)
    for file in manifest.files:
        w, b = file.shards()["w"], file.shards()["b"]
        assert (w.cut.spec, w.cut.full_shape, w.cut.box.start) == (TensorSpec("float32", (4,)), (8,), (4 * file.rank,))
        assert (b.cut.full_shape, b.cut.box) == ((4,), Box((0,), (4,)))
        held = b"".join((out / file.path).read_bytes()[e.offset : e.end] for e in w.extents)
        assert held == array((8,))[4 * file.rank : 4 * file.rank + 4].tobytes()


def test_it_covers_every_byte(out: Path) -> None:
    for file in read_manifest(Place.of(out, single=False)).files:
        assert sum(r.nbytes for r in file.runs) == file.nbytes == (out / file.path).stat().st_size


def test_any_changed_byte_is_found(out: Path) -> None:
    path = out / "rank_1" / "checkpoint_1.ckpt"
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(DifferenceError, match=r"rank_1/checkpoint_1\.ckpt: bytes"):
            reshard.verify(out)
    path.write_bytes(data)
    assert reshard.verify(out).files == 2


def test_a_changed_tensor_is_named(out: Path) -> None:
    path = out / "rank_0" / "checkpoint_0.ckpt"
    data = bytearray(path.read_bytes())
    data[data.index(array((4,), "bfloat16", 1).tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(DifferenceError, match=r"changed \(w, b\)"):
        reshard.verify(out)


def test_a_missing_file_and_one_of_other_length_are_both_told(out: Path) -> None:
    (out / "rank_0" / "checkpoint_0.ckpt").unlink()
    (out / "rank_1" / "checkpoint_1.ckpt").write_bytes(b"")
    with pytest.raises(DifferenceError) as caught:
        reshard.verify(out)
    assert "checkpoint_0.ckpt: missing" in caught.value.message
    assert "checkpoint_1.ckpt: 0 bytes, the manifest has" in caught.value.message


def test_weight_files_that_it_does_not_know_are_told(out: Path) -> None:
    assert reshard.verify(out).unlisted == ()
    for name in ("rank_0/other.ckpt", "rank_7/checkpoint_7.ckpt", "full.safetensors", "rank_0/notes.txt"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"")
    assert reshard.verify(out).unlisted == ("full.safetensors", "rank_0/other.ckpt", "rank_7/checkpoint_7.ckpt")


def test_beside_a_target_that_is_one_file_others_may_lie(tmp_path: Path) -> None:
    src = write_file(tmp_path / "full.ckpt", {"w": array((8,))})
    reshard.convert(src, tmp_path / "half.ckpt", Options(dtype="float16", fsync=False))
    assert reshard.verify(tmp_path / "half.ckpt").unlisted == ()


def test_options_of_the_comparison_with_a_source_need_one(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "rank_0" / "other.ckpt").write_bytes(b"")
    for more, code in (([], 0), (["--include", "w"], 2), (["--dst-strategy", "x"], 2)):
        with pytest.raises(SystemExit) as stop:
            main(["verify", str(out), *more])
        assert (stop.value.code or 0) == code
        said = capsys.readouterr().err
        assert ("warning: not in the manifest, and not compared: rank_0/other.ckpt" in said) == (not code)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no manifest"):
        reshard.verify(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff"])
def test_what_is_no_manifest(out: Path, content: bytes) -> None:
    (out / META / MANIFEST).write_bytes(content)
    with pytest.raises(InputError, match="not a manifest"):
        reshard.verify(out)


def test_a_manifest_of_another_release(out: Path) -> None:
    path = out / META / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"schema":3', b'"schema":9'))
    with pytest.raises(InputError, match="schema 9"):
        reshard.verify(out)


def test_without_hashes_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    src = write_file(tmp_path / "full.ckpt", {"w": array((8,))})
    reshard.convert(src, tmp_path / "out", Options(checksum=False, fsync=False))
    with pytest.raises(CheckpointError, match="nothing to compare with"):
        reshard.verify(tmp_path / "out")


def test_of_very_many_tensors_some_are_named(tmp_path: Path) -> None:
    src = write_file(tmp_path / "full.safetensors", {f"t{n}": array((2,), seed=n) for n in range(1000)})
    reshard.convert(src, tmp_path / "one.safetensors", Options(fsync=False))
    data = bytearray((tmp_path / "one.safetensors").read_bytes())
    (tmp_path / "one.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DifferenceError, match=r"changed \(t0, t1, t10 and 997 more\)"):
        reshard.verify(tmp_path / "one.safetensors")


def test_it_is_shorter_than_the_headers_of_very_many_small_tensors(tmp_path: Path) -> None:
    names = [f"model.layers.{n // 100}.mlp.experts.{n % 100}.scale" for n in range(2000)]
    src = write_file(tmp_path / "full.safetensors", dict.fromkeys(names, array((2, 2))))
    strategy = write_strategy(tmp_path / "new", [dict.fromkeys(names, Sharding((2,), ((0,), ())))])
    for to in (Options(), Options(dst_strategy=str(strategy)), Options(dst_strategy=str(strategy), format="ckpt")):
        out = tmp_path / f"{to.format}{bool(to.dst_strategy)}"
        reshard.convert(src, out, replace(to, fsync=False))
        made = [path for path in out.rglob("*") if path.suffix in (".ckpt", ".safetensors")]
        assert (out / META / MANIFEST).stat().st_size < 0.8 * sum(path.stat().st_size for path in made)
