"""Spellings, unset values, booleans, which file of several, what is left on disk, and failures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from making import Stages, counted, read_file, same, shard_of, tree, write_file, write_ranks, write_strategy
from reshard.cli.main import main as program
from reshard.compat import strategies, transform_checkpoint
from reshard.compat.convert_reversed import main as convert_reversed
from reshard.compat.transform_checkpoint import main
from reshard.compat.transform_ckpt import main as transform_ckpt
from reshard.compat.transform_ckpt_lora import main as transform_ckpt_lora
from reshard.compat.unified_safetensors import main as unified_safetensors
from reshard.errors import StorageError
from reshard.layout.tensor import Sharding

SH = Path(__file__).parents[2] / "scripts" / "transform_checkpoint.sh"
FOUR: Stages = [{"w": Sharding((4,), ((0,),)), "n": Sharding((4,), ((),))}]
TWO: Stages = [{"w": Sharding((2,), ((0,),)), "n": Sharding((2,), ((),))}]
FULL = {"w": counted(8), "n": counted(3)}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``full.ckpt``, ``ckpt`` on four ranks, the strategies ``four`` and ``two``; the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK_ID", raising=False)
    write_file(tmp_path / "full.ckpt", FULL)
    write_ranks(tmp_path / "ckpt", FULL, FOUR)
    write_strategy(tmp_path / "four", FOUR)
    write_strategy(tmp_path / "two", TWO)
    return tmp_path


def held(path: str) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in read_file(Path(path)).items()}


W, N = FULL["w"].tolist(), FULL["n"].tolist()


@pytest.mark.parametrize(
    "words",
    [
        "--src_checkpoint=ckpt --dst_checkpoint=out --src_strategy=four --dst_strategy=two",
        "--src_checkpoint ckpt --dst_checkpoint_dir out --src_strategy four --dst_strategy two",
        "--src_checkpoint ckpt --dst_c out --src_s four --dst_s two",
        "--src_ckpt_dir ckpt --dst_ckpt_dir out --src_ckpt_strategy four --dst_ckpt_strategy two",
        "--src_ckpt_path_or_dir ckpt --dst_ckpt_dir out --src_strategy_path_or_dir four --dst_strategy two",
        "--src_checkpoint=ckpt/ --dst_checkpoint=out/ --src_strategy=four/ --dst_s=two/ --transform_by_rank=False",
        "--src_checkpoint=ckpt --dst_checkpoint=out --src_strategy=four --dst_s=two --world_size 2 --process_num 1",
    ],
)
def test_spellings(words: str) -> None:
    assert main(words.split()) == 0
    assert held("out/ckpt/rank_0/checkpoint_0.ckpt") == {"w": W[:4], "n": N}
    assert held("out/ckpt/rank_1/checkpoint_1.ckpt") == {"w": W[4:], "n": N}


@pytest.mark.parametrize("unset", ["", "None"])
def test_unset(unset: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--src_strategy={unset}", "--dst_strategy=two", f"--rank_id={unset}", f"--dst_checkpoint_dir={unset}"]
    assert main(["--src_checkpoint=full.ckpt", *words]) == 0
    assert held("transformed_checkpoint/full/rank_1/checkpoint_1.ckpt") == {"w": W[4:], "n": N}
    assert "`dst_checkpoint_dir` is set to" in capsys.readouterr().err


@pytest.mark.parametrize("unset", ["", "None", " None "])
def test_every_option_may_be_unset(unset: str) -> None:
    """Scripts hand every option on; the defaults are taken."""
    names = ("src_strategy", "prefix", "rank_id", "world_size", "transform_process_num", "transform_by_rank", "missing")
    words = [f"--{name}={unset}" for name in names]
    assert main(["--src_checkpoint=full.ckpt", "--dst_checkpoint=a", "--dst_strategy=two", *words]) == 0
    assert held("a/full/rank_1/checkpoint_1.ckpt") == {"w": W[4:], "n": N}
    given = ["--src_ckpt_dir=ckpt", "--src_ckpt_strategy=four", "--dst_ckpt_dir=b"]
    words = [word for name in ("dst_ckpt_strategy", "prefix", "missing") for word in (f"--{name}", unset)]
    assert transform_ckpt([*given, *words]) == 0
    assert held("b/rank_0/checkpoint_0.ckpt") == {"w": W, "n": N}
    write_file(Path("lora.ckpt"), LORA)
    words = [
        f"--{n}={unset}" for n in ("src_ckpt_strategy", "dst_ckpt_strategy", "prefix", "lora_scaling", "save_format")
    ]
    assert transform_ckpt_lora(["--src_ckpt_path_or_dir=lora.ckpt", "--dst_ckpt_dir=c", *words]) == 0
    assert Path("c/merged_lora.ckpt").is_file()
    write_ranks(Path("st"), FULL, FOUR, suffix="-1_1.safetensors")
    names = ("file_suffix", "format", "has_redundancy", "filter_out_param_prefix", "max_process_num")
    words = [f"--{name}={unset}" for name in names]
    assert unified_safetensors(["--mindspore_ckpt_dir=st", "--src_strategy_dirs=four", "--output_dir=d", *words]) == 0
    assert held("d/1_1_ckpt_convert/unified_safe/part0.safetensors") == {"w": W, "n": N}


def test_both_strategies_unset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--src_checkpoint=ckpt", "--dst_checkpoint=out", "--src_strategy=None", "--dst_strategy="]) == 2
    assert "`src_strategy` and `dst_strategy` cannot both be None!" in capsys.readouterr().err


def test_unknown_and_ambiguous_options_are_refused() -> None:
    for words in (["--nothing=1"], ["--src=ckpt"], ["--transform_by_rank=perhaps"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2


@pytest.mark.parametrize(("value", "taken"), [("False", 9), ("True", 10), ("", 9), ("0", 9), ("yes", 10)])
def test_false_is_false_and_each_rule_warns(value: str, taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    """By rank the file last changed is taken, else the last by name."""
    for rank in range(4):
        (Path(f"ckpt/rank_{rank}") / f"model_{rank}.ckpt").unlink()
        for step in (9, 10):
            shards = {n: shard_of(FULL[n] + step, s, rank) for n, s in FOUR[0].items()}
            path = write_file(Path(f"ckpt/rank_{rank}/m-1_{step}.ckpt"), shards)
            os.utime(path, (step, step))
    words = ["--src_strategy=four", "--dst_strategy=two", "--world_size=2", f"--transform_by_rank={value}"]
    assert main(["--src_checkpoint=ckpt", "--dst_checkpoint=out", *words]) == 0
    assert held("out/ckpt/rank_0/checkpoint_0.ckpt")["n"] == [n + taken for n in N]
    assert f"rank_0 gives m-1_{taken}.ckpt" in capsys.readouterr().err


def test_a_second_run_replaces_the_first_and_keeps_what_is_beside() -> None:
    assert main(["--src_checkpoint=full.ckpt", "--dst_checkpoint=out", "--dst_strategy=four"]) == 0
    write_file(Path("out/other/mine.ckpt"), FULL)
    assert main(["--src_checkpoint=full.ckpt", "--dst_checkpoint=out", "--dst_strategy=two"]) == 0
    assert sorted(tree(Path("out"))) == [
        "full/rank_0/checkpoint_0.ckpt",
        "full/rank_1/checkpoint_1.ckpt",
        "full/transform_succeed_rank_0.txt",
        "other/mine.ckpt",
    ]


def test_files_of_others_in_a_target_that_is_replaced_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--src_checkpoint=full.ckpt", "--dst_checkpoint=out", "--dst_strategy=two"]
    assert main(words) == 0
    Path("out/full/mine.txt").write_text("mine")
    assert main(words) == 0
    told = "warning: 1 file of others went with the old target:\nmine.txt\n"
    assert capsys.readouterr().err == told
    Path("out/full/mine.txt").write_text("mine")
    for rank in (1, 0):
        assert main([*words, "--world_size=2", "--process_num=2", f"--rank_id={rank}"]) == 0
    assert capsys.readouterr().err == told


def test_the_source_is_never_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(Path("ckpt"))
    assert main(["--src_checkpoint=ckpt", "--dst_checkpoint=.", "--src_strategy=four", "--dst_strategy=two"]) == 2
    assert tree(Path("ckpt")) == before
    assert "lies inside the target" in capsys.readouterr().err


def test_a_file_in_place_of_the_target_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("mine")
    words = ["--src_ckpt_strategy=four", "--src_ckpt_dir=ckpt", "--dst_ckpt_dir=taken"]
    assert (transform_ckpt(words), Path("taken").read_text()) == (3, "mine")
    assert main(["--src_checkpoint=ckpt", "--dst_checkpoint=taken", "--src_strategy=four"]) == 3
    assert capsys.readouterr().err.count("a file stands where its folder would be") == 2


def test_full_files_of_one_folder() -> None:
    write_file(Path("parts/a.ckpt"), {"w": FULL["w"]})
    write_file(Path("parts/b.ckpt"), {"n": FULL["n"]})
    assert main(["--src_checkpoint=parts", "--dst_checkpoint=out", "--dst_strategy=two"]) == 0
    assert held("out/a/rank_1/checkpoint_1.ckpt") == {"w": W[4:]}
    assert held("out/b/rank_1/checkpoint_1.ckpt") == {"n": N}
    assert all(Path(f"out/{name}/transform_succeed_rank_0.txt").is_file() for name in "ab")


def test_full_files_that_lack_a_tensor_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write_file(Path("parts/a.ckpt"), {"w": FULL["w"]})
    write_file(Path("parts/b.ckpt"), {"x": FULL["n"]})
    words = ["--src_checkpoint=parts", "--dst_checkpoint=out", "--dst_strategy=two"]
    assert main(words) == 3
    assert "n: no source file holds it" in capsys.readouterr().err
    assert main([*words, "--missing=drop"]) == 0


def test_several_full_checkpoints_in_one_folder_are_converted_each() -> None:
    for name, factor in (("a", 1), ("b", 2)):
        write_file(Path(f"models/{name}.ckpt"), {n: factor * value for n, value in FULL.items()})
    assert main(["--src_checkpoint=models", "--dst_checkpoint=out", "--dst_strategy=two"]) == 0
    assert held("out/a/rank_1/checkpoint_1.ckpt") == {"w": W[4:], "n": N}
    assert held("out/b/rank_1/checkpoint_1.ckpt") == {"w": [2 * w for w in W[4:]], "n": [2 * n for n in N]}


def test_a_part_beside_a_full_checkpoint_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of it is taken from the other."""
    write_file(Path("models/a.ckpt"), FULL)
    write_file(Path("models/b.ckpt"), {"w": FULL["w"]})
    words = ["--src_checkpoint=models", "--dst_checkpoint=out", "--dst_strategy=two"]
    assert main(words) == 3
    assert "models/b.ckpt: nobody can know what these should be:\nn: no source file holds it" in capsys.readouterr().err
    assert not [*Path("out").rglob("*.ckpt")]
    assert main([*words, "--missing=drop"]) == 0


