"""DCP folders, ours and others': what tiles is read, what contradicts itself is told, and what we write is whole."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

import reshard
from golden.cases import run_reshard
from golden_families.test_recorded import unpacked
from making import array, differing, read_file, same, write_file
from reshard import Options
from reshard.errors import CheckpointError, FormatError, PlanError, UsageError
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.formats.dcp_metadata import read_dcp_metadata
from reshard.formats.dcp_written import WrittenChunk, metadata_bytes
from reshard.formats.distcp import Distcp, items_of
from reshard.formats.pickle_objects import Global, Record
from reshard.formats.pickling import write_pickle
from reshard.formats.torch_file import torch_bytes
from reshard.formats.torch_values import whole
from reshard.index import Extent, TensorSpec
from reshard.planning.shares import Share

W = array((6, 4), seed=1)
TO_DCP = Options(to="dcp", fsync=False)
FULL = {
    "embed": array((32, 16), seed=3),
    "layers.0.w": array((8, 6), "bfloat16", seed=4),
    "layers.0.b": array((5,), "float64", seed=5),
    "scale": array((), seed=6),
    "none": array((0, 3), "float16"),
    "count": array((3,), "int64", seed=7),
    "mask": array((4,), "bool", seed=8),
    "small": array((2, 8), "float8_e4m3fn", seed=9),
    "unsigned": array((2, 3), "uint16", seed=10),
}


def written(
    folder: Path, held: Mapping[str, Sequence[tuple[str, tuple[int, ...], np.ndarray]]]
) -> dict[str, list[WrittenChunk]]:
    """Files of chunks, by path: (name, where it begins, values). Gives the chunks of each name."""
    folder.mkdir(exist_ok=True)
    chunks: dict[str, list[WrittenChunk]] = {}
    for path, items in held.items():
        specs = {f"{name} {start}": TensorSpec(a.dtype.name, a.shape) for name, start, a in items}
        frame, places = Distcp().frame(specs, {}, {}), items_of(specs, {}, ())
        for name, start, values in items:
            chunk = WrittenChunk(start, values.shape, path, places[f"{name} {start}"])
            chunks.setdefault(name, []).append(chunk)
        content = frame.filled({f"{name} {start}": values.tobytes() for name, start, values in items})
        (folder / path).write_bytes(content)
    return chunks


def tell(
    folder: Path, tensors: Mapping[str, tuple[tuple[int, ...], Sequence[WrittenChunk]]], dtype: str = "float32"
) -> Path:
    told = {name: (TensorSpec(dtype, shape), chunks) for name, (shape, chunks) in tensors.items()}
    (folder / ".metadata").write_bytes(metadata_bytes(told, {}))
    return folder


def two_ranks(folder: Path) -> tuple[Path, list[WrittenChunk]]:
    """W by rows, four and two, a rank each."""
    held = {"__0_0.distcp": [("w", (0, 0), W[:4])], "__1_0.distcp": [("w", (4, 0), W[4:])]}
    chunks = written(folder, held)["w"]
    return tell(folder, {"w": (W.shape, chunks)}), chunks


def values(path: Path, **more: Any) -> dict[str, np.ndarray]:
    reshard.convert(path, path.parent / "whole.safetensors", Options(fsync=False, overwrite=True, **more))
    return read_file(path.parent / "whole.safetensors")


# ---- reading


def test_what_metadata_names_counts_and_stale_files_do_not(tmp_path: Path) -> None:
    source, _ = two_ranks(tmp_path / "c")
    (source / "__7_0.distcp").write_bytes(b"of an earlier save")
    assert same(values(source)["w"], W)


def test_an_empty_chunk_begins_where_its_tensor_ends(tmp_path: Path) -> None:
    source, chunks = two_ranks(tmp_path / "c")
    more = written(source, {"__2_0.distcp": [("w", (6, 0), W[6:])]})["w"]
    assert same(values(tell(source, {"w": (W.shape, [*chunks, *more])}))["w"], W)
    unplaced = [*chunks, *more, *more]
    assert same(values(tell(source, {"w": (W.shape, unplaced)}))["w"], W)


def test_an_empty_chunk_may_be_empty_in_more_dims_than_it_is_said_to_be(tmp_path: Path) -> None:
    """PyTorch writes one so where both dims are cut: .metadata says [1, 0], and the local tensor is of shape [0, 0]."""
    source, chunks = two_ranks(tmp_path / "c")
    (empty,) = written(source, {"__2_0.distcp": [("w", (2, 4), W[:0, :0])]})["w"]
    told = replace(empty, sizes=(1, 0))
    assert same(values(tell(source, {"w": (W.shape, [*chunks, told])}))["w"], W)
    other = tell(source, {"w": (W.shape, [*chunks, replace(told, sizes=(1, 1))])})
    with pytest.raises(FormatError, match=r"w at \[2, 4\]: .metadata says .*1, 1.*the file has .*0, 0"):
        values(other)


def test_a_tensor_without_rows_needs_no_chunk(tmp_path: Path) -> None:
    source, chunks = two_ranks(tmp_path / "c")
    found = values(tell(source, {"w": (W.shape, chunks), "none": ((0, 3), [])}))
    assert found["none"].shape == (0, 3)


def test_two_chunks_are_not_the_same_bytes(tmp_path: Path) -> None:
    source, (first, last) = two_ranks(tmp_path / "c")
    again = replace(last, start=(6, 0))
    with pytest.raises(CheckpointError, match=r"w at \[4, 0\] and w at \[6, 0\] lie in the same bytes of __1_0"):
        values(tell(source, {"w": ((8, 4), [first, last, again])}))


def test_chunks_of_a_tensor_that_is_not_described_are_refused(tmp_path: Path) -> None:
    """A tensor would be left out unseen."""
    source, _ = two_ranks(tmp_path / "c")
    content = (source / ".metadata").read_bytes()
    (source / ".metadata").write_bytes(content.replace(b"\x01\x00\x00\x00w", b"\x01\x00\x00\x00v", 1))
    with pytest.raises(CheckpointError, match=r"(?s)\.metadata: chunks lie in files.*nothing says:\nw"):
        values(source)


def test_a_hole_is_refused(tmp_path: Path) -> None:
    source, chunks = two_ranks(tmp_path / "c")
    with pytest.raises(PlanError, match=r"w: 33% missing, from \[4, 0\] to \[6, 4\]"):
        values(tell(source, {"w": (W.shape, chunks[:1])}))


def test_an_overlap_is_refused(tmp_path: Path) -> None:
    source, chunks = two_ranks(tmp_path / "c")
    more = written(source, {"__2_0.distcp": [("w", (3, 0), W[3:])]})["w"]
    with pytest.raises(CheckpointError, match=r"w: .* overlap"):
        values(tell(source, {"w": (W.shape, [*chunks[:1], *more])}))


def test_a_chunk_beyond_its_tensor_is_refused(tmp_path: Path) -> None:
    source, chunks = two_ranks(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"lies beyond its shape \[5, 4\]"):
        values(tell(source, {"w": ((5, 4), chunks)}))


@pytest.mark.parametrize("path", ["../out.distcp", "/etc/passwd", "a/../../b", "", "a//b", "..\\b"])
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    source, chunks = two_ranks(tmp_path / "c")
    moved = WrittenChunk((0, 0), (4, 4), path, chunks[0].item)
    with pytest.raises(CheckpointError, match="outside of the folder"):
        values(tell(source, {"w": (W.shape, [moved, chunks[1]])}))


def test_files_may_lie_in_folders_below(tmp_path: Path) -> None:
    source, chunks = two_ranks(tmp_path / "c")
    (source / "data").mkdir()
    shutil.move(source / "__1_0.distcp", source / "data" / "__1_0.distcp")
    moved = WrittenChunk((4, 0), (2, 4), "data/__1_0.distcp", chunks[1].item)
    assert same(values(tell(source, {"w": (W.shape, [chunks[0], moved])}))["w"], W)


def test_missing_files_are_told_with_what_lay_in_them(tmp_path: Path) -> None:
    source, _ = two_ranks(tmp_path / "c")
    (source / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp: w at \[4, 0\]"):
        values(source)


@pytest.mark.parametrize("cut", [1, 100])
def test_a_file_that_is_cut_short_is_told(tmp_path: Path, cut: int) -> None:
    source, _ = two_ranks(tmp_path / "c")
    (source / "__1_0.distcp").write_bytes((source / "__1_0.distcp").read_bytes()[:-cut])
    with pytest.raises(FormatError, match=r"__1_0\.distcp: w at \[4, 0\]: bytes"):
        values(source)


def test_each_of_many_like_chunks_is_looked_at(tmp_path: Path) -> None:
    """Items of one length: one says another shape, and one another dtype, than all that begin alike."""
    rows = {f"__{rank}_0.distcp": [("w", (rank, 0), W[rank : rank + 1])] for rank in range(6)}
    chunks = written(tmp_path / "c", rows)["w"]
    source = tell(tmp_path / "c", {"w": (W.shape, chunks)})
    assert same(values(source)["w"], W)
    for other in (W[3:4].reshape(4, 1), W[3:4].view(np.int32)):
        written(source, {"__3_0.distcp": [("w", (3, 0), other)]})
        with pytest.raises(FormatError, match=r"__3_0\.distcp: w at \[3, 0\]: \.metadata says float32\[1, 4\]"):
            values(source)


def test_many_small_chunks_of_one_file(tmp_path: Path) -> None:
    """What lies near is read in one go."""
    big = array((300, 2), seed=11)
    chunks = written(tmp_path / "c", {"__0_0.distcp": [("w", (at, 0), big[at : at + 1]) for at in range(300)]})["w"]
    assert same(values(tell(tmp_path / "c", {"w": (big.shape, chunks)}))["w"], big)


def test_ranks_that_saved_alone_are_put_together(tmp_path: Path) -> None:
    source, chunks = two_ranks(tmp_path / "c")
    (source / ".metadata").unlink()
    for rank, chunk in enumerate(chunks):
        told = {"w": (TensorSpec("float32", W.shape), [chunk])}
        (source / f"__{rank}.metadata").write_bytes(metadata_bytes(told, {}))
    assert same(values(source)["w"], W)
    (source / "__1.metadata").unlink()
    with pytest.raises(CheckpointError, match=r"__1\.metadata missing"):
        values(source)


def test_a_crc_that_does_not_fit_is_told_by_name(tmp_path: Path) -> None:
    source, _ = two_ranks(tmp_path / "c")
    content = bytearray((source / "__1_0.distcp").read_bytes())
    at = content.index(W[4:].tobytes())
    content[at] ^= 1
    (source / "__1_0.distcp").write_bytes(content)
    assert not same(values(source)["w"], W)
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp: w, data/0"):
        values(source, crc=True)


def test_steps_of_torchtitan(tmp_path: Path) -> None:
    for step in (5, 10):
        two_ranks(tmp_path / f"step-{step}")
    (tmp_path / "step-20").mkdir()
    (tmp_path / "step-20" / "__0_0.distcp").write_bytes(b"")
    assert "step-10" in open_source(Source(str(tmp_path))).files[0].path
    assert "step-5" in open_source(Source(str(tmp_path), iteration=5)).files[0].path
    with pytest.raises(CheckpointError, match="step-7 is asked for"):
        open_source(Source(str(tmp_path), iteration=7))


def test_folders_of_accelerate(tmp_path: Path) -> None:
    """The model's is read, and the optimizer's told."""
    two_ranks(tmp_path / "pytorch_model_fsdp_0")
    two_ranks(tmp_path / "optimizer_0")
    found = open_source(Source(str(tmp_path)))
    assert all("pytorch_model_fsdp_0" in file.path for file in found.files)
    assert any("optimizer_0 is left out" in warning for warning in found.warnings)
    two_ranks(tmp_path / "pytorch_model_fsdp_1")
    with pytest.raises(UsageError, match="2 checkpoints lie here"):
        open_source(Source(str(tmp_path)))


def test_full_weights_beside_folders_of_steps_are_what_is_meant(tmp_path: Path) -> None:
    two_ranks(tmp_path / "step-5")
    write_file(tmp_path / "model.safetensors", {"full": W})
    (tmp_path / "scheduler.pt").write_bytes(b"of a trainer")
    assert list(open_source(Source(str(tmp_path))).tensors) == ["full"]
    (tmp_path / "model.safetensors").unlink()
    assert list(open_source(Source(str(tmp_path))).tensors) == ["w"]


def test_a_folder_of_hyper_parallel(tmp_path: Path) -> None:
    """Each rank's slices in a safetensors file, without a place in it; classes of its own."""
    kind = "hyper_parallel.checkpoint.metadata"

    def made(name: str, **state: Any) -> Record:
        return Record(Global("copyreg", "__newobj__"), (Global(kind, name),), state)

    tmp_path.joinpath("c").mkdir()
    chunks, places = [], {}
    for rank, (start, rows) in enumerate(((0, W[:4]), (4, W[4:]))):
        write_file(tmp_path / "c" / f"_rank{rank}_.safetensors", {"w": rows})
        chunks.append(made("ChunkStorageMetadata", offsets=(start, 0), sizes=rows.shape))
        place = made("StorageInfo", relative_path=f"_rank{rank}_.safetensors", offset=0, length=-1)
        places[made("MetadataIndex", fqn="w", offset=(start, 0), index=rank)] = place
    tensor = made("TensorStorageMetadata", properties=made("P", dtype="Float32"), size=W.shape, chunks=chunks)
    told = made("Metadata", state_dict_metadata={"w": tensor}, storage_data=places)
    (tmp_path / "c" / ".metadata").write_bytes(write_pickle(told))
    assert same(values(tmp_path / "c")["w"], W)


