"""Folders in which no checkpoint of ours lies: what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from making import write_file
from reshard.errors import CheckpointError
from reshard.families import strange_folders
from reshard.families.discover import discover
from reshard.families.registry import FAMILIES


def put(folder: Path, *names: str) -> Path:
    """Files of these names; one that ends in a slash is a folder."""
    for name in names:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"x")
    return folder


def refused(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        discover(folder)
    return caught.value


@pytest.mark.parametrize(
    ("there", "held", "hint"),
    [
        (["a.gguf", "b.gguf", "README.md"], "2 .gguf, 1 .md", "take the model's safetensors"),
        (["a.zip", "LICENSE"], "1 without an ending, 1 .zip", "unpack"),
        (["w.npz", "sub/x"], "1 folder, 1 .npz", "save the weights as safetensors"),
        (["config.json", "sub/x", "sub2/x"], "2 folders, 1 .json", "give a weight file"),
        (["model.safetensors.incomplete"], "1 .incomplete", "go on with it"),
        (["model.safetensors.crdownload"], "1 .crdownload", "go on with it"),
        ([f"a.{c}" for c in "abcdefgh"], "and 2 other kinds", "give a weight file"),
        ([], "it holds nothing", "give a weight file"),
    ],
)
def test_what_a_folder_holds_instead(tmp_path: Path, there: list[str], held: str, hint: str) -> None:
    error = refused(put(tmp_path, *there))
    assert held in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("there", "family"),
    [
        (["model0-mp2.safetensors", "model1-mp2.safetensors", "config.json"], "slices of DeepSeek's inference code"),
        (["latest_universal", "global_step3_universal/zero/w/fp32.pt"], "a universal checkpoint of DeepSpeed"),
    ],
)
def test_a_family_that_is_not_read_is_named(tmp_path: Path, there: list[str], family: str) -> None:
    error = refused(put(tmp_path, *there))
    assert family in error.message
    assert "not read yet by this release" in error.message


@pytest.mark.parametrize("beside", ["zero_to_fp32.py", "latest_checkpointed_iteration.txt", "training_state.pt"])
def test_full_weights_beside_what_trainers_leave_are_read(tmp_path: Path, beside: str) -> None:
    put(tmp_path, beside, "model.safetensors")
    assert [path for _, path in discover(tmp_path).files] == [str(tmp_path / "model.safetensors")]


def test_a_family_that_is_read_has_no_such_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strange_folders, "FAMILIES", [replace(family, place="somewhere") for family in FAMILIES])
    assert "not read yet" not in refused(put(tmp_path, "latest_universal")).message


def test_the_cache_of_a_model(tmp_path: Path) -> None:
    model = tmp_path / "models--org--name"
    write_file(model / "snapshots" / "abc123" / "model.safetensors", {})
    put(model, "refs/main", "blobs/")
    error = refused(model)
    assert "snapshots/<revision>" in error.message
    assert str(model / "snapshots" / "abc123") in error.hint
    assert "snapshots/<revision>" in refused(tmp_path).hint
    assert len(discover(model / "snapshots" / "abc123").files) == 1


def test_rank_folders_without_weights_say_what_they_hold(tmp_path: Path) -> None:
    put(tmp_path, "rank_0/graph.meta", "rank_0/notes.txt")
    assert "rank_0 holds 1 .meta, 1 .txt" in refused(tmp_path).message
