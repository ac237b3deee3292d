"""First bytes of files of all kinds; those of PyTorch, NumPy and archives are written by their own programs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors

from making import ckpt_bytes, counted
from reshard.foreign import HEAD_NBYTES, foreign


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return out.getvalue()


def saved(save: object, *arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    save(out, *arrays)  # type: ignore[operator]
    return out.getvalue()


W = counted(2, 3)
SAFETENSORS = safetensors.serialize({"w": {"dtype": "float32", "shape": [2, 3], "data": W.tobytes()}}, {"format": "pt"})
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 49\n"
TAKEN = {
    "pointer": (POINTER, "Git LFS pointer", "git lfs pull"),
    "page": (b"\n<!doctype HTML><html><title>403 Forbidden</title>", "web page", "download"),
    "bare page": (b"<html>\r\n<head><title>502 Bad Gateway</title></head>", "web page", "download"),
    "store's answer": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page", "download"),
    "JSON": (b'{"error":"Access to model x is restricted"}', 'JSON text ("{\\"error\\"', "download"),
    "text": (b"Entry not found", 'text ("Entry not found")', "download"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(64), "GGUF", "safetensors"),
    "torch": (zipped("m/data.pkl", "m/version"), "PyTorch", ".pt"),
    "zip": (zipped("readme"), "a zip archive", "unpack"),
    "npz": (saved(np.savez, W), "NumPy arrays (.npz)", "save"),
    "npy": (saved(np.save, W), "NumPy array (.npy)", "save"),
    "pickle": (pickle.dumps({"w": [1.5]}), "pickle", ".pt"),
    "pickle 2": (pickle.dumps({"w": [1.5]}, 2), "pickle", ".pt"),
    "pickle 0": (pickle.dumps({"w": [1.5]}, 0), "pickle", ".pt"),
    "legacy torch": (pickle.dumps(0x1950A86A20F9469CFC6C, 2), "before its version 1.6", ".pt"),
    "gzip": (gzip.compress(SAFETENSORS), "gzip", "unpack"),
    "bzip2": (bz2.compress(SAFETENSORS), "bzip2", "unpack"),
    "xz": (lzma.compress(SAFETENSORS), "xz", "unpack"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd", "unpack"),
    "tar": (tarred(), "tar", "unpack"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5", "safetensors"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x051.2.3", "ONNX", "take"),
    "zeros": (bytes(4096), "zeros", "get it again"),
    "safetensors": (SAFETENSORS, "a safetensors file", ".safetensors"),
    "ckpt": (ckpt_bytes({"w": W}, {}), "a MindSpore .ckpt", ".ckpt"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_the_first_bytes_say(kind: str) -> None:
    content, what, hint = TAKEN[kind]
    found = foreign(content[:HEAD_NBYTES])
    assert found is not None
    assert what in found.what
    assert hint in found.hint


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_a_file_is_not_foreign_to_its_own_format(kind: str) -> None:
    """What is wrong with a broken one its reader has said."""
    assert foreign(TAKEN[kind][0][:HEAD_NBYTES], kind) is None


@pytest.mark.parametrize("kind", ["torch", "pickle", "pickle 2", "legacy torch", "pickle 0"])
def test_what_is_wrong_with_a_torch_file_its_reader_says(kind: str) -> None:
    assert foreign(TAKEN[kind][0][:HEAD_NBYTES], "torch") is None


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\x0a", b"\x80", b"\x80\x02", b"\xff" * 64, b"\x0a" + b"\xff" * 40, b"\x08\1\x12\2"]
)
def test_bytes_that_say_nothing(content: bytes) -> None:
    assert foreign(content) is None


def test_a_header_of_640_bytes_is_no_pickle() -> None:
    """Its length begins with the bytes of a pickle of protocol 2."""
    assert foreign((0x280).to_bytes(8, "little") + b"{ broken \xff", "safetensors") is None


def test_text_is_shown_as_it_stands() -> None:
    found = foreign(b"Entry not found " * 30)
    assert found is not None
    assert found.what.endswith(' …")')