def test_names_equal_up_to_the_first_dot() -> None:
    write_file(Path("parts/a.v1.ckpt"), {"w": FULL["w"]})
    write_file(Path("parts/a.v2.ckpt"), {"n": FULL["n"]})
    assert main(["--src_checkpoint=parts", "--dst_checkpoint=out", "--dst_strategy=two"]) == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.v1", "a.v2"]


def test_failure_leaves_its_signal_and_no_files(capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (2, 3):
        (Path(f"ckpt/rank_{rank}") / f"model_{rank}.ckpt").unlink()
    assert main(["--src_checkpoint=ckpt", "--dst_checkpoint=out", "--src_strategy=four"]) == 3
    assert list(tree(Path("out"))) == ["ckpt/transform_failed_rank_0.txt"]
    assert "w: 50% missing" in Path("out/ckpt/transform_failed_rank_0.txt").read_text()
    said = capsys.readouterr()
    assert ".........Transform failed due to: PlanError.........\n" in said.out
    assert (said.out + said.err).count("w: 50% missing") == 1


def test_a_success_removes_the_signal_of_a_failure() -> None:
    assert main(["--src_checkpoint=full.ckpt", "--dst_checkpoint=out", "--dst_strategy=nowhere"]) == 3
    assert Path("out/full/transform_failed_rank_0.txt").is_file()
    assert main(["--src_checkpoint=full.ckpt", "--dst_checkpoint=out", "--dst_strategy=two"]) == 0
    assert [p.name for p in Path("out/full").glob("*.txt")] == ["transform_succeed_rank_0.txt"]


def test_merged_strategy_is_made_anew_and_the_signal_is_gone() -> None:
    Path("four/merged_ckpt_strategy.ckpt").write_bytes(b"old")
    assert main(["--src_checkpoint=full.ckpt", "--dst_checkpoint=out", "--dst_strategy=four"]) == 0
    assert sorted(p.name for p in Path("four").iterdir()) == ["ckpt_strategy_rank_0.ckpt", "merged_ckpt_strategy.ckpt"]
    assert Path("four/merged_ckpt_strategy.ckpt").read_bytes() != b"old"
    words = ["--src_checkpoint=full.ckpt", "--dst_checkpoint=again", "--dst_strategy=four/merged_ckpt_strategy.ckpt"]
    assert main(words) == 0
    os.unlink("four/ckpt_strategy_rank_0.ckpt")
    assert main(["--src_checkpoint=full.ckpt", "--dst_checkpoint=third", "--dst_strategy=four"]) == 0
    assert tree(Path("out")) == tree(Path("again")) == tree(Path("third"))


def test_a_strategy_folder_that_may_not_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: str, out: str, *, overwrite: bool) -> str:
        raise StorageError("not allowed: Read-only file system", out)

    monkeypatch.setattr(strategies, "merge", refused)
    assert main(["--src_checkpoint=full.ckpt", "--dst_checkpoint=out", "--dst_strategy=four"]) == 0
    assert "merged_ckpt_strategy.ckpt is not written (not allowed" in capsys.readouterr().err
    assert held("out/full/rank_3/checkpoint_3.ckpt") == {"w": W[6:], "n": N}