def test_a_part_of_a_shard_that_may_be_missing_is_named(tmp_path: Path) -> None:
    """In Hugging Face's form one without data has no file, and shapes are what the files hold."""
    source = unpacked("cases", "d_hf_sharded_4", tmp_path) / "src"
    name = "shard-00004-model-00001-of-00002.safetensors"
    assert not any(name in told for told in open_source(Source(str(source))).warnings)
    (source / name).unlink()
    assert any(name in told for told in open_source(Source(str(source))).warnings)


def with_an_object(folder: Path, value: Any, w: str = "w") -> Path:
    """W of two ranks, and an entry "model" that is no tensor; V is its storage."""
    folder, chunks = two_ranks(folder)
    content = torch_bytes(value, {"k": V.tobytes()})
    (folder / "__2_0.distcp").write_bytes(b"before" + content)
    told = {w: (TensorSpec("float32", W.shape), chunks)}
    (folder / ".metadata").write_bytes(metadata_bytes(told, {"model": ("__2_0.distcp", Extent(6, len(content)))}))
    return folder


V = array((2, 3), seed=2)
REF = whole("k", TensorSpec("float32", V.shape))


def test_tensors_within_what_is_none_do_not_go_missing(tmp_path: Path) -> None:
    """A tuple, and a dict that the planner was told not to open, are entries of bytes, whatever they hold."""
    turned = replace(REF, shape=(3, 2), strides=(1, 3))
    found = values(with_an_object(tmp_path / "d", {"a": (REF, 3), "b": {"c": turned}, "lr": 0.1}))
    assert same(found["w"], W)
    assert same(found["model.a.0"], V)
    assert same(found["model.b.c"], V.T)
    with pytest.raises(CheckpointError, match=r"two tensors are called 'model\.a'"):
        values(with_an_object(tmp_path / "e", {"a": REF}, "model.a"))
    sparse = Record(Global("torch._utils", "_rebuild_sparse_tensor"), ([REF], ()))
    with pytest.raises(FormatError, match="model: tensor 'x' is a sparse tensor"):
        values(with_an_object(tmp_path / "f", {"x": sparse}))


