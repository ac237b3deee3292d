"""http(s): a file, an index or a manifest, read in ranges; never a folder, never a target."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from servers import Files, told

import reshard
from making import array, tree, write_file, write_ranks, write_strategy
from reshard.layout.tensor import Sharding
from reshard.ops.options import Options

FULL = {f"w{i}": array((40, 100), seed=i) for i in range(4)}
ROWS = Sharding((2,), ((0,), ()))


def serve(files: Files, folder: Path, below: str = "") -> str:
    """Give a folder's files; gives its URL."""
    for path in folder.rglob("*"):
        if path.is_file():
            files.content[f"/{below}{path.relative_to(folder)}"] = path.read_bytes()
    return f"{files.url}/{below}".rstrip("/")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("etags", [True, False])
def test_a_file_whose_answers_break_off(
    files: Files, tmp_path: Path, suffix: str, etags: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_file(tmp_path / "there" / f"full{suffix}", FULL)
    url = serve(files, tmp_path / "there")
    files.etags, files.cut_next = etags, 3
    strategy = write_strategy(tmp_path / "s", [dict.fromkeys(FULL, ROWS)])
    for source, out in ((f"{url}/full{suffix}", "a"), (tmp_path / "there" / f"full{suffix}", "b")):
        assert told(capsys, "split", source, tmp_path / out, "--dst-strategy", strategy, "--no-fsync").code == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert files.cut_next == 0


def test_an_index_gives_its_parts(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = {}
    for i, (name, content) in enumerate(FULL.items()):
        write_file(tmp_path / "m" / f"model-{i}.safetensors", {name: content})
        where[name] = f"model-{i}.safetensors"
    index = tmp_path / "m" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    url = serve(files, tmp_path / "m", "org/my%20model/")
    assert told(capsys, "diff", f"{url}/{index.name}", tmp_path / "m").code == 0
    assert told(capsys, "diff", index, tmp_path / "m").code == 0  # on a disk, too
    del files.content["/org/my%20model/model-2.safetensors"]
    said = told(capsys, "inspect", f"{url}/{index.name}")
    assert (said.code, "model-2.safetensors" in said.err) == (3, True), said.err


@pytest.mark.parametrize("single", [True, False])
def test_a_manifest_gives_its_files(
    files: Files, tmp_path: Path, single: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = write_ranks(tmp_path / "r", FULL, [dict.fromkeys(FULL, ROWS)])
    strategy = write_strategy(tmp_path / "s", [dict.fromkeys(FULL, ROWS)])
    out = tmp_path / "out" / "full.safetensors" if single else tmp_path / "out"
    to = "" if single else str(strategy)
    reshard.convert(ranks, out, Options(src_strategy=str(strategy), dst_strategy=to, fsync=False))
    url = serve(files, tmp_path / "out", "out/")
    serve(files, strategy, "s/")
    manifest = f"{url}/.reshard/full.safetensors/manifest.json" if single else f"{url}/.reshard/manifest.json"
    words = () if single else ("--a-strategy", f"{files.url}/s/ckpt_strategy_rank_0.ckpt")
    files.requests.clear()
    said = told(capsys, "diff", manifest, ranks, *words, "--b-strategy", strategy)
    assert said.code == 0, said.err


def test_redirections_are_followed(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_file(tmp_path / "there" / "full.safetensors", FULL)
    serve(files, tmp_path / "there")
    files.moved["/resolve/main/full.safetensors"] = f"{files.url}/full.safetensors"
    assert told(capsys, "inspect", f"{files.url}/resolve/main/full.safetensors").code == 0


def test_what_http_cannot_do_is_told(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = write_file(tmp_path / "there" / "full.safetensors", FULL)
    url = serve(files, tmp_path / "there")
    for words, code, says in (
        (("inspect", f"{url}/folder"), 2, "a folder cannot be listed"),
        (("inspect", f"{url}/"), 2, "a folder cannot be listed"),
        (("inspect", f"{url}/none.safetensors"), 3, "no such file"),
        (("inspect", f"{url}/none.index.json"), 3, "no such file"),
        (("inspect", f"{url}/full.safetensors?signature=x"), 2, "a URL with a query"),
        (("convert", full, f"{url}/out.ckpt"), 2, "for reading only"),
        (("split", full, f"{url}/out", "--dst-strategy", f"{url}/none.ckpt"), 3, "none.ckpt"),
    ):
        said = told(capsys, *words)
        assert (said.code, says in said.err) == (code, True), said.err
    said = told(capsys, "inspect", f"{url}/folder")
    assert "manifest" in said.err
    files.ranges = False
    said = told(capsys, "inspect", f"{url}/full.safetensors")
    assert (said.code, "does not give ranges" in said.err) == (4, True), said.err


def test_a_file_that_changes_is_refused_without_etags_too(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_file(tmp_path / "there" / "full.safetensors", FULL)
    url = serve(files, tmp_path / "there")
    checkpoint = reshard.open(f"{url}/full.safetensors")
    content = files.content["/full.safetensors"]
    files.content["/full.safetensors"] = content + b"x"
    with pytest.raises(reshard.errors.CheckpointError, match="changed"):
        checkpoint["w0"].read()
    files.content["/full.safetensors"] = content
    assert np.array_equal(checkpoint["w0"].read().view(np.uint8), FULL["w0"].view(np.uint8))
