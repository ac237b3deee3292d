from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from reshard.errors import CheckpointError, FormatError, UsageError
from reshard.families.discover import discover
from reshard.families.found import Select, as_select


def put(folder: Path, *names: str) -> Path:
    """Files of these names, each a second older than the next."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (1_000_000 + i, 1_000_000 + i))
    return folder


def chosen(path: Path, select: Select = "natural", suffix: str = "") -> dict[int, str]:
    return {rank: Path(name).name for rank, name in discover(path, select, suffix).files}


# --- which of several files


@pytest.mark.parametrize(
    ("select", "name"),
    [("natural", "a-1_10.ckpt"), ("step", "a-1_10.ckpt"), ("name", "a-1_9.ckpt"), ("mtime", "a-1_2.ckpt")],
)
def test_rules_where_the_steps_have_one_and_two_digits(tmp_path: Path, select: Select, name: str) -> None:
    put(tmp_path / "rank_0", "a-1_10.ckpt", "a-1_9.ckpt", "a-1_2.ckpt")
    found = discover(tmp_path, select)
    assert chosen(tmp_path, select) == {0: name}
    assert any("ways to choose one differ" in w for w in found.warnings)


@pytest.mark.parametrize(("select", "name"), [("natural", "a-2_5.ckpt"), ("step", "a-1_900.ckpt")])
def test_natural_goes_by_epoch_and_then_step_and_step_by_step_alone(tmp_path: Path, select: Select, name: str) -> None:
    put(tmp_path / "rank_0", "a-1_900.ckpt", "a-2_5.ckpt")
    assert chosen(tmp_path, select) == {0: name}


def test_no_warning_where_all_rules_agree(tmp_path: Path) -> None:
    put(tmp_path / "rank_0", "a-1_1.ckpt", "a-1_2.ckpt")
    assert discover(tmp_path).warnings == ()


def test_ranks_at_different_steps_are_warned_of(tmp_path: Path) -> None:
    put(tmp_path / "rank_0", "a-1_4.ckpt")
    put(tmp_path / "rank_1", "a-1_5.ckpt")
    (warning,) = discover(tmp_path).warnings
    assert "(1, 4), (1, 5)" in warning


@pytest.mark.parametrize(("suffix", "name"), [("1_1", "a-1_1.ckpt"), ("1_11", "a-1_11.ckpt"), ("-1_1", "a-1_1.ckpt")])
def test_suffix_chooses_and_cuts_no_number(tmp_path: Path, suffix: str, name: str) -> None:
    put(tmp_path / "rank_0", "a-1_1.ckpt", "a-1_11.ckpt", "a-11_1.ckpt")
    assert chosen(tmp_path, suffix=suffix) == {0: name}


def test_suffix_that_no_file_has(tmp_path: Path) -> None:
    put(tmp_path / "rank_0", "a-1_1.ckpt")
    with pytest.raises(CheckpointError, match="no file whose name ends in '3_3'"):
        discover(tmp_path, suffix="3_3")


def test_only_known_rules() -> None:
    assert as_select("mtime") == "mtime"
    with pytest.raises(UsageError, match="--select 'newest'"):
        as_select("newest")


# --- rank folders


def test_ranks_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for rank in (10, 9, 0):
        put(tmp_path / f"rank_{rank}", f"m_{rank}.ckpt")
    found = discover(tmp_path)
    assert [rank for rank, _ in found.files] == [0, 9, 10]
    assert found.distributed


def test_one_rank_written_twice(tmp_path: Path) -> None:
    put(tmp_path / "rank_1", "a.ckpt")
    put(tmp_path / "rank_01", "a.ckpt")
    with pytest.raises(CheckpointError, match=r"rank_0?1 and rank_0?1 are the same rank"):
        discover(tmp_path)


def test_loose_files_beside_rank_folders_are_warned_of(tmp_path: Path) -> None:
    put(tmp_path, "full.ckpt")
    put(tmp_path / "rank_0", "a.ckpt")
    found = discover(tmp_path)
    assert chosen(tmp_path) == {0: "a.ckpt"}
    assert len(found.warnings) == 1
    assert "the rank folders are used" in found.warnings[0]


def test_two_formats_in_one_rank(tmp_path: Path) -> None:
    put(tmp_path / "rank_0", "a.ckpt", "a.safetensors")
    with pytest.raises(CheckpointError, match="two formats in one rank folder"):
        discover(tmp_path)


def test_other_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "rank_0", "a.ckpt", "a.ckpt.part", "graph.meta", "notes.txt")
    put(tmp_path / "rank_x", "a.ckpt")
    put(tmp_path / "rank_1")
    assert chosen(tmp_path) == {0: "a.ckpt"}


def test_rank_folders_without_files(tmp_path: Path) -> None:
    put(tmp_path / "rank_0")
    with pytest.raises(CheckpointError, match="hold no weight files"):
        discover(tmp_path)


# --- full checkpoints


def test_one_file(tmp_path: Path) -> None:
    put(tmp_path, "a.ckpt")
    found = discover(tmp_path / "a.ckpt")
    assert (chosen(tmp_path / "a.ckpt"), found.distributed) == ({0: "a.ckpt"}, False)


def test_one_file_of_no_known_name(tmp_path: Path) -> None:
    put(tmp_path, "a.npz")
    with pytest.raises(FormatError, match=r"\.ckpt or \.pt or \.pth or \.safetensors"):
        discover(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin", "training_args.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin", "optimizer.pt", "extra.pt"], ["pytorch_model.bin"]),
        (["a-1.pt", "a-2.pt", "scheduler.pt", "rng_state_1.pth"], ["a-1.pt", "a-2.pt"]),
    ],
)
def test_a_folder_as_trainers_leave_it(tmp_path: Path, there: list[str], taken: list[str]) -> None:
    put(tmp_path, *there)
    assert [Path(p).name for _, p in discover(tmp_path).files] == taken


def test_only_the_index_of_what_is_taken_counts(tmp_path: Path) -> None:
    put(tmp_path, "model.safetensors", "pytorch_model-1.bin")
    write_index(tmp_path, "pytorch_model-2.bin", name="pytorch_model.bin.index.json")
    assert len(discover(tmp_path).files) == 1
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model-2\.bin"):
        discover(tmp_path)


def test_a_folder_of_parts(tmp_path: Path) -> None:
    put(tmp_path, "m-1.safetensors", "m-2.safetensors", "config.json")
    assert [Path(p).name for _, p in discover(tmp_path).files] == ["m-1.safetensors", "m-2.safetensors"]


def test_full_files_of_two_formats(tmp_path: Path) -> None:
    put(tmp_path, "a.ckpt", "a.safetensors")
    with pytest.raises(CheckpointError, match="two formats in one folder"):
        discover(tmp_path)


def write_index(folder: Path, *parts: str, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"weight_map": {f"w{i}": p for i, p in enumerate(parts)}}))


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "param_name_map.json"])
def test_a_part_that_the_index_names_is_missing(tmp_path: Path, name: str) -> None:
    put(tmp_path, "m-1.safetensors")
    write_index(tmp_path, "m-1.safetensors", "m-2.safetensors", name=name)
    with pytest.raises(CheckpointError, match=r"missing:\nm-2.safetensors"):
        discover(tmp_path)


def test_a_file_that_the_index_does_not_name_is_warned_of(tmp_path: Path) -> None:
    put(tmp_path, "m-1.safetensors", "old.safetensors")
    write_index(tmp_path, "m-1.safetensors")
    (warning,) = discover(tmp_path).warnings
    assert "old.safetensors" in warning


@pytest.mark.parametrize("text", ["{", "[]", "5", '{"weight_map": 5}', '{"weight_map": {"w": []}}', "\udcff"])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    put(tmp_path, "m-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match="not an index"):
        discover(tmp_path)


@pytest.mark.parametrize("path", ["empty", "absent"])
def test_nothing_there(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        discover(tmp_path / path)


# --- an index


def test_an_index_of_any_name_is_found(tmp_path: Path) -> None:
    for name in ("quant_model.safetensors.index.json", "param_name_map_1.json", "index.json", "model.ckpt.index.json"):
        folder = put(tmp_path / name, "m-1.safetensors", "other.safetensors")
        write_index(folder, "m-1.safetensors", name=name)
        assert chosen(folder) == {0: "m-1.safetensors"}
        assert discover(folder).index == str(folder / name)


def test_several_indexes_are_named(tmp_path: Path) -> None:
    put(tmp_path, "m-1.safetensors", "o-1.safetensors")
    write_index(tmp_path, "m-1.safetensors", name="model.safetensors.index.json")
    write_index(tmp_path, "o-1.safetensors", name="optimizer.safetensors.index.json")
    with pytest.raises(CheckpointError) as caught:
        discover(tmp_path)
    assert all(f"{tmp_path}/{kind}.safetensors.index.json" in caught.value.hint for kind in ("model", "optimizer"))
    assert chosen(tmp_path / "optimizer.safetensors.index.json") == {0: "o-1.safetensors"}


def test_two_indexes_of_one_content_are_one(tmp_path: Path) -> None:
    put(tmp_path, "m-1.safetensors")
    write_index(tmp_path, "m-1.safetensors", name="model.safetensors.index.json")
    write_index(tmp_path, "m-1.safetensors", name="param_name_map.json")
    assert chosen(tmp_path) == {0: "m-1.safetensors"}


@pytest.mark.parametrize("bare", [False, True])
def test_the_map_that_mindformers_leaves_in_a_hugging_face_folder_is_passed_over(tmp_path: Path, bare: bool) -> None:
    """It has the names that MindFormers gives to what the files hold under others."""
    put(tmp_path, "m-1.safetensors", "m-2.safetensors")
    write_index(tmp_path, "m-1.safetensors", "m-2.safetensors", name="model.safetensors.index.json")
    named = {"model.norm_out.weight": "m-1.safetensors"}
    (tmp_path / "param_name_map.json").write_text(json.dumps(named if bare else {"weight_map": named}))
    assert discover(tmp_path).index == str(tmp_path / "model.safetensors.index.json")
    (tmp_path / "param_name_map.json").write_text(json.dumps({"w": "m-3.safetensors"}))
    with pytest.raises(CheckpointError, match="2 indexes in one folder"):
        discover(tmp_path)


def test_an_index_of_torch_files_does_not_count_beside_others(tmp_path: Path) -> None:
    put(tmp_path, "model-1-of-2.safetensors", "model-2-of-2.safetensors", "pytorch_model-1-of-2.bin")
    write_index(tmp_path, "model-1-of-2.safetensors", "model-2-of-2.safetensors")
    write_index(tmp_path, "pytorch_model-1-of-2.bin", "gone.bin", name="pytorch_model.bin.index.json")
    assert [Path(p).name for _, p in discover(tmp_path).files] == [
        "model-1-of-2.safetensors",
        "model-2-of-2.safetensors",
    ]


def test_what_an_index_lacks_may_be_another_file(tmp_path: Path) -> None:
    put(tmp_path, "model.safetensors")
    write_index(tmp_path, "m-1.safetensors")
    with pytest.raises(CheckpointError) as caught:
        discover(tmp_path)
    assert f"name it: {tmp_path}/model.safetensors" in caught.value.hint


def test_an_index_beside_rank_folders(tmp_path: Path) -> None:
    put(tmp_path / "rank_0", "a.ckpt")
    put(tmp_path, "m-1.safetensors")
    write_index(tmp_path, "m-1.safetensors")
    with pytest.raises(CheckpointError, match="rank folders and an index"):
        discover(tmp_path)
    assert chosen(tmp_path / "model.safetensors.index.json") == {0: "m-1.safetensors"}


def test_a_suffix_chooses_where_an_index_is_not_meant(tmp_path: Path) -> None:
    put(tmp_path, "m-1-of-1.safetensors", "x-1-of-2.safetensors", "x-2-of-2.safetensors")
    write_index(tmp_path, "m-1-of-1.safetensors")
    assert [Path(p).name for _, p in discover(tmp_path, suffix="of-2").files] == [
        "x-1-of-2.safetensors",
        "x-2-of-2.safetensors",
    ]


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"<html>403</html>"])
def test_an_index_that_is_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, "m-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"not an index of weight files: a (Git LFS|web page)"):
        discover(tmp_path)


# --- a part is not the whole


@pytest.mark.parametrize(
    "there", [["m-1-of-3.ckpt", "m-3-of-3.ckpt"], ["part0.safetensors", "part2.safetensors"], ["x_1_of_2.safetensors"]]
)
def test_parts_that_their_names_tell_of(tmp_path: Path, there: list[str]) -> None:
    put(tmp_path, *there)
    with pytest.raises(
        CheckpointError, match=r"parts that their names tell of are missing:\n(m-2-of-3|part1|x_2_of_2)"
    ):
        discover(tmp_path)


def test_several_checkpoints_in_a_folder_are_named(tmp_path: Path) -> None:
    put(tmp_path, "consolidated.safetensors", "model.safetensors", "x-1-of-2.safetensors", "x-2-of-2.safetensors")
    with pytest.raises(CheckpointError, match="3 full checkpoints in one folder") as caught:
        discover(tmp_path)
    assert f"{tmp_path}/consolidated.safetensors or {tmp_path}/model.safetensors" in caught.value.hint
    assert "--suffix=-of-2" in caught.value.hint
    assert len(discover(tmp_path, suffix="-of-2").files) == 2


def test_one_part_by_name_is_warned_of(tmp_path: Path) -> None:
    put(tmp_path, "m-2-of-3.ckpt")
    (warning,) = discover(tmp_path / "m-2-of-3.ckpt").warnings
    assert "part 2 of 3" in warning


def test_the_file_of_one_of_several_ranks_is_warned_of(tmp_path: Path) -> None:
    put(tmp_path / "rank_0", "a.ckpt")
    assert discover(tmp_path / "rank_0" / "a.ckpt").warnings == ()
    put(tmp_path / "rank_1", "a.ckpt")
    (warning,) = discover(tmp_path / "rank_0" / "a.ckpt").warnings
    assert "beside 1 other rank" in warning


@pytest.mark.parametrize("index", [False, True])
def test_a_link_to_nothing_is_a_missing_file(tmp_path: Path, index: bool) -> None:
    put(tmp_path, "m-1-of-2.ckpt")
    (tmp_path / "m-2-of-2.ckpt").symlink_to("gone")
    if index:
        write_index(tmp_path, "m-1-of-2.ckpt", "m-2-of-2.ckpt")
    with pytest.raises(CheckpointError, match=r"m-2-of-2\.ckpt"):
        discover(tmp_path)


def test_a_twin_that_macos_leaves_is_no_weight_file(tmp_path: Path) -> None:
    put(tmp_path, "m.safetensors", "._m.safetensors", ".hidden.ckpt")
    put(tmp_path / "rank" / "rank_0", "a.ckpt", "._b.ckpt")
    assert chosen(tmp_path) == {0: "m.safetensors"}
    assert chosen(tmp_path / "rank") == {0: "a.ckpt"}


@pytest.mark.parametrize(
    "beside", ["b.safetensors.part", "b.safetensors.incomplete", "b.ckpt.crdownload", "a.ckpt.aria2"]
)
def test_a_download_that_is_not_finished(tmp_path: Path, beside: str) -> None:
    put(tmp_path, "a.ckpt", beside)
    with pytest.raises(CheckpointError, match="not finished"):
        discover(tmp_path)
    if beside != "a.ckpt.aria2":
        assert chosen(tmp_path / "a.ckpt") == {0: "a.ckpt"}
    else:
        with pytest.raises(CheckpointError, match="not finished"):
            discover(tmp_path / "a.ckpt")


def test_an_indexed_part_that_is_not_finished(tmp_path: Path) -> None:
    put(tmp_path, "m-1.safetensors", "m-1.safetensors.aria2", "x.safetensors.part")
    write_index(tmp_path, "m-1.safetensors")
    with pytest.raises(CheckpointError, match=r"not finished.*\n.*m-1.safetensors"):
        discover(tmp_path)
    (tmp_path / "m-1.safetensors.aria2").unlink()
    assert chosen(tmp_path) == {0: "m-1.safetensors"}


def test_what_is_left_of_a_download_that_was_done(tmp_path: Path) -> None:
    put(tmp_path, "a.ckpt", "a.ckpt.part")
    assert chosen(tmp_path) == {0: "a.ckpt"}


# --- rank folders that are not what they seem


@pytest.mark.parametrize("kind", ["empty", "link", "file"])
def test_a_rank_without_weights_makes_the_others_slices(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "rank_0", "a.ckpt")
    assert discover(tmp_path).whole
    place = tmp_path / "rank_1"
    {"empty": place.mkdir, "file": place.touch, "link": lambda: place.symlink_to("gone")}[kind]()
    found = discover(tmp_path)
    assert (found.empty, found.whole) == ((1,), False)


@pytest.mark.parametrize(
    "names",
    [
        {0: "llama_rank_0-1_1.ckpt", 1: "llama_rank_0-1_1.ckpt"},
        {0: "llama_rank_1-1_1.ckpt", 1: "llama_rank_0-1_1.ckpt"},
        {0: "checkpoint_0.safetensors", 1: "checkpoint_0.safetensors"},
        {0: "net_0.ckpt", 1: "net_2.ckpt", 2: "net_1.ckpt"},
        {0: "net_0.ckpt", 1: "net_0.ckpt", 2: "net_2.ckpt"},
    ],
)
def test_the_file_of_another_rank(tmp_path: Path, names: dict[int, str]) -> None:
    for rank, name in names.items():
        put(tmp_path / f"rank_{rank}", name)
    with pytest.raises(CheckpointError, match=r"files of other ranks than their folders:\nrank_[01]/"):
        discover(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        {0: "net_5.ckpt", 1: "net_5.ckpt"},
        {0: "net-1_0.ckpt", 1: "net-1_1.ckpt"},
        {0: "llama_lora_rank_8-1_1.ckpt", 1: "llama_lora_rank_8-1_1.ckpt"},
        {0: "llama_rank_0-1_1.ckpt", 3: "llama_rank_3-1_1.ckpt"},
        {0: "net_100.ckpt", 1: "net_200.ckpt"},
        {8: "net_0.ckpt", 9: "net_1.ckpt"},
    ],
)
def test_numbers_that_are_not_those_of_ranks(tmp_path: Path, names: dict[int, str]) -> None:
    for rank, name in names.items():
        put(tmp_path / f"rank_{rank}", name)
    assert chosen(tmp_path) == names


def test_parts_in_a_rank_folder(tmp_path: Path) -> None:
    put(tmp_path / "rank_0", "m-1-of-2.safetensors", "m-2-of-2.safetensors")
    with pytest.raises(CheckpointError, match="of a rank folder one file is taken"):
        discover(tmp_path)


def test_a_rank_whose_file_is_a_link_to_nothing(tmp_path: Path) -> None:
    put(tmp_path / "rank_0", "a-1_1.ckpt")
    (tmp_path / "rank_0" / "a-1_2.ckpt").symlink_to("gone")
    with pytest.raises(CheckpointError, match=r"links that lead to nothing:\n.*a-1_2"):
        discover(tmp_path)
