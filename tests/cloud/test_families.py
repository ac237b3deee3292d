"""Folders of PyTorch in object storage: the same tensors as from a disk, and no more asked for than is needed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from servers import S3, Request

import reshard
from families.test_fsdp import write_ranks
from making import array, read_file, same, tree, write_file
from reshard import NameRules, Options
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source

sys.path.append(str(Path(__file__).parents[2] / "bench"))

from checkpoints import Model
from zero import write_zero

MODEL = Model(layers=2, hidden=128, ffn=256, vocab=512, dtype="float32")
LARGE = {f"layers.{i}.w": array((256, 1024), seed=i) for i in range(4)}
NBYTES = 1 << 20


def asked(s3: S3) -> list[Request]:
    return [r for r in s3.store.requests if r.method == "GET" and r.range]


def nbytes(requests: list[Request]) -> int:
    spans = [r.range.removeprefix("bytes=").split("-") for r in requests]
    return sum(int(last) - int(first) + 1 for first, last in spans)


@pytest.fixture
def dcp(tmp_path: Path) -> Path:
    source = write_file(tmp_path / "full.safetensors", LARGE)
    reshard.convert(source, tmp_path / "dcp", Options(to="dcp", files=8, fsync=False))
    return tmp_path / "dcp"


def test_of_a_dcp_folder_only_what_is_wanted_is_read(dcp: Path, s3: S3, tmp_path: Path) -> None:
    url = s3.put(dcp, "dcp")
    s3.store.requests.clear()
    catalog = open_source(Source(url))
    heads = nbytes(asked(s3))
    assert len(catalog.tensors) == len(LARGE)
    assert heads < 200_000
    s3.store.requests.clear()
    one = Options(names=NameRules(include=(r"layers\.2\.",)), fsync=False)
    reshard.convert(url, tmp_path / "m.safetensors", one)
    assert same(read_file(tmp_path / "m.safetensors")["layers.2.w"], LARGE["layers.2.w"])
    assert nbytes(asked(s3)) - heads == NBYTES


def test_heads_of_chunks_are_read_at_once(dcp: Path, s3: S3) -> None:
    url = s3.put(dcp, "dcp")
    s3.store.spoil, s3.store.slow_s = (lambda request: "slow"), 0.05
    s3.store.most_at_once = 0
    open_source(Source(url))
    assert s3.store.most_at_once >= 4


def test_a_dcp_folder_there_holds_the_bytes_of_one_here(dcp: Path, s3: S3) -> None:
    source = s3.put(dcp.parent / "full.safetensors", "full.safetensors")
    reshard.convert(source, f"{s3.url}/out", Options(to="dcp", files=8))
    here = {name: content for name, content in tree(dcp).items() if not name.startswith(".reshard")}
    assert {name: s3.get(f"out/{name}") for name in here} == here


def test_of_fsdp_s_files_only_what_is_wanted_is_read(s3: S3, tmp_path: Path) -> None:
    url = s3.put(write_ranks(tmp_path / "actor", LARGE, list(LARGE), world=4), "actor")
    s3.store.requests.clear()
    open_source(Source(url))
    headers = nbytes(asked(s3))
    s3.store.requests.clear()
    one = Options(names=NameRules(include=(r"^layers\.2\.",)), fsync=False)
    reshard.convert(url, tmp_path / "m.safetensors", one)
    found = read_file(tmp_path / "m.safetensors")
    assert list(found) == ["layers.2.w"]
    assert same(found["layers.2.w"], np.asarray(LARGE["layers.2.w"]))
    assert nbytes(asked(s3)) - headers == NBYTES


@pytest.mark.parametrize("stage", [2, 3])
def test_of_deepspeed_s_folder_no_moment_is_read(stage: int, s3: S3, tmp_path: Path) -> None:
    url = s3.put(write_zero(MODEL, tmp_path / "zero", stage, ranks=4), "zero")
    s3.store.requests.clear()
    catalog = open_source(Source(url))
    heads = nbytes(asked(s3))
    assert len(catalog.tensors) == 3 * len(MODEL.specs())
    assert heads < 500_000
    s3.store.requests.clear()
    options = Options(names=NameRules(weights_only=True), fsync=False)
    reshard.convert(url, tmp_path / "m.safetensors", options)
    wanted = sum(spec.nbytes for spec in MODEL.specs().values())
    assert nbytes(asked(s3)) - heads == wanted
    reshard.convert(tmp_path / "zero", tmp_path / "here.safetensors", options)
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()


def test_a_torch_file_and_its_parts(s3: S3, tmp_path: Path) -> None:
    source = write_file(tmp_path / "full.safetensors", LARGE)
    reshard.convert(source, tmp_path / "parts", Options(format="torch", max_shard_nbytes=2 * NBYTES, fsync=False))
    url = s3.put(tmp_path / "parts", "parts")
    s3.store.requests.clear()
    one = Options(names=NameRules(include=(r"layers\.2\.",)), fsync=False)
    reshard.convert(url, tmp_path / "m.safetensors", one)
    assert same(read_file(tmp_path / "m.safetensors")["layers.2.w"], LARGE["layers.2.w"])
    assert nbytes(asked(s3)) < NBYTES + 200_000
    reshard.convert(url, f"{s3.url}/out.bin", Options())
    reshard.convert(tmp_path / "parts", tmp_path / "out.bin", Options(fsync=False))
    assert s3.get("out.bin") == (tmp_path / "out.bin").read_bytes()


def test_a_universal_checkpoint_and_what_names_it(s3: S3, tmp_path: Path) -> None:
    url = s3.put(write_zero(MODEL, tmp_path / "zero", 2, ranks=4), "zero")
    reshard.convert(url, f"{s3.url}/zero/step_universal", Options(to="universal"))
    reshard.convert(tmp_path / "zero", tmp_path / "out" / "step_universal", Options(to="universal", fsync=False))
    here = {name: content for name, content in tree(tmp_path / "out").items() if "/.reshard/" not in name}
    assert "latest_universal" in here
    assert {name: s3.get(f"zero/{name}") for name in here} == here
