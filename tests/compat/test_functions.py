"""MindSpore's functions: signatures, what they leave on disk, exceptions, arrays and Parameters."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from golden.readers import read_weights
from making import Stages, counted, read_file, same, shard_of, tree, write_file, write_ranks, write_strategy
from reshard.compat import mindspore as ms
from reshard.compat.mindspore import loading, unifying
from reshard.layout.tensor import Sharding

FOUR: Stages = [{"w": Sharding((2, 2), ((0,), ())), "n": Sharding((2, 2), ((),))}]
STAGES: Stages = [
    {"layers.0.w": Sharding((2,), ((0,), ()), opt_shard=0)},
    {"layers.1.w": Sharding((2,), ((), ()), opt_shard=-1)},
]
FULL = {"w": counted(4, 2), "n": counted(3)}
LAYERS = {"layers.0.w": counted(4, 2), "layers.1.w": counted(2, 2)}

SIGNATURES = {  # of MindSpore 2.7.2
    "transform_checkpoints": "(src_checkpoints_dir, dst_checkpoints_dir, ckpt_prefix, src_strategy_file=None, "
    "dst_strategy_file=None, process_num=1, output_format='ckpt')",
    "transform_checkpoint_by_rank": "(rank_id, checkpoint_files_map, save_checkpoint_file_name, "
    "src_strategy_file=None, dst_strategy_file=None)",
    "rank_list_for_transform": "(rank_id, src_strategy_file=None, dst_strategy_file=None)",
    "convert_checkpoints": "(src_checkpoints_dir, dst_checkpoints_dir, ckpt_prefix, src_strategy_file=None, "
    "dst_strategy_file=None, process_num=1, output_format='ckpt')",
    "convert_checkpoint_by_rank": "(rank_id, checkpoint_files_map, save_checkpoint_file_name, "
    "src_strategy_file=None, dst_strategy_file=None)",
    "rank_list_for_convert": "(rank_id, src_strategy_file=None, dst_strategy_file=None)",
    "merge_pipeline_strategys": "(src_strategy_dirs, dst_strategy_file)",
    "build_searched_strategy": "(strategy_filename)",
    "unified_safetensors": "(src_dir, src_strategy_file, dst_dir, merge_with_redundancy=True, file_suffix=None, "
    "max_process_num=64, choice_func=None, split_dst_file=())",
    "load_distributed_checkpoint": "(network, checkpoint_filenames=None, predict_strategy=None, "
    "train_strategy_filename=None, strict_load=False, dec_key=None, dec_mode='AES-GCM', format='ckpt', "
    "unified_safetensors_dir=None, dst_safetensors_dir=None, rank_id=None, output_format='safetensors', "
    "name_map=None, max_process_num=64, return_param_dict=False)",
    "ckpt_to_safetensors": "(file_path, save_path=None, name_map=None, file_name_regex=None, processes_num=1)",
    "safetensors_to_ckpt": "(file_path, save_path=None, name_map=None, file_name_regex=None, processes_num=1)",
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``ckpt`` on four ranks and its strategy ``four``, ``pipe`` and its strategy ``stages``; the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK_ID", raising=False)
    monkeypatch.setattr(loading, "_mindspore", lambda: None)
    write_ranks(tmp_path / "ckpt", FULL, FOUR)
    write_strategy(tmp_path / "four", FOUR)
    write_ranks(tmp_path / "pipe", LAYERS, STAGES)
    write_strategy(tmp_path / "stages", STAGES)


def test_signatures_and_defaults() -> None:
    assert sorted(ms.__all__) == sorted(SIGNATURES)
    for name, want in SIGNATURES.items():
        signature = inspect.signature(getattr(ms, name))
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        assert str(inspect.Signature(bare)) == want


def four() -> str:
    return "four/ckpt_strategy_rank_0.ckpt"


# --- transform_checkpoints, transform_checkpoint_by_rank


def test_what_is_in_the_target_stays_or_is_replaced() -> None:
    write_file(Path("out/rank_0/mine.ckpt"), FULL)
    for _ in range(2):
        ms.transform_checkpoints("ckpt", "out", "p", four())
    assert sorted(tree(Path("out"))) == ["rank_0/mine.ckpt", "rank_0/p0.ckpt"]
    assert same(read_file(Path("out/rank_0/p0.ckpt"))["w"], FULL["w"])
    assert sorted(p.name for p in Path().iterdir()) == ["ckpt", "four", "out", "pipe", "stages"]


def test_a_target_that_would_replace_a_source_is_refused() -> None:
    before = tree(Path("ckpt"))
    with pytest.raises(ValueError, match="would replace a source"):
        ms.transform_checkpoints("ckpt", "ckpt", "model_", four())
    assert tree(Path("ckpt")) == before


def test_one_full_safetensors_file_is_cut() -> None:
    write_file(Path("full.safetensors"), FULL)
    ms.transform_checkpoints("full.safetensors", "out", "p", None, four(), output_format="safetensors")
    assert sorted(tree(Path("out"))) == [f"rank_{r}/p{r}.safetensors" for r in range(4)]
    assert same(read_file(Path("out/rank_1/p1.safetensors"))["w"], FULL["w"][2:])
    write_file(Path("full.ckpt"), FULL)
    with pytest.raises(NotADirectoryError):
        ms.transform_checkpoints("full.ckpt", "again", "p", None, four())


def test_ckpt_becomes_safetensors_too() -> None:
    ms.transform_checkpoints("ckpt", "out", "p", four(), output_format="safetensors")
    assert same(read_file(Path("out/rank_0/p0.safetensors"))["w"], FULL["w"])


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("nowhere", "out", "p"), NotADirectoryError),
        (("four/ckpt_strategy_rank_0.ckpt", "out", "p"), NotADirectoryError),
        (("ckpt", "four/ckpt_strategy_rank_0.ckpt", "p"), NotADirectoryError),
        (("ckpt", "out", 3), TypeError),
        (("ckpt", "out", "p", 3), TypeError),
        (("ckpt", "out", "p", "nowhere.ckpt"), ValueError),
        (("ckpt", "out", "p", None, "nowhere.ckpt"), ValueError),
        (("ckpt", "out", "p", None, None, 1, "bin"), ValueError),
        (("ckpt", "out", "p"), ValueError),
        (("empty", "out", "p"), ValueError),
    ],
)
def test_transform_checkpoints_raises_as_the_reference(arguments: tuple[Any, ...], kind: type[Exception]) -> None:
    Path("empty").mkdir()
    with pytest.raises(kind):
        ms.transform_checkpoints(*arguments)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("0", {0: "ckpt/rank_0/model_0.ckpt"}, "out.ckpt"), TypeError),
        ((0, ["ckpt/rank_0/model_0.ckpt"], "out.ckpt"), TypeError),
        ((0, {0: "ckpt/rank_0/model_0.ckpt"}, Path("out.ckpt")), TypeError),
        ((0, {0: "ckpt/rank_0/model_0.ckpt"}, "out.safetensors"), ValueError),
        ((0, {0: "nowhere"}, "out.ckpt"), ValueError),
        ((0, {}, "out.ckpt"), ValueError),
        ((0, {0: None}, "out.ckpt"), ValueError),
        ((0, {"zero": "ckpt/rank_0/model_0.ckpt"}, "out.ckpt"), ValueError),
        ((0, {0: "ckpt/rank_0/model_0.ckpt", "0": "ckpt/rank_1/model_1.ckpt"}, "out.ckpt"), ValueError),
        ((0, {0: "ckpt/rank_0/model_0.ckpt"}, "out.ckpt", "four/ckpt_strategy_rank_0.ckpt"), ValueError),
        ((9, {0: "ckpt/rank_0/model_0.ckpt"}, "out.ckpt", None, "four"), ValueError),
    ],
)
def test_by_rank_raises_as_the_reference(arguments: tuple[Any, ...], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        ms.transform_checkpoint_by_rank(*arguments)
    assert not Path("out.ckpt").exists()


def test_by_rank_reads_one_stage_alone() -> None:
    ranks = ms.rank_list_for_transform(3, "stages", "stages")
    assert ranks == [3]
    files = {rank: f"pipe/rank_{rank}/model_{rank}.ckpt" for rank in ranks}
    ms.transform_checkpoint_by_rank(3, files, "new/x.ckpt", "stages", "stages")
    assert read_file(Path("new/x.ckpt")).keys() == {"layers.1.w"}
    assert [p.name for p in Path("new").iterdir()] == ["x.ckpt"]


@pytest.mark.parametrize("key", [np.int64, np.int32, str])
def test_by_rank_takes_numpy_ranks_and_ranks_as_text(key: Callable[[int], Any]) -> None:
    """MindSpore's own lists hold NumPy's numbers, and JSON has no others than text for keys."""
    files = {key(rank): f"ckpt/rank_{rank}/model_{rank}.ckpt" for rank in range(4)}
    ms.convert_checkpoint_by_rank(np.int64(0), files, "new.ckpt", four(), None)
    assert same(read_file(Path("new.ckpt"))["w"], FULL["w"])
    assert ms.rank_list_for_convert(np.int64(0), four()) == [1, 0]


def test_by_rank_refuses_a_weight_that_is_missing() -> None:
    write_file(Path("some.ckpt"), {"n": FULL["n"]})
    with pytest.raises(ValueError, match="w: no source file holds it"):
        ms.transform_checkpoint_by_rank(0, {0: "some.ckpt"}, "out.ckpt", None, "four")


# --- strategies


def test_rank_list_for_transform() -> None:
    assert ms.rank_list_for_transform(5) == [0]
    assert ms.rank_list_for_transform(0, four()) == [1, 0]
    with pytest.raises(TypeError):
        ms.rank_list_for_transform("0")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        ms.rank_list_for_transform(0, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not among the target's 1 rank"):
        ms.rank_list_for_transform(1, four())


@pytest.mark.parametrize(
    ("source", "target", "rank", "needed"),
    [
        (Sharding((16,), ((0,),)), Sharding((2, 4, 1, 2), ((3,),)), 11, [15, 14, 13, 12, 11, 10, 9, 8]),
        (Sharding((4,), ((), (0,))), Sharding((2, 2), ((), (1,)), opt_shard=-1), 0, [1, 0]),
        (Sharding((2, 8), ((1,), ()), opt_shard=4), Sharding((1, 4, 2, 2), ((2,), (0,))), 6, [7, 6, 5, 4]),
        (Sharding((2, 4), ((), (0, 1))), Sharding((2, 4), ((), (0,))), 5, [5, 1]),
        (Sharding((4, 2), ((0,), ())), Sharding((8,), ((), (0,))), 5, [5, 4]),
    ],
)
def test_ranks_of_the_block_that_both_sides_cut_alike(
    source: Sharding, target: Sharding, rank: int, needed: list[int]
) -> None:
    """As MindSpore 2.7.2 answers: not all ranks of a dim, where the target cuts it less finely along the same lines."""
    sides = [str(write_strategy(Path(name), [{"w": cut}])) for name, cut in (("a", source), ("b", target))]
    assert ms.rank_list_for_transform(rank, *sides) == needed


def test_build_searched_strategy() -> None:
    assert ms.build_searched_strategy(None) is None
    layout = (ms.build_searched_strategy(four()) or {})["w"]
    assert [tuple(m.dim) for m in layout.dev_matrix] == [(2, 2)]
    assert [tuple(m.dim) for m in layout.tensor_map] == [(0, -1)]
    assert (layout.field, layout.opt_weight_shard_step, layout.opt_weight_shard_size) == (0, 0, 0)
    ms.merge_pipeline_strategys("stages", "merged.ckpt")
    merged = ms.build_searched_strategy("merged.ckpt") or {}
    assert merged.keys() == {"0-layers.0.w", "1-layers.1.w"}
    assert (merged["1-layers.1.w"].opt_weight_shard_step, merged["1-layers.1.w"].opt_weight_shard_size) == (1, -1)
    for wrong, kind in (
        (3, TypeError),
        ("nowhere", ValueError),
        ("four", ValueError),
        ("ckpt/rank_0/model_0.ckpt", ValueError),
    ):
        with pytest.raises(kind):
            ms.build_searched_strategy(wrong)  # type: ignore[arg-type]


def test_merge_wants_a_folder() -> None:
    with pytest.raises(NotADirectoryError):
        ms.merge_pipeline_strategys(four(), "merged.ckpt")


# --- unified_safetensors


@pytest.fixture
def st() -> str:
    """Five tensors on four ranks, in safetensors; every part holds one."""
    cut = {f"t{i}": Sharding((2, 2), ((0,),)) for i in range(5)}
    write_strategy(Path("five"), [cut])
    write_ranks(Path("st"), {name: counted(4) + i for i, name in enumerate(cut)}, [cut], suffix=".safetensors")
    return "five/ckpt_strategy_rank_0.ckpt"


def test_shares_of_the_parts_make_the_whole(st: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unifying, "_PART_NBYTES", 16)
    ms.unified_safetensors("st", st, "whole", choice_func=lambda name: True)
    ms.unified_safetensors("st", st, "shares", choice_func=lambda name: True, split_dst_file=(2, 2))
    assert sorted(tree(Path("shares"))) == ["part3.safetensors", "part4.safetensors"]
    ms.unified_safetensors("st", st, "shares", choice_func=lambda name: True, split_dst_file=(1, 2))
    assert tree(Path("shares")) == tree(Path("whole"))
    assert len(tree(Path("whole"))) == 6


@pytest.mark.parametrize("split", [(0, 2), (3, 2)])
def test_a_share_that_does_not_exist(st: str, split: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="split_dst_file"):
        ms.unified_safetensors("st", st, "out", split_dst_file=split)


def test_choice_func_must_give_a_bool_or_a_name(st: str) -> None:
    with pytest.raises(ValueError, match="must return a bool or a str"):
        ms.unified_safetensors("st", st, "out", choice_func=lambda name: 1)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="would be called same"):
        ms.unified_safetensors("st", st, "out", choice_func=lambda name: "same")
    assert not Path("out").exists()


def test_choice_func_leaves_out_what_only_the_strategy_knows() -> None:
    cut = {name: Sharding((2, 2), ((0,),)) for name in ("a", "b", "absent")}
    write_strategy(Path("three"), [cut])
    held = {name: cut[name] for name in "ab"}
    write_ranks(Path("two"), {name: counted(4) for name in held}, [held], suffix=".safetensors")
    strategy = "three/ckpt_strategy_rank_0.ckpt"
    for choice in (None, lambda name: True, lambda name: name != "b"):
        with pytest.raises(ValueError, match="absent: no source file holds it"):
            ms.unified_safetensors("two", strategy, "out", choice_func=choice)
    assert not Path("out").exists()
    ms.unified_safetensors("two", strategy, "out", choice_func=lambda name: name == "a")
    assert read_file(Path("out/part0.safetensors")).keys() == {"a"}


def test_unified_safetensors_wants_a_folder(st: str) -> None:
    with pytest.raises(NotADirectoryError):
        ms.unified_safetensors("st", st, st)
    with pytest.raises(ValueError, match="src_strategy_file must be given"):
        ms.unified_safetensors("st", None, "out")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="can not be a file"):
        ms.unified_safetensors("st/rank_0/model_0.safetensors", st, "out")


# --- ckpt_to_safetensors, safetensors_to_ckpt


def test_there_and_back() -> None:
    write_file(Path("a/rank0/m.ckpt"), {**FULL, "b": counted(2, dtype="bfloat16")}, {"note": "words"})
    write_file(Path("a/rank0/other.ckpt"), FULL)
    write_file(Path("a/else/m.ckpt"), FULL)
    ms.ckpt_to_safetensors("a", "b", file_name_regex="^m")
    assert list(tree(Path("b"))) == ["rank0/m.safetensors"]
    ms.safetensors_to_ckpt("b")
    assert read_weights(Path("b/rank0/m.ckpt")) == read_weights(Path("a/rank0/m.ckpt"))
    assert sorted(p.name for p in Path("b/rank0").iterdir()) == ["m.ckpt", "m.safetensors"]


def test_one_file_with_other_names() -> None:
    write_file(Path("m.ckpt"), FULL)
    for _ in range(2):
        ms.ckpt_to_safetensors("m.ckpt", "new", {"w": "weight", "absent": "x"})
    assert read_file(Path("new/m.safetensors")).keys() == {"weight", "n"}
    ms.ckpt_to_safetensors("m.ckpt")
    assert same(read_file(Path("m.safetensors"))["w"], FULL["w"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("nowhere",),
        ("m.safetensors",),
        ("m.ckpt", "new.ckpt"),
        ("m.ckpt", None, ["w"]),
        ("m.ckpt", None, None, "^q"),
        ("four",),
        ("m.ckpt", None, {"w": "n"}),
    ],
)
def test_file_formats_raise_as_the_reference(arguments: tuple[Any, ...]) -> None:
    write_file(Path("m.ckpt"), FULL)
    write_file(Path("m.safetensors"), FULL)
    with pytest.raises(ValueError):
        ms.ckpt_to_safetensors(*arguments)


# --- load_distributed_checkpoint


@pytest.fixture
def unified() -> str:
    ms.transform_checkpoints("ckpt", "rank", "p", four(), output_format="safetensors")
    write_file(Path("unified/part0.safetensors"), FULL)
    return "unified"


@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
def test_slices_of_all_ranks_to_disk(unified: str, form: str) -> None:
    given: dict[str, Any] = {"format": "safetensors", "unified_safetensors_dir": unified, "dst_safetensors_dir": "out"}
    assert ms.load_distributed_checkpoint(None, predict_strategy=four(), output_format=form, **given) is True
    assert sorted(tree(Path("out"))) == [f"rank_{r}/net.{form}" for r in range(4)]
    for rank in range(4):
        made = read_file(Path(f"out/rank_{rank}/net.{form}"))
        assert all(same(made[n], shard_of(FULL[n], s, rank)) for n, s in FOUR[0].items())


@pytest.mark.parametrize(("strategy", "rows"), [("four", slice(2, 4)), (None, slice(0, 4))])
def test_slices_of_one_rank_to_disk(unified: str, strategy: str | None, rows: slice) -> None:
    for _ in range(2):
        ms.load_distributed_checkpoint(
            None,
            predict_strategy=strategy,
            format="safetensors",
            unified_safetensors_dir=unified,
            dst_safetensors_dir="out",
            rank_id=3,
        )
    assert list(tree(Path("out"))) == ["rank_3/net.safetensors"]
    assert same(read_file(Path("out/rank_3/net.safetensors"))["w"], FULL["w"][rows])


def test_this_ranks_arrays(unified: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(Path("unified/part0.safetensors"), {"theirs": FULL["w"], "n": counted(3, dtype="bfloat16")})
    given: dict[str, Any] = {"format": "safetensors", "unified_safetensors_dir": unified, "return_param_dict": True}
    given |= {"predict_strategy": "four", "name_map": {"w": "theirs"}}
    made = ms.load_distributed_checkpoint(object(), rank_id=1, **given)
    assert made.keys() == {"w", "n"}
    assert same(made["w"], FULL["w"][2:])
    assert made["n"].dtype == ml_dtypes.bfloat16
    monkeypatch.setenv("RANK_ID", "0")
    assert same(ms.load_distributed_checkpoint(None, **given)["w"], FULL["w"][:2])


def test_a_name_that_another_s_values_are_for_is_not_given_its_own(unified: str) -> None:
    """As MindSpore, which looks for ``theirs`` alone."""
    given: dict[str, Any] = {"format": "safetensors", "unified_safetensors_dir": unified, "return_param_dict": True}
    given |= {"predict_strategy": "four", "name_map": {"w": "theirs"}}
    write_file(Path("unified/part0.safetensors"), {"w": FULL["w"] + 1, "n": counted(3)})
    assert ms.load_distributed_checkpoint(None, rank_id=0, **given).keys() == {"n"}
    write_file(Path("unified/part0.safetensors"), {"w": FULL["w"] + 1, "theirs": FULL["w"]})
    assert same(ms.load_distributed_checkpoint(None, rank_id=0, **given)["w"], FULL["w"][:2])


def test_from_the_files_of_all_ranks() -> None:
    files = [f"ckpt/rank_{r}/model_{r}.ckpt" for r in range(4)]
    made = ms.load_distributed_checkpoint(None, files, None, four(), return_param_dict=True)
    assert all(same(made[n], FULL[n]) for n in FULL)


def as_lists(strategy: str) -> dict[str, Any]:
    """As ``Model.infer_predict_layout`` gives it: matrix, map, shape of a slice, field, uniform split, group."""
    found = (ms.build_searched_strategy(strategy) or {}).items()
    return {n: [list(v.dev_matrix[0].dim), list(v.tensor_map[0].dim), [2, 2], 0, True, ""] for n, v in found}


@pytest.mark.parametrize("kind", [ms.build_searched_strategy, as_lists])
def test_the_strategy_of_prediction_as_a_dict(unified: str, kind: Callable[[str], Any]) -> None:
    given: dict[str, Any] = {"format": "safetensors", "unified_safetensors_dir": unified}
    for name, strategy in (("path", four()), ("dict", kind(four()))):
        ms.load_distributed_checkpoint(None, predict_strategy=strategy, dst_safetensors_dir=name, **given)
        made = ms.load_distributed_checkpoint(
            None, predict_strategy=strategy, rank_id=np.int64(3), return_param_dict=True, **given
        )
        assert same(made["w"], FULL["w"][2:])
    assert tree(Path("dict")) == tree(Path("path"))


def test_the_stages_of_a_merged_strategy_as_a_dict() -> None:
    ms.merge_pipeline_strategys("stages", "merged.ckpt")
    write_file(Path("layers/part0.safetensors"), LAYERS)
    given: dict[str, Any] = {"format": "safetensors", "unified_safetensors_dir": "layers", "return_param_dict": True}
    made = ms.load_distributed_checkpoint(
        None, predict_strategy=ms.build_searched_strategy("merged.ckpt"), rank_id=3, **given
    )
    assert made.keys() == {"layers.1.w"}
    assert same(made["layers.1.w"], LAYERS["layers.1.w"][1:])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "w: expected a list of device matrix"),
        ([[2], [0]], "w: expected a list of device matrix"),
        ([[2], [0, -1], [2, 2], 1], "split by hand"),
        ([[2], [5, -1], [2, 2], 0], "names an axis outside"),
        ([[2], [0, -1], [2, 2], 0, True, "4-123"], "its optimizer shard is known as the group '4-123' only"),
    ],
)
def test_a_dict_that_is_no_strategy(unified: str, value: Any, said: str) -> None:
    given: dict[str, Any] = {"format": "safetensors", "unified_safetensors_dir": unified, "return_param_dict": True}
    with pytest.raises(ValueError, match=said):
        ms.load_distributed_checkpoint(None, predict_strategy={"w": value}, **given)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"format": "bin"}, ValueError),
        ({"format": "safetensors"}, ValueError),
        ({"format": "safetensors", "unified_safetensors_dir": "unified"}, ValueError),
        ({"format": "safetensors", "unified_safetensors_dir": "unified", "strict_load": True}, ValueError),
        ({"format": "safetensors", "unified_safetensors_dir": "unified", "predict_strategy": {}}, TypeError),
        (
            {
                "format": "safetensors",
                "unified_safetensors_dir": "unified",
                "dst_safetensors_dir": "x",
                "predict_strategy": 3,
            },
            TypeError,
        ),
        ({"checkpoint_filenames": []}, ValueError),
        ({"dec_key": b"0" * 16}, ValueError),
        ({"checkpoint_filenames": ["unified/part0.safetensors"]}, RuntimeError),
    ],
)
def test_load_raises_as_the_reference(unified: str, given: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        ms.load_distributed_checkpoint(None, **given)


def test_with_mindspore_parameters_come_back_and_networks_are_loaded(
    unified: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tensor(SimpleNamespace):
        def __init__(self, array: Any, dtype: Any = None) -> None:
            super().__init__(array=array, dtype=dtype)

        from_numpy = classmethod(lambda cls, array: cls(array))

    fake = ModuleType("mindspore")
    fake.__spec__ = ModuleSpec("mindspore", None)
    fake.Tensor, fake.bfloat16 = Tensor, "bf16"  # type: ignore[attr-defined]
    fake.Parameter = lambda value, name: SimpleNamespace(value=value, name=name)  # type: ignore[attr-defined]
    fake.communication = SimpleNamespace(get_rank=lambda: 1)  # type: ignore[attr-defined]
    fake.load_param_into_net = lambda net, made, strict_load: (net, sorted(made))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mindspore", fake)
    monkeypatch.setattr(loading, "_mindspore", lambda: fake)
    write_file(Path("unified/part0.safetensors"), {"w": FULL["w"], "n": counted(3, dtype="bfloat16")})
    given: dict[str, Any] = {"format": "safetensors", "unified_safetensors_dir": unified, "predict_strategy": "four"}
    made = ms.load_distributed_checkpoint("network", return_param_dict=True, **given)
    assert made["w"].name == "w"
    assert same(made["w"].value.array, FULL["w"][2:])
    assert (made["n"].value.dtype, made["n"].value.array.dtype) == ("bf16", np.float32)
    assert ms.load_distributed_checkpoint("network", **given) == ("network", ["n", "w"])
    files = [f"ckpt/rank_{r}/model_{r}.ckpt" for r in range(4)]
    assert ms.load_distributed_checkpoint("network", files, None, four()) is True