def test_processes_make_their_own_ranks_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--src_checkpoint=full.ckpt", "--dst_checkpoint=out", "--dst_strategy=four"]
    several = [*words, "--world_size=4", "--process_num=2"]
    assert main(words) == 0  # of an earlier run: rank_4 is of a larger one, what lies in a rank folder is of no use
    write_file(Path("out/full/rank_4/checkpoint_4.ckpt"), FULL)
    write_file(Path("out/full/rank_2/stale.ckpt"), FULL)
    monkeypatch.setenv("RANK_ID", "2")
    assert main(several) == 0
    monkeypatch.setenv("RANK_ID", "1")
    assert main(several) == 0  # a process that is not among the two has nothing to do
    monkeypatch.delenv("RANK_ID")
    assert main([*several, "--rank_id=0"]) == 0
    assert main([*several, "--rank_id=4"]) == 2
    assert sorted(tree(Path("out/full"))) == [
        *(f"rank_{r}/checkpoint_{r}.ckpt" for r in range(4)),
        "transform_succeed_rank_0.txt",
        "transform_succeed_rank_2.txt",
    ]
    assert [p.name for p in Path("out").iterdir()] == ["full"]


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "--world_size=4 --process_num=2"),
        ({}, "--world_size=4 --process_num=4 --rank_id=None"),
        ({}, "--world_size=2 --process_num=2"),
        ({}, "--process_num=2"),
        ({"RANK_ID": ""}, "--world_size=4 --process_num=2"),
        ({"RANK_ID": "4"}, "--world_size=4 --process_num=1"),
        ({"RANK_ID": "4"}, ""),
        ({"RANK_ID": "x"}, "--world_size=4"),
    ],
)
def test_who_names_no_process_makes_all_ranks(
    environ: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main(["--src_checkpoint=full.ckpt", "--dst_checkpoint=out", "--dst_strategy=four", *words.split()]) == 0
    for rank in range(4):
        assert held(f"out/full/rank_{rank}/checkpoint_{rank}.ckpt") == {"w": W[2 * rank : 2 * rank + 2], "n": N}


def test_shares_must_fit_the_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--src_checkpoint=full.ckpt", "--dst_checkpoint=out", "--dst_strategy=four"]
    assert main([*words, "--world_size=2", "--process_num=2", "--rank_id=0"]) == 2
    assert main([*words, "--world_size=4", "--process_num=3"]) == 2
    assert main([*words, "--world_size=4", "--process_num=0"]) == 2
    said = capsys.readouterr().err
    assert "world_size is 2, the strategy has 4 ranks" in said
    assert "transform_process_num 3 does not divide world_size 4" in said
    assert main([*words, "--world_size=2", "--process_num=1"]) == 0
    assert "all are made" in capsys.readouterr().err


def shell(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", str(SH), *words], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_script_merges_to_full_by_several_processes() -> None:
    Path("log").mkdir()
    Path("log/mine.txt").write_text("kept")
    done = shell("ckpt", "four", "out", "None", "4", "2", "model_")
    assert done.returncode == 0, done.stderr
    assert held("out/ckpt/rank_0/model_0.ckpt") == {"w": W, "n": N}
    assert sorted(p.name for p in Path("out/ckpt").glob("rank_*")) == ["rank_0"]
    assert Path("log/mine.txt").read_text() == "kept"


def test_the_script_fails_when_a_child_fails() -> None:
    """rank_1 of the target needs what is missing; rank_0 does not, but the whole is refused by both."""
    (Path("ckpt/rank_3") / "model_3.ckpt").unlink()
    done = shell("ckpt", "four", "out", "two", "2", "2")
    assert done.returncode == 3
    assert "transform finished" not in done.stdout
    assert "process 1 failed with exit code 3" in done.stderr
    assert "w: 25% missing" in Path("log/transform_1.log").read_text()
    assert done.stderr.count("w: 25% missing") == 1
    assert Path("out/ckpt/transform_failed_rank_1.txt").is_file()


def test_the_script_takes_none_for_what_is_not_given() -> None:
    done = shell("full.ckpt", "None", "out", "two", "None", "", "None")
    assert done.returncode == 0, done.stderr
    assert held("out/full/rank_1/checkpoint_1.ckpt") == {"w": W[4:], "n": N}


@pytest.mark.parametrize("words", [("ckpt",), ("a", "b", "c", "d", "0", "1"), ("a", "b", "c", "d", "4", "3")])
def test_the_script_refuses_a_wrong_call(words: tuple[str, ...]) -> None:
    assert shell(*words).returncode == 2
    assert not Path("log").exists()


def test_the_older_tool() -> None:
    words = ["--src_ckpt_strategy", "four", "--src_ckpt_dir", "ckpt", "--dst_ckpt_dir", "out", "--prefix", "p_"]
    assert transform_ckpt([*words, "--dst_ckpt_strategy", "None"]) == 0
    assert held("out/rank_0/p_0.ckpt") == {"w": W, "n": N}
    write_file(Path("out/mine.ckpt"), FULL)
    assert transform_ckpt([*words, "--dst_ckpt_strategy", "two"]) == 0
    assert sorted(tree(Path("out"))) == ["mine.ckpt", "rank_0/p_0.ckpt", "rank_1/p_1.ckpt"]
    assert held("out/rank_0/p_0.ckpt") == {"w": W[:4], "n": N}


LORA = {"q.weight": counted(4, 4), "q.mindpet_delta_lora_a": counted(2, 4), "q.mindpet_delta_lora_b": counted(4, 2)}


def test_lora_scaling(capsys: pytest.CaptureFixture[str]) -> None:
    write_file(Path("lora.ckpt"), LORA)
    words = ["--src_ckpt_path_or_dir", "lora.ckpt", "--dst_ckpt_dir", "out"]
    product = LORA["q.mindpet_delta_lora_b"] @ LORA["q.mindpet_delta_lora_a"]
    assert transform_ckpt_lora(words) == 0
    assert "1 is taken" in capsys.readouterr().err
    assert same(read_file(Path("out/merged_lora.ckpt"))["q.weight"], LORA["q.weight"] + product)
    assert transform_ckpt_lora([*words, "--lora_scaling=0.5", "--save_format=safetensors"]) == 0
    made = read_file(Path("out/merged_lora.ckpt.safetensors"))["q.weight"]
    assert same(made, LORA["q.weight"] + product / 2)
    assert sorted(tree(Path("out"))) == ["merged_lora.ckpt", "merged_lora.ckpt.safetensors"]


def test_lora_slices_of_a_target_strategy() -> None:
    write_file(Path("lora.ckpt"), LORA)
    cut = {"q.weight": Sharding((2,), ((0,), ()))}
    write_strategy(Path("dst"), [cut])
    words = ["--src_ckpt_path_or_dir=lora.ckpt", "--dst_ckpt_dir=out", "--dst_ckpt_strategy=dst", "--lora_scaling=1"]
    assert transform_ckpt_lora(words) == 0
    whole = LORA["q.weight"] + LORA["q.mindpet_delta_lora_b"] @ LORA["q.mindpet_delta_lora_a"]
    assert same(read_file(Path("out/rank_1/checkpoint_1.ckpt"))["q.weight"], whole[2:])


def test_unified_safetensors(capsys: pytest.CaptureFixture[str]) -> None:
    write_ranks(Path("st"), FULL, FOUR, suffix="-1_1.safetensors")
    words = ["--mindspore_ckpt_dir=st", "--output_dir=out", "--format=ckpt", "--max_process_num=4"]
    assert unified_safetensors([*words, "--src_strategy_dirs=four"]) == 0
    assert capsys.readouterr().err == ""
    assert held("out/1_1_ckpt_convert/unified_safe/part0.safetensors") == {"w": W, "n": N}
    assert not Path("four/merged_ckpt_strategy.ckpt").exists()
    one = "--src_strategy_dirs=four/ckpt_strategy_rank_0.ckpt"
    assert unified_safetensors([*words, one, "--filter_out_param_prefix=w", "--has_redundancy=False"]) == 0
    assert "has_redundancy=False is not used" in capsys.readouterr().err
    assert held("out/1_1_ckpt_convert/unified_safe/part0.safetensors") == {"n": N}
    assert Path("out/1_1_ckpt_convert/merge_strategy/merge_strategy.ckpt").is_file()


def test_convert_reversed_leaves_the_merged_strategy_as_its_page_says() -> None:
    write_ranks(Path("st"), FULL, FOUR, suffix="-1_1.safetensors")
    assert convert_reversed(["--mindspore_ckpt_dir=st", "--tmp_dir=out", "--src_strategy_dirs=four"]) == 0
    assert Path("four/merged_ckpt_strategy.ckpt").is_file()


def test_what_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert unified_safetensors(["--src_strategy_dirs=four"]) == 2
    assert "--mindspore_ckpt_dir, --output_dir must be given" in capsys.readouterr().err
    assert main(["--dst_checkpoint=out"]) == 2
    assert transform_ckpt_lora(["--src_ckpt_path_or_dir=lora.ckpt"]) == 2


@pytest.mark.parametrize(
    "tool",
    ["transform_checkpoint", "transform_ckpt", "transform_ckpt_lora", "unified_safetensors", "convert_reversed"],
)
def test_every_tool_has_its_help(tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        program(["compat", tool, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: reshard compat {tool} [-h]" in shown
    assert f"  reshard compat {tool} \\\n" in shown


def test_exit_codes_reach_the_program() -> None:
    with pytest.raises(SystemExit) as stopped:
        program(["compat", "transform_checkpoint", "--src_checkpoint=nowhere", "--dst_strategy=two"])
    assert stopped.value.code == 3
    with pytest.raises(SystemExit) as stopped:
        program(["compat", "transform_checkpoint", "--src_checkpoint=full.ckpt", "--dst_c=out", "--dst_s=two"])
    assert stopped.value.code == 0


@pytest.mark.parametrize("by_reshard", [False, True])
def test_an_interrupt_is_a_failure_and_said_once(
    by_reshard: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transform_checkpoint, "execute", interrupted)
    words = ["--src_checkpoint=full.ckpt", "--dst_checkpoint=out", "--dst_strategy=two"]
    if by_reshard:
        with pytest.raises(SystemExit) as stopped:
            program(["compat", "transform_checkpoint", *words])
        assert stopped.value.code == 130
    else:
        assert main(words) == 130
    assert capsys.readouterr().err == "interrupted: no file under its final name is partial\n"
    assert Path("out/full/transform_failed_rank_0.txt").read_text() == "KeyboardInterrupt"


@pytest.mark.parametrize("script", sorted(SH.parent.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_run_by_another_python_says_what_it_lacks(script: Path) -> None:
    done = subprocess.run([sys.executable, "-I", "-S", script, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: reshard is not there for {sys.executable}; pip install it")
