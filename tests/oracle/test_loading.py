"""MindSpore loads what reshard writes, bit for bit, and into a net."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden.cases import run_reshard, unpack
from golden.readers import read_weights, weight_files
from making import array, write_file

pytestmark = pytest.mark.oracle

TYPES = {
    "bool": "Bool", "int8": "Int8", "uint8": "UInt8", "int16": "Int16", "uint16": "UInt16", "int32": "Int32",
    "uint32": "UInt32", "int64": "Int64", "uint64": "UInt64", "float16": "Float16", "bfloat16": "BFloat16",
    "float32": "Float32", "float64": "Float64",
}  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = {
    "0d": (),
    "one": (1,),
    "ones": (1, 1),
    "row": (7,),
    "matrix": (3, 5),
    "cube": (2, 3, 4),
}
Seen = list[Any]


def everything() -> dict[str, np.ndarray[Any, Any]]:
    return {f"{d}.{s}": array(shape, d, seed=len(d) + i) for d in TYPES for i, (s, shape) in enumerate(SHAPES.items())}


def seen(dtype: str, shape: tuple[int, ...], content: bytes) -> Seen:
    """A tensor as mindspore_side.py tells of it."""
    return [dtype, list(shape), hashlib.sha256(content).hexdigest()]


def seen_arrays(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Seen]:
    return {name: seen(TYPES[a.dtype.name], a.shape, a.tobytes()) for name, a in arrays.items()}


def convert(*words: object) -> None:
    assert run_reshard(["convert", *map(str, words), "--no-fsync", "--quiet"]) == 0


@pytest.mark.parametrize("source", [".safetensors", ".ckpt"])
def test_every_type_and_shape(source: str, tmp_path: Path, ask: Any) -> None:
    arrays = everything()
    given = write_file(tmp_path / f"given{source}", arrays, {"note": "naïve 权重 🙂"})
    convert(given, tmp_path / "made.ckpt")
    convert(given, tmp_path / "made.safetensors")
    ckpt, safetensors = ask(
        [
            ("load", {"path": str(tmp_path / f"made.{f}"), "format": f, "into_net": True})
            for f in ("ckpt", "safetensors")
        ]
    )
    expected = seen_arrays(arrays)
    assert ckpt["loaded"] == expected | {"note": "naïve 权重 🙂"}
    assert safetensors["loaded"] == expected
    for answer in (ckpt, safetensors):
        assert answer["net"] == expected
        assert (answer["missing"], answer["unused"]) == ([], [])


@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_every_rank(form: str, tmp_path: Path, ask: Any) -> None:
    case = unpack("full_to_dp2mp2pp2", tmp_path / "case")
    strategy = ("--dst-strategy", case.folder / "dst_strategy")
    convert(case.folder / "src", tmp_path / "out", "--format", form, *strategy)
    files = [weight_files(tmp_path / "out" / f"rank_{rank}")[0] for rank in range(8)]
    answers = ask([("load", {"path": str(f), "format": form, "into_net": True}) for f in files])
    for rank, answer in enumerate(answers):
        (theirs,) = weight_files(case.expected / f"rank_{rank}")
        expected = {name: seen(*value) for name, value in read_weights(theirs).items()}
        assert answer["loaded"] == answer["net"] == expected


def test_crc(tmp_path: Path, ask: Any) -> None:
    """With ``--crc`` MindSpore's ``crc_check`` finds the file whole, and finds one changed bit of it."""
    arrays = everything()
    convert(write_file(tmp_path / "given.safetensors", arrays), tmp_path / "made.ckpt", "--crc")
    data = (tmp_path / "made.ckpt").read_bytes()
    assert data[-17:-10] == b"crc_num"
    spoilt = bytearray(data)
    spoilt[len(data) // 2] ^= 1
    (tmp_path / "spoilt.ckpt").write_bytes(spoilt)
    files = [str(tmp_path / f"{name}.ckpt") for name in ("made", "spoilt")]
    whole, broken = ask([("load", {"path": path, "format": "ckpt", "crc": True}) for path in files])
    assert whole["loaded"] == seen_arrays(arrays)
    assert "error" in broken


def test_tensor_in_pieces(tmp_path: Path, ask: Any) -> None:
    """Over 512 MiB: two pieces of one tag. The source is a sparse file, zeros but for its ends and the seam."""
    rows, columns = 520, 1 << 20
    nbytes = rows * columns
    given = tmp_path / "given.safetensors"
    header = b'{"large":{"dtype":"U8","shape":[%d,%d],"data_offsets":[0,%d]}}' % (rows, columns, nbytes)
    header += b" " * (-len(header) % 8)
    marks = {0: b"first", (512 << 20) - 3: b"across", nbytes - 4: b"last"}
    with given.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        begin = file.tell()
        file.truncate(begin + nbytes)
        for place, text in marks.items():
            file.seek(begin + place)
            file.write(text)
    convert(given, tmp_path / "made.ckpt", "--checksum", "off")
    given.unlink()
    with (tmp_path / "made.ckpt").open("rb") as made, mmap.mmap(made.fileno(), 0, access=mmap.ACCESS_READ) as data:
        second = data.find(b"large", 100)
        assert (512 << 20) < second < (512 << 20) + 200
        assert data.find(b"large", second + 1) == -1
    (answer,) = ask([("load", {"path": str(tmp_path / "made.ckpt"), "format": "ckpt"})])
    (tmp_path / "made.ckpt").unlink()
    content = bytearray(nbytes)
    for place, text in marks.items():
        content[place : place + len(text)] = text
    assert answer["loaded"] == {"large": seen("UInt8", (rows, columns), bytes(content))}


def test_empty_tensors(tmp_path: Path, ask: Any) -> None:
    """MindSpore stores no empty tensor in a .ckpt, and loads ours. Shape [0], which older releases wrote for scalars,
    it takes for a 0-d tensor, and makes up a zero: that one we refuse to write there. From safetensors it loads all.
    """
    shapes = {"before": (2,), "rows": (0, 4), "columns": (4, 0), "after": (2,)}
    arrays = {name: array(shape) for name, shape in shapes.items()}
    odd = arrays | {"empty": array((0,))}
    given, all_given = write_file(tmp_path / "given.safetensors", arrays), write_file(tmp_path / "odd.safetensors", odd)
    convert(given, tmp_path / "made.ckpt")
    convert(all_given, tmp_path / "made.safetensors")
    ckpt, safetensors = ask(
        [("load", {"path": str(tmp_path / f"made.{f}"), "format": f}) for f in ("ckpt", "safetensors")]
    )
    assert safetensors["loaded"] == seen_arrays(odd)
    assert ckpt["loaded"] == seen_arrays(arrays)
    refused = tmp_path / "refused.ckpt"
    assert run_reshard(["convert", str(all_given), str(refused)]) == 3
    assert not refused.exists()


def test_unified_folder_is_cut_by_mindspore(tmp_path: Path, ask: Any) -> None:
    """``load_distributed_checkpoint`` cuts for every rank what ``reshard unify`` put together."""
    case = unpack("full_to_dp2mp2pp2", tmp_path / "case")
    strategy, unified = case.folder / "dst_strategy", tmp_path / "unified"
    ranks = tmp_path / "ranks"
    convert(case.folder / "src", ranks, "--format", "safetensors", "--dst-strategy", strategy)
    assert run_reshard(["unify", str(ranks), str(unified), "--src-strategy", str(strategy), "--quiet"]) == 0
    assert run_reshard(["strategy", "merge", str(strategy), str(tmp_path / "merged.ckpt")]) == 0
    request = {"unified": str(unified), "strategy": str(tmp_path / "merged.ckpt"), "target": str(tmp_path / "cut")}
    (answer,) = ask([("cut", request)])
    assert answer == {}
    compared = 0
    for rank in range(8):
        theirs, ours = (read_weights(weight_files(folder / f"rank_{rank}")[0]) for folder in (tmp_path / "cut", ranks))
        assert theirs == ours
        compared += len(ours)
    assert compared > 100


@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_thinned_ranks_are_filled_by_mindspore(form: str, tmp_path: Path, ask: Any) -> None:
    """What ``--drop-redundancy`` leaves to a rank, ``load_checkpoint(remove_redundancy=True)`` takes for a rank's."""
    case = unpack("full_to_dp2mp2pp2", tmp_path / "case")
    strategy = ("--dst-strategy", case.folder / "dst_strategy")
    convert(case.folder / "src", tmp_path / "thin", "--format", form, "--drop-redundancy", *strategy)
    files = [weight_files(tmp_path / "thin" / f"rank_{rank}")[0] for rank in range(8)]
    answers = ask([("load", {"path": str(f), "format": form, "thinned": True}) for f in files])
    kept: dict[str, int] = {}
    for rank, answer in enumerate(answers):
        (whole,) = weight_files(case.expected / f"rank_{rank}")
        expected = {name: seen(*value) for name, value in read_weights(whole).items()}
        assert answer["loaded"].items() <= expected.items()
        for name in answer["loaded"]:
            kept[name] = kept.get(name, 0) + 1
    full = {name for rank in range(8) for name in read_weights(weight_files(case.expected / f"rank_{rank}")[0])}
    assert kept.keys() == full
    assert sum(kept.values()) < sum(len(read_weights(weight_files(case.expected / f"rank_{r}")[0])) for r in range(8))