def test_metadata_that_is_none(tmp_path: Path) -> None:
    source, _ = two_ranks(tmp_path / "c")
    for content in (b"", b"\x80\x02}.", b"\x80\x04]\x94.", b"not a pickle"):
        (source / ".metadata").write_bytes(content)
        with pytest.raises(FormatError, match=r"\.metadata"):
            values(source)


def test_a_megatron_folder_is_not_taken_for_plain_tensors(tmp_path: Path) -> None:
    source, _ = two_ranks(tmp_path / "c")
    (source / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    with pytest.raises(CheckpointError, match="backend 'zarr'"):
        values(source)


def test_verify_proves_that_it_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, chunks = two_ranks(tmp_path / "c")
    assert run_reshard(["verify", str(source)]) == 0
    assert "1 tensor, 96 B, whole in 2 files" in capsys.readouterr().out
    content = (source / "__1_0.distcp").read_bytes()
    at = content.index(W[4:].tobytes())
    (source / "__1_0.distcp").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert run_reshard(["verify", str(source)]) == 3
    assert "w, data/0" in capsys.readouterr().err
    tell(source, {"w": (W.shape, chunks[:1])})
    assert run_reshard(["verify", str(source)]) == 3
    assert "slices that no file holds" in capsys.readouterr().err


# ---- writing


@pytest.mark.parametrize("files", [0, 1, 2, 3, 5, 8])
def test_what_is_written_is_read(tmp_path: Path, files: int) -> None:
    source = write_file(tmp_path / "full.safetensors", FULL)
    reshard.convert(source, tmp_path / "dcp", Options(to="dcp", files=files, fsync=False))
    found = values(tmp_path / "dcp", crc=True)
    assert differing(found, FULL) == []
    count = len(list((tmp_path / "dcp").glob("__*_0.distcp")))
    assert 1 <= count <= max(files, 1)


def test_files_are_balanced_and_large_tensors_cut(tmp_path: Path) -> None:
    full = {"large": array((64, 100), seed=1), **{f"small.{n}": array((10, 10), seed=n) for n in range(16)}}
    source = write_file(tmp_path / "full.safetensors", full)
    plan = reshard.plan(source, "dcp", Options(to="dcp", files=4))
    held = [sum(extent.nbytes for slot in plan.forms[f.form].slots for extent in slot.extents) for f in plan.files]
    assert len(held) == 4
    assert max(held) - min(held) <= 400
    (told,) = plan.closing
    chunks = read_dcp_metadata(told.content).tensors["large"].chunks
    assert [(chunk.offsets, chunk.sizes) for chunk in chunks] == [((16 * n, 0), (16, 100)) for n in range(4)]


def test_by_shares_it_is_the_same(tmp_path: Path) -> None:
    source = write_file(tmp_path / "full.safetensors", FULL)
    options = Options(to="dcp", files=3, fsync=False)
    reshard.convert(source, tmp_path / "whole", options)
    for index in (1, 0):
        assert not (tmp_path / "out" / ".metadata").exists()
        reshard.convert(source, tmp_path / "out", Options(to="dcp", files=3, fsync=False, share=Share(index, 2)))
    names = sorted(path.name for path in (tmp_path / "whole").iterdir() if path.is_file())
    assert ".metadata" in names
    assert [n for n in names if (tmp_path / "out" / n).read_bytes() != (tmp_path / "whole" / n).read_bytes()] == []


def test_a_dtype_that_torch_has_not_is_refused_by_name() -> None:
    with pytest.raises(FormatError, match="'q' is int4x2, which torch does not have"):
        Distcp().frame({"q": TensorSpec("int4x2", (4,))}, {}, {})


def test_options_that_it_has_no_use_for(tmp_path: Path) -> None:
    source = write_file(tmp_path / "full.safetensors", FULL)
    with pytest.raises(UsageError, match="no use for --max-shard-size"):
        reshard.plan(source, "dcp", Options(to="dcp", max_shard_nbytes=100))
    with pytest.raises(UsageError, match="no use for --files"):
        reshard.plan(source, "out", Options(to="parts", files=2))
    with pytest.raises(UsageError, match="--files 100000"):
        reshard.plan(source, "dcp", Options(to="dcp", files=100000))
