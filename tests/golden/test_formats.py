"""Files that MindSpore saved with odd values in them: every type, 0-d, text, CRC tails, empty tensors, metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import reshard
from golden.cases import arguments, run_reshard, unpack
from golden.readers import Value, messages, read_ckpt, read_weights, weight_files
from reshard.errors import FormatError

TYPES = {
    "bool": "Bool", "int8": "Int8", "uint8": "UInt8", "int16": "Int16", "uint16": "UInt16", "int32": "Int32",
    "uint32": "UInt32", "int64": "Int64", "uint64": "UInt64", "float16": "Float16", "bfloat16": "BFloat16",
    "float32": "Float32", "float64": "Float64",
}  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("formats_odd_values", tmp_path_factory.mktemp("odd")).folder


def opened(path: Path) -> dict[str, Value]:
    """What reshard.open reads, in the words of the golden readers."""
    checkpoint = reshard.open(path)
    found = {name: Value(TYPES[t.dtype], t.shape, np.asarray(t.read()).tobytes()) for name, t in checkpoint.items()}
    texts = {name: Value("str", (0,), text.encode("utf-32-le")) for name, text in checkpoint.texts.items()}
    return found | texts


@pytest.mark.parametrize(
    "name",
    ["a.ckpt", "b.safetensors", "d.safetensors", "dt.safetensors", "e.ckpt", "f.safetensors", "g.safetensors"],
)
def test_reads_as_it_was_saved(odd: Path, name: str) -> None:
    assert opened(odd / "src" / name) == read_weights(odd / "src" / name)


def test_text_and_scalars(odd: Path) -> None:
    checkpoint = reshard.open(odd / "src" / "a.ckpt")
    assert checkpoint.texts == {"note": "hello"}
    scalars = {name: checkpoint[name].read()[()] for name in ("zero_d", "epoch_num", "lr", "flag")}
    assert scalars == {"zero_d": np.float32(2.5), "epoch_num": 1, "lr": np.float32(0.1), "flag": True}


def test_a_type_that_mindspore_itself_cannot_load_is_refused(odd: Path) -> None:
    with pytest.raises(FormatError, match="Complex64"):
        reshard.open(odd / "src" / "dt.ckpt")


def test_every_type_of_ckpt(odd: Path, tmp_path: Path) -> None:
    """dt.ckpt but its last tensor, which is complex."""
    path = odd / "src" / "dt.ckpt"
    values = read_ckpt(path)
    assert list(values)[-1] == "complex64"
    data = path.read_bytes()
    *_, (_, last) = messages(data)
    assert isinstance(last, bytes)
    assert len(last) < 128, "its length is one byte"
    without = tmp_path / "dt.ckpt"
    without.write_bytes(data[: -len(last) - 2])
    assert opened(without) == {name: v for name, v in values.items() if name != "complex64"}


@pytest.mark.parametrize(("name", "code"), [("e.ckpt", 0), ("e_bad.ckpt", 3)])
def test_crc_tail(odd: Path, name: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tail of e_bad.ckpt contradicts its bytes, as MindSpore says when asked with ``crc_check``."""
    assert run_reshard(["convert", str(odd / "src" / name), str(tmp_path / "out.ckpt"), "--crc"]) == code
    assert (name in capsys.readouterr().err) == (code != 0)


def test_text_survives_a_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MindSpore fails on a checkpoint with a string beside the weights."""
    case = unpack("err_string_append", tmp_path / "case")
    assert run_reshard(arguments(case, tmp_path / "out")) == 0, capsys.readouterr().err
    (made,) = weight_files(tmp_path / "out" / "rank_0")
    assert read_weights(made)["note"] == Value("str", (0,), "hello".encode("utf-32-le"))
