"""``inspect`` ends with commands for what lies there, and these run as they are told."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from families.rows import FAMILIES
from golden.cases import run_reshard
from hub_model import qwen3, write_hub
from making import array, write_file, write_strategy
from reshard.layout.tensor import Sharding

KINDS = (
    "safetensors",
    "torch parts",
    "ours",
    "Checkpoint 2.0",
    "DeepSpeed, stage 2",
    "DCP, a grid",
    "FSDP2, uneven rows",
    "Megatron, flattened ranges",  # of states alone
    "rank folders",
)
UNKNOWN = "STRATEGY"
ASKED = {UNKNOWN, "CONFIG"}  # what only the user has


def told(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    """The commands that an inspection ends with."""
    assert run_reshard(["inspect", *words]) == 0
    _, found, after = capsys.readouterr().out.partition("\nnext:\n")
    assert found
    lines = after.rstrip("\n").split("\n")
    return [shlex.split(re.split(r"  +", line.removeprefix("  reshard "))[0]) for line in lines]


@pytest.mark.parametrize("kind", [*KINDS, "Megatron, rank folders"])
def test_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    made = FAMILIES[kind](tmp_path / "made")
    source = made.path.rename(tmp_path / f"my {made.path.name}")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/full.txt").touch()  # a name that is taken
    commands = told(capsys, source.name, *(["--strategy", made.strategy] if made.strategy else []))
    assert len(commands) >= 4
    assert any("CONFIG" in words for words in commands) == ("Megatron" in kind)
    for words in commands:
        if not ASKED & set(words):
            assert run_reshard(words) == 0, f"{words}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("kind", ["safetensors", "ours", "DeepSpeed, stage 2"])
@pytest.mark.parametrize(("here", "src"), [(".", "."), ("sub", ".."), ("sub", "{}"), ("..", "-made")])
def test_the_commands_run_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, here: str, src: str
) -> None:
    """A target within its source is refused, and so is a path that looks as an option does."""
    made = FAMILIES[kind](tmp_path / "out").path
    folder = (made if made.is_dir() else made.parent).rename(tmp_path / "-made")
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder / here)
    for words in told(capsys, "--", src.format(folder)):
        if not ASKED & set(words):
            assert run_reshard(words) == 0, f"{words}\n{capsys.readouterr().err}"


def test_the_commands_for_a_folder_of_hugging_face_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_hub(tmp_path / "hub", qwen3())
    commands = told(capsys, "hub")
    assert ["convert", "hub", "parts", "--to", "parts", "--with-files"] in commands
    for words in commands:
        assert ASKED & set(words) or run_reshard(words) == 0, f"{words}\n{capsys.readouterr().err}"
    assert (tmp_path / "parts/config.json").exists()
    assert ["convert", "hub", "ranks", "--dst-strategy", UNKNOWN, "--dst-names", "mcore"] in commands  # Qwen3 is there


def test_names_of_mindformers_core_are_known_for_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_hub(tmp_path / "hub", qwen3())
    assert run_reshard(["convert", "hub", "core.safetensors", "--dst-names", "mcore", "--quiet"]) == 0
    commands = told(capsys, "core.safetensors")
    assert ["convert", "core.safetensors", "model", "--dst-names", "hf", "--model", "CONFIG"] in commands


def test_names_behind_a_prefix_lead_to_hugging_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_hub(tmp_path / "hub", qwen3())
    saved = {f"model.{name}": value for name, value in qwen3().items()}
    write_file(tmp_path / "saved.safetensors", saved | {"optim.state.model.norm.weight.exp_avg": array((8,))})
    words = [
        "convert",
        "saved.safetensors",
        "model",
        "--rename",
        r"^model\.=>",
        "--dst-names",
        "hf",
        "--model",
        "CONFIG",
    ]
    assert [*words, "--weights-only"] in told(capsys, "saved.safetensors")
    assert run_reshard(["hub" if word == "CONFIG" else word for word in words]) == 0
    assert run_reshard(["diff", "hub", "model"]) == 0
    words[2], words[6] = "core", "mcore"
    assert run_reshard(["hub" if word == "CONFIG" else word for word in words]) == 3
    assert "hint: --weights-only leaves the optimizer's states out" in capsys.readouterr().err


def test_what_is_narrowed_ends_with_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_file(tmp_path / "m.safetensors", {"w": array((4,))})
    run_reshard(["inspect", str(path), "--tensor", "w"])
    assert "next:" not in capsys.readouterr().out


def test_slices_want_their_strategy_and_what_is_missing_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "ckpt/rank_0/a_0.ckpt", {"w": array((2, 4))})
    write_strategy(tmp_path / "s", [{"w": Sharding((2,), ((0,), ()))}])
    (looking, *_) = told(capsys, "ckpt")
    assert looking == ["inspect", "ckpt", "--strategy", UNKNOWN]
    assert told(capsys, "ckpt", "--strategy", "s") == [["explain", "w", "ckpt", "--src-strategy", "s"]]
    assert run_reshard(["explain", "w", "ckpt", "--src-strategy", "s"]) == 0


@pytest.mark.parametrize(("kind", "names"), [("LoRA", ("q.lora_A.weight", "q.lora_B.weight")), ("PEFT", ("q.ia3_l",))])
def test_an_adapter_wants_its_base(
    kind: str, names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factors = {f"base_model.model.{name}": array((2, 2)) for name in names}
    factors["base_model.model.norm.weight"] = array((2,))  # trained whole
    path = write_file(tmp_path / "adapter_model.safetensors", factors)
    assert run_reshard(["inspect", str(path)]) == 0
    assert f": an adapter ({kind}); 1 file" in capsys.readouterr().out
    assert told(capsys, str(path)) == [["lora", "merge", "BASE", "merged", "--adapter", str(path)]]
