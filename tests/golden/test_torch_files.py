"""Files that torch itself wrote, small ones of every kind: ``torch_files/make.py``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from reshard.errors import FormatError
from reshard.formats.torch_file import TorchFile
from reshard.testing.formats import MemoryFile, held

FILES = Path(__file__).parent / "torch_files"
ANSWERS = json.loads((FILES / "answers.json").read_text())


def file(name: str) -> MemoryFile:
    return MemoryFile((FILES / f"{name}.pt").read_bytes())


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_every_tensor_is_what_torch_reads(name: str) -> None:
    source = file(name)
    found = TorchFile().read_index(source)
    values = held(source.content, found)
    told = {
        tensor: {
            "dtype": stored.spec.dtype,
            "shape": list(stored.spec.shape),
            "sha256": hashlib.sha256(values[tensor]).hexdigest(),
        }
        for tensor, stored in found.tensors.items()
    }
    assert told == ANSWERS[name]


def test_tied_tensors_have_the_same_extents() -> None:
    tensors = TorchFile().read_index(file("tied")).tensors
    assert tensors["embed"] == tensors["head"]
    assert tensors["row"].extents[0].offset == tensors["embed"].extents[0].offset + 12


def test_texts_are_kept_and_the_rest_is_told() -> None:
    found = TorchFile().read_index(file("nested"))
    assert found.texts == {"args.name": "run", "text": "hello"}
    assert any("1 float" in warning for warning in found.warnings)
    assert any("__main__.Config" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refused_sparse", ["'sparse'", "a sparse tensor"]),
        ("refused_csr", ["'csr'", "a sparse tensor"]),
        ("refused_quantised", ["'quantised'", "a quantised tensor"]),
        ("refused_stream_quantised", ["'quantised.quint8'", "a quantised tensor"]),
        ("refused_meta", ["'meta'", "no numbers"]),
        ("refused_whole_module", ["'whole_module'", "torch.nn.modules.linear.Linear"]),
        ("refused_script", ["TorchScript"]),
    ],
)
def test_what_is_not_plain_is_refused_by_name(name: str, words: list[str]) -> None:
    with pytest.raises(FormatError) as caught:
        TorchFile().read_index(file(name))
    assert all(word in str(caught.value) for word in words)


def test_records_aligned_otherwise_cost_no_reads() -> None:
    """A record's place follows from its neighbours: a header is read where that is not certain."""
    source = file("aligned4096")
    source.content = source.content[:-1000].replace(b"PK\x03\x04", b"xx\x03\x04") + source.content[-1000:]
    source.content = b"PK\x03\x04" + source.content[4:]
    assert set(TorchFile().read_index(source).tensors) == {"w", "v"}
