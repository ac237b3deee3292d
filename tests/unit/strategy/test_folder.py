"""What a strategy path means: one file, a merged file, a folder of the files of all stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from making import array, stage_bytes, write_file, write_strategy
from reshard.errors import StorageError, StrategyError
from reshard.layout.tensor import Layout, Sharding
from reshard.strategy.folder import encode, merge_stages, read_strategy
from reshard.strategy.json_file import encode_json_layout, encode_json_made, write_json
from reshard.strategy.protobuf import encode_made

CUT = Sharding((2,), ((0,),))
WHOLE = Sharding((2,), ((),))


def put(folder: Path, rank: int, stage: int, shardings: dict[str, Sharding]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"ckpt_strategy_rank_{rank}.ckpt"
    path.write_bytes(stage_bytes(stage, shardings))
    return path


def put_json(folder: Path, rank: int, stage: int) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"strategy_rank_{rank}.json"
    items = {"w": encode_json_layout(Layout((4,), CUT))}
    path.write_bytes(write_json([encode_json_made(encode_made(stage))], items, stage))
    return path


def test_one_file_of_one_stage(tmp_path: Path) -> None:
    found = read_strategy(put(tmp_path, 0, 0, {"w": CUT}))
    assert (found.world, found.devices, dict(found.stages[0])) == (2, 2, {"w": CUT})


def test_stages_are_ordered_by_what_the_files_say(tmp_path: Path) -> None:
    write_strategy(tmp_path / "s", [{"a": CUT}, {"b": WHOLE}, {"c": CUT}])
    found = read_strategy(tmp_path / "s")
    assert [dict(s) for s in found.stages] == [{"a": CUT}, {"b": WHOLE}, {"c": CUT}]
    assert found.world == 6


def test_a_stage_of_ten_and_more(tmp_path: Path) -> None:
    write_strategy(tmp_path / "s", [{f"w{i}": CUT} for i in range(12)])
    assert [list(s) for s in read_strategy(tmp_path / "s").stages] == [[f"w{i}"] for i in range(12)]


def test_files_of_all_ranks_are_one_for_each_stage(tmp_path: Path) -> None:
    for rank in range(4):
        put(tmp_path, rank, rank // 2, {f"w{rank // 2}": CUT})
    assert len(read_strategy(tmp_path).stages) == 2


def test_a_pure_pipeline(tmp_path: Path) -> None:
    one = Sharding((1,), ((),))
    write_strategy(tmp_path / "s", [{"a": one}, {"b": one}])
    assert read_strategy(tmp_path / "s").world == 2


def test_a_pure_pipeline_with_an_empty_matrix(tmp_path: Path) -> None:
    none = Sharding((), ((),))
    write_strategy(tmp_path / "s", [{"a": none}, {"b": none}])
    found = read_strategy(tmp_path / "s")
    assert (found.world, found.devices) == (2, 1)


def test_a_tied_parameter_stands_in_two_stages(tmp_path: Path) -> None:
    write_strategy(tmp_path / "s", [{"w": CUT, "a": CUT}, {"w": WHOLE}])
    assert read_strategy(tmp_path / "s").stages_of("w") == (0, 1)


def test_a_missing_stage_is_named(tmp_path: Path) -> None:
    put(tmp_path, 0, 0, {"a": CUT})
    put(tmp_path, 4, 2, {"c": CUT})
    with pytest.raises(StrategyError, match="pipeline stages 0, 2 found, 1 missing"):
        read_strategy(tmp_path)


def test_a_file_of_a_later_stage_alone(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match="pipeline stage 1 alone"):
        read_strategy(put(tmp_path, 2, 1, {"a": CUT}))


def test_two_strategies_in_one_folder(tmp_path: Path) -> None:
    put(tmp_path, 0, 0, {"w": CUT})
    put(tmp_path, 1, 0, {"w": WHOLE})
    with pytest.raises(StrategyError, match=r"rank_0\.ckpt and ckpt_strategy_rank_1\.ckpt contradict"):
        read_strategy(tmp_path)


def test_a_file_named_for_a_rank_of_another_stage(tmp_path: Path) -> None:
    put(tmp_path, 0, 0, {"a": CUT})
    put(tmp_path, 1, 1, {"b": CUT})
    with pytest.raises(StrategyError, match=r"rank_1\.ckpt describes stage 1 of 2 ranks a stage"):
        read_strategy(tmp_path)


def test_a_file_left_over_from_a_larger_job(tmp_path: Path) -> None:
    for rank in (0, 1, 2, 3):
        put(tmp_path, rank, 0, {"a": CUT})
    with pytest.raises(StrategyError, match=r"ckpt_strategy_rank_2.ckpt: the stages found have ranks 0 to 1"):
        read_strategy(tmp_path)


def test_stages_of_different_size(tmp_path: Path) -> None:
    put(tmp_path, 0, 0, {"a": CUT})
    put(tmp_path, 2, 1, {"b": Sharding((4,), ((0,),))})
    with pytest.raises(StrategyError, match=r"stages of different size: \[2, 4\]"):
        read_strategy(tmp_path)


def test_tensors_on_different_numbers_of_ranks(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match="'a' is laid out on 2 ranks, 'b' on 4"):
        read_strategy(put(tmp_path, 0, 0, {"a": CUT, "b": Sharding((4,), ((0,),))}))


def test_both_kinds_in_one_folder(tmp_path: Path) -> None:
    put(tmp_path, 0, 0, {"w": CUT})
    put_json(tmp_path, 0, 0)
    with pytest.raises(StrategyError, match=r"both \.ckpt and \.json"):
        read_strategy(tmp_path)


def test_other_json_beside_strategies_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path, 0, 0, {"w": CUT})
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "readme.txt").write_text("hello")
    assert read_strategy(tmp_path).world == 2


def test_a_folder_of_json(tmp_path: Path) -> None:
    put_json(tmp_path, 0, 0)
    put_json(tmp_path, 2, 1)
    assert read_strategy(tmp_path).world == 4


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_nothing_there(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StrategyError):
        read_strategy(tmp_path / folder)


# --- merged files


def merged(folder: Path) -> bytes:
    return encode(merge_stages(folder), current_stage=1)


def test_a_merged_file_means_what_its_folder_means(tmp_path: Path) -> None:
    write_strategy(tmp_path / "s", [{"a-b": CUT, "tied": CUT}, {"0-c": WHOLE, "tied": WHOLE}])
    one = tmp_path / "merged.ckpt"
    one.write_bytes(merged(tmp_path / "s"))
    assert read_strategy(one).stages == read_strategy(tmp_path / "s").stages


def test_an_old_merged_file_in_the_folder_is_passed_over(tmp_path: Path) -> None:
    folder = write_strategy(tmp_path / "s", [{"a": CUT}, {"b": CUT}])
    data = merged(folder)
    write_strategy(tmp_path / "t", [{"a": WHOLE}, {"b": WHOLE}])
    (tmp_path / "t" / "merged_ckpt_strategy.ckpt").write_bytes(data)
    assert [dict(s) for s in read_strategy(tmp_path / "t").stages] == [{"a": WHOLE}, {"b": WHOLE}]


def test_a_folder_of_one_merged_file(tmp_path: Path) -> None:
    folder = write_strategy(tmp_path / "s", [{"a": CUT}, {"b": CUT}])
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "merged.ckpt").write_bytes(merged(folder))
    assert read_strategy(tmp_path / "m").stages == read_strategy(folder).stages


def test_a_folder_of_two_merged_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for i, cut in enumerate([CUT, WHOLE]):
        folder = write_strategy(tmp_path / f"s{i}", [{"a": cut}])
        (tmp_path / "m" / f"{i}.ckpt").write_bytes(merged(folder))
    with pytest.raises(StrategyError, match="two strategies are mixed"):
        read_strategy(tmp_path / "m")


def test_names_with_a_dash_are_no_stages(tmp_path: Path) -> None:
    found = read_strategy(put(tmp_path, 0, 0, {"layer-0": CUT, "0-x": CUT}))
    assert set(found.stages[0]) == {"layer-0", "0-x"}


def test_a_folder_that_may_not_be_read_is_no_strategy_error(tmp_path: Path) -> None:
    path = put(tmp_path, 0, 0, {"w": CUT})
    path.unlink()
    path.mkdir()
    with pytest.raises((StorageError, StrategyError)):
        read_strategy(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
    ],
)
@pytest.mark.parametrize("name", ["s.ckpt", "s.json"])
def test_what_is_no_strategy_is_named_by_its_first_bytes(tmp_path: Path, content: bytes, said: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StrategyError, match=f"it is {said}.*, not a strategy file"):
        read_strategy(tmp_path / name)


def test_weights_are_not_to_be_renamed_to_a_strategy(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m.safetensors", {"w": array((4,))}).rename(tmp_path / "s.ckpt")
    with pytest.raises(StrategyError) as error:
        read_strategy(path)
    assert "rename" not in error.value.hint
    assert "ckpt_strategy_rank_x.ckpt" in error.value.hint


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everywhere, so that the system says no is told here by hand."""
    put(tmp_path, 0, 0, {"w": CUT})

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        read_strategy(tmp_path)
