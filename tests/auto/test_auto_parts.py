"""The pure parts: the YAML that is handed over, whose turn it is, which step to resume from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from making import counted, write_file
from reshard.auto.config import Config, read_config
from reshard.auto.handover import handed_over
from reshard.auto.job_source import job_source
from reshard.auto.launch import launch_of
from reshard.auto.mirroring import Mirror
from reshard.auto.results import Results
from reshard.auto.settings import AutoSettings, read_settings
from reshard.auto.shares import parts
from reshard.errors import CheckpointError, RunError
from thorough import examples


def config_of(text: str, **changes: Any) -> Config:
    return Config("run.yaml", text, {**yaml.safe_load(text), **changes}, changes)


USERS = """# the user's file
seed: 0
load_checkpoint:   # none yet
model: &m {a: 1.e-5, b: "x: y"}
again: *m
auto_trans_ckpt: True   # convert
text: |
  auto_trans_ckpt: no key
"""


def test_the_users_file_stays_as_it_is() -> None:
    made = handed_over(config_of(USERS), "/out/新 x")
    wanted = USERS.replace("load_checkpoint:   #", 'load_checkpoint: "/out/新 x"   #').replace(": True", ": False")
    assert made == wanted


@pytest.mark.parametrize(
    "text",
    ["load_checkpoint: a\nb: 1", "{load_checkpoint: a, b: 1}", "b: 1\r\nload_checkpoint: >\r\n  a\r\n",
     "? load_checkpoint\n: a\nb: 1\n", "b: 1\nload_checkpoint: !!str a\n...\n", '"load_checkpoint": [a]\nb: 1\n'],
)  # fmt: skip
def test_however_it_is_written(text: str) -> None:
    made = yaml.safe_load(handed_over(config_of(text), "/new"))
    assert made == {**yaml.safe_load(text), "load_checkpoint": "/new", "auto_trans_ckpt": False}
    assert [*made][-1] == "auto_trans_ckpt"


TEXT = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")))
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT


@examples(13)
@given(st.dictionaries(TEXT, st.recursive(PLAIN, lambda v: st.lists(v) | st.dictionaries(TEXT, v), max_leaves=8)), TEXT)
def test_nothing_but_two_keys_changes(content: dict[str, Any], load: str) -> None:
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    made = yaml.safe_load(handed_over(config_of(text), load))
    wanted = {**yaml.safe_load(text), "load_checkpoint": load, "auto_trans_ckpt": False}
    assert (made, list(made)) == (wanted, list(wanted))


def test_settings_as_a_mapping_of_a_framework() -> None:
    class Odd(dict[str, Any]):
        """As MindFormers' own kind of map."""

    made = handed_over(read_config(Odd(a=Odd(b=(1, 2)), load_checkpoint="x")), "/new")
    assert yaml.safe_load(made) == {"a": {"b": [1, 2]}, "load_checkpoint": "/new", "auto_trans_ckpt": False}


@examples(25)
@given(st.integers(1, 6), st.integers(0, 5))
def test_every_rank_is_made_by_one_writer(nodes: int, power: int) -> None:
    world = nodes * 2**power
    members = tuple(range(world))
    for writers in (n for n in range(1, world + 1) if world % n == 0):
        made = parts(members, members, writers, by_bytes=False)
        assert list(made) == list(range(0, world, world // writers)) or world == 1
        assert sorted(r for part in made.values() for r in part.ranks or ()) == list(members)


def settings_of(**keys: Any) -> AutoSettings:
    return read_settings(
        read_config({"auto_trans_ckpt": True, **keys}), launch_of({"RANK": "0", "WORLD_SIZE": "2"}), {}
    )


def test_defaults_are_mindformers() -> None:
    made = settings_of()
    assert (made.writers, made.by_rank, made.per_node, made.output_dir) == (1, False, 8, "./output")
    assert (made.parallel, made.select("ckpt"), made.format, made.resume) == (True, "name", "", False)
    assert settings_of(transform_process_num=2).by_rank  # and so the file last changed
    assert settings_of(transform_process_num=2).select("ckpt") == "mtime"
    clamped = settings_of(transform_process_num=5)
    assert clamped.writers == 2
    assert clamped.warnings
    assert settings_of(load_checkpoint="None", src_strategy="").load_checkpoint == ""


@pytest.mark.parametrize(
    ("resume", "chosen"),
    [(False, "1_9"), (True, "1_10"), ("llama_rank_0-1_8.ckpt", "1_8")],
)
def test_the_step_to_resume_from(tmp_path: Path, resume: object, chosen: str) -> None:
    """By name as MindFormers does; on resuming the newest that all ranks have, or the one that is named."""
    for rank, steps in enumerate([("1_8", "1_9", "1_10", "1_11"), ("1_8", "1_9", "1_10")]):
        for step in steps:
            write_file(tmp_path / f"rank_{rank}/llama_rank_{rank}-{step}.ckpt", {"w": counted(2)})
    source = job_source(settings_of(load_checkpoint=str(tmp_path), resume_training=resume))
    assert [Path(path).name for _, path in source.found.files] == [f"llama_rank_{r}-{chosen}.ckpt" for r in (0, 1)]


@pytest.mark.parametrize("keys", [{}, {"load_ckpt_format": "ckpt"}, {"transform_process_num": 2}])
def test_of_safetensors_the_last_step_is_taken(tmp_path: Path, keys: dict[str, Any]) -> None:
    """Whatever the YAML says that the job loads: the rule is that of the files that there are."""
    for rank in (0, 1):
        for step in ("1_10", "1_9"):  # 1_9 is newer by time
            write_file(tmp_path / f"ckpt/rank_{rank}/llama_rank_{rank}-{step}.safetensors", {"w": counted(2)})
    found = job_source(settings_of(load_checkpoint=str(tmp_path / "ckpt"), **keys)).found
    assert [Path(path).name for _, path in found.files] == [f"llama_rank_{r}-1_10.safetensors" for r in (0, 1)]


def test_no_step_that_all_ranks_have(tmp_path: Path) -> None:
    for rank, steps in enumerate([("1_8", "1_9"), ("2_8", "2_9")]):
        for step in steps:
            write_file(tmp_path / f"rank_{rank}/llama_rank_{rank}-{step}.ckpt", {"w": counted(2)})
    with pytest.raises(CheckpointError, match="no step that all ranks have"):
        job_source(settings_of(load_checkpoint=str(tmp_path), resume_training=True))


def test_sending_results_away_shows_that_it_goes_on(tmp_path: Path) -> None:
    """Else a long way would look like a rank that hangs; and it stops when another rank has failed."""
    results = Results(tmp_path / "out", tmp_path / "out/transformed_checkpoint", "llama")
    write_file(tmp_path / "out/transformed_checkpoint/llama/rank_3/checkpoint_3.ckpt", {"w": counted(2)})
    calls: list[int] = []
    Mirror(results, str(tmp_path / "there"), lambda: calls.append(1)).send_rank(3)
    assert calls
    assert (tmp_path / "there/transformed_checkpoint/llama/rank_3/checkpoint_3.ckpt").is_file()

    def failed() -> None:
        raise RunError("rank 4 failed")

    with pytest.raises(RunError, match="rank 4 failed"):
        Mirror(results, str(tmp_path / "second"), failed).send_rank(3)
    assert not [p for p in (tmp_path / "second").rglob("*") if p.is_file()]
