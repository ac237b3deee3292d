"""Checkpoint 2.0 as a target: what MindFormers' reader asks of it, whatever the source."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from checkpoint2 import faults_of, latest, read_checkpoint2, write_checkpoint2
from making import Stages, array, read_file, same, write_file, write_ranks, write_strategy
from reshard import Options
from reshard.errors import LayoutError, UsageError
from reshard.families.checkpoint2_metadata import folded
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.layout.tensor import Sharding
from reshard.planning.names import NameRules
from reshard.planning.shares import Share

ROWS, COLUMNS, NORM = Sharding((2, 2), ((0,), ())), Sharding((2, 2), ((), (1,))), Sharding((2, 2), ((),))
ZERO = Sharding((2, 2), ((0,), ()), opt_shard=-1)
FULL = {
    "l.0.w": array((8, 6), seed=1),
    "l.1.w": array((8, 6), "bfloat16", seed=2),
    "l.0.norm": array((5,), "float16", seed=3),
    "adam_m.l.0.w": array((8, 6), seed=4),
    "adam_v.l.1.w": array((8, 6), seed=5),
}
STAGES: Stages = [
    {"l.0.w": ROWS, "l.0.norm": NORM, "adam_m.l.0.w": ZERO},
    {"l.1.w": COLUMNS, "adam_v.l.1.w": COLUMNS},
]
NUMBERS = {
    "global_step": np.array([40], np.int32),
    "epoch_num": np.array(2, np.int32),
    "step_num": np.array(19, np.int64),
    "loss_scale": np.array(1024.0, np.float32),
    "learning_rate": np.array(0.5, np.float32),
}


@pytest.fixture
def strategy(tmp_path: Path) -> str:
    return str(write_strategy(tmp_path / "strategy", STAGES))


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return write_file(tmp_path / "full.safetensors", FULL)


def options(strategy: str = "", **more: Any) -> Options:
    return Options(dst_strategy=strategy, to="checkpoint2", fsync=False, **more)


def common(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((latest(root) / "common.json").read_text())
    return content


def metadata(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((latest(root) / "metadata.json").read_text())
    return content


def names(root: Path) -> set[str]:
    return {path.name for path in latest(root).iterdir()}


# --- from anything


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("release", ["", "r1.7", "v1.8.0", "r1.9", "r2.0", "master"])
def test_its_reader_finds_every_slice(full: Path, strategy: str, tmp_path: Path, release: str, drop: bool) -> None:
    reshard.convert(full, tmp_path / "out", options(strategy, release=release, drop_redundancy=drop))
    old = release in ("r1.7", "v1.8.0")
    assert faults_of(tmp_path / "out", FULL, STAGES, "r1.7" if old else "r1.9") == []
    assert ("ckpt_status" in common(tmp_path / "out")) == (release in ("r1.9", "r2.0", "master"))
    assert ("consumed_samples" in common(tmp_path / "out")) == (release == "master")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_from_rank_folders_as_they_are_cut(strategy: str, tmp_path: Path, suffix: str) -> None:
    write_ranks(tmp_path / "ranks", FULL, STAGES, suffix)
    reshard.convert(tmp_path / "ranks", tmp_path / "out", options(src_strategy=strategy))
    assert faults_of(tmp_path / "out", FULL, STAGES) == []


def test_from_another_to_the_same_layout_or_a_new_one(strategy: str, tmp_path: Path) -> None:
    plain = [{n: Sharding(s.device_matrix, s.tensor_map) for n, s in stage.items()} for stage in STAGES]
    write_checkpoint2(tmp_path / "src", FULL, plain, iteration=31)
    reshard.convert(tmp_path / "src", tmp_path / "out", options())
    assert faults_of(tmp_path / "out", FULL, plain) == []
    assert common(tmp_path / "out")["global_step"] == 31
    assert common(tmp_path / "out")["loss_scale"] == 65536.0
    reshard.convert(tmp_path / "src", tmp_path / "other", options(strategy))
    assert faults_of(tmp_path / "other", FULL, STAGES) == []
    reshard.convert(tmp_path / "out", tmp_path / "whole.safetensors", Options(fsync=False))
    whole = read_file(tmp_path / "whole.safetensors")
    assert [name for name, a in FULL.items() if not same(whole[name], a)] == []


def test_a_tied_tensor_stays_in_both_stages(tmp_path: Path) -> None:
    tied = {"embedding": array((8, 6), seed=1), "l.0.w": array((8, 6), seed=2), "l.1.w": array((8, 6), seed=3)}
    stages = [{"embedding": ROWS, "l.0.w": ROWS}, {"embedding": ROWS, "l.1.w": ROWS}]
    write_checkpoint2(tmp_path / "src", tied, stages)
    for drop in (False, True):
        out = tmp_path / f"out{drop}"
        reshard.convert(tmp_path / "src", out, options(drop_redundancy=drop))
        found, _ = read_checkpoint2(out)
        assert [name for name, a in tied.items() if not same(found[name], a)] == []
        groups = [entry["rank_group"] for entry in metadata(out)["storage_data"]["('embedding', (0,))"]]
        assert groups == ([[0, 2, 4, 6]] if drop else [[0], [2], [4], [6]])
    held = [read_file(path) for path in latest(tmp_path / "outFalse").glob("*.safetensors")]
    assert sum("embedding" in arrays for arrays in held) == 8


def test_a_tied_tensor_that_a_later_stage_cuts_otherwise(tmp_path: Path) -> None:
    """Metadata has one layout: that of the first stage, and no slice of another shape for it."""
    tied = {"embedding": array((8, 6), seed=1), "l.1.w": array((8, 6), seed=3)}
    stages = [{"embedding": ROWS}, {"embedding": COLUMNS, "l.1.w": ROWS}]
    source = write_file(tmp_path / "full.safetensors", tied)
    strategy = str(write_strategy(tmp_path / "s", stages))
    for drop in (False, True):
        out = tmp_path / f"out{drop}"
        reshard.convert(source, out, options(strategy, drop_redundancy=drop))
        assert faults_of(out, tied, stages) == []
        assert open_source(Source(str(out))).warnings == ()


# --- one device


def test_one_device_describes_nothing(full: Path, tmp_path: Path) -> None:
    reshard.convert(full, tmp_path / "out", options(dst_iteration=5))
    files = {"CKP-model-0000000-0000001.safetensors", "CKP-opt-0000000-0000001.safetensors", "common.json"}
    assert names(tmp_path / "out") == files
    assert (tmp_path / "out" / "latest_checkpointed_iteration.txt").read_bytes() == b"5"
    found, _ = read_checkpoint2(tmp_path / "out")
    assert [name for name, a in FULL.items() if not same(found[name], a)] == []


def test_a_source_of_many_ranks_that_no_strategy_says_is_asked_for(tmp_path: Path) -> None:
    folder = write_checkpoint2(tmp_path / "src", {"l.0.w": FULL["l.0.w"]}, [{"l.0.w": ROWS}])
    content = json.loads((folder / "metadata.json").read_text())
    content["state_dict_metadata"]["l.0.w"]["layout"]["rank_list"] = [2, 3, 0, 1]
    (folder / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="nobody says how the 4 ranks"):
        reshard.plan(tmp_path / "src", "out", options())


# --- numbers of the training


def test_numbers_of_older_checkpoints_go_to_common(strategy: str, tmp_path: Path) -> None:
    source = write_file(tmp_path / "old.ckpt", FULL | NUMBERS)
    reshard.convert(source, tmp_path / "out", options(strategy))
    assert latest(tmp_path / "out").name == "iteration_00000040"
    assert common(tmp_path / "out") == {
        "epoch_num": 2,
        "step_num": 19,
        "global_step": 40,
        "loss_scale": 1024.0,
        "global_batch_size": None,
    }
    assert faults_of(tmp_path / "out", FULL, STAGES) == []
    _, beside = read_checkpoint2(tmp_path / "out")
    assert beside.keys() == {"global_step", "learning_rate"}
    assert all(same(beside[name], NUMBERS[name]) for name in beside)


def test_what_no_file_has_room_for_is_told(strategy: str, tmp_path: Path) -> None:
    source = write_file(tmp_path / "old.ckpt", FULL | NUMBERS)
    plan = reshard.plan(source, "out", options(strategy, drop_redundancy=True))
    assert [warning for warning in plan.warnings if "learning_rate" in warning] != []
    assert [warning for warning in plan.warnings if "global_step" in warning] == []


def test_the_iteration_asked_for(full: Path, strategy: str, tmp_path: Path) -> None:
    reshard.convert(full, tmp_path / "a", options(strategy))
    assert latest(tmp_path / "a").name == "iteration_00000000"
    reshard.convert(tmp_path / "a", tmp_path / "b", options(dst_iteration=123456789))
    assert latest(tmp_path / "b").name == "iteration_123456789"


# --- files


def test_what_files_are_called(full: Path, strategy: str, tmp_path: Path) -> None:
    for prefix, start in (("my-run", "my-run-model-"), ("", "model-")):
        reshard.convert(full, tmp_path / start, options(strategy, prefix=prefix))
        assert f"{start}0000007-0000008.safetensors" in names(tmp_path / start)
        assert faults_of(tmp_path / start, FULL, STAGES) == []
    with pytest.raises(UsageError, match="prefix"):
        reshard.plan(full, "out", options(strategy, prefix="a/b"))


def test_modes_are_the_trainers(full: Path, strategy: str, tmp_path: Path) -> None:
    reshard.convert(full, tmp_path / "out", options(strategy))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in latest(tmp_path / "out").iterdir()}
    assert {modes.pop("metadata.json"), modes.pop("common.json")} == {0o640}
    assert set(modes.values()) == {0o400}
    places = (tmp_path / "out", latest(tmp_path / "out"), tmp_path / "out" / "latest_checkpointed_iteration.txt")
    assert [stat.S_IMODE(place.stat().st_mode) for place in places] == [0o750, 0o750, 0o640]
    reshard.convert(full, tmp_path / "out", options(strategy, overwrite=True))


def test_other_names_in_the_layout_of_the_source(tmp_path: Path) -> None:
    write_checkpoint2(tmp_path / "src", {"l.0.w": FULL["l.0.w"]}, [{"l.0.w": ROWS}])
    rules = NameRules(rename=(("^l", "layers"),))
    reshard.convert(tmp_path / "src", tmp_path / "out", options(names=rules))
    assert faults_of(tmp_path / "out", {"layers.0.w": FULL["l.0.w"]}, [{"layers.0.w": ROWS}]) == []


def test_more_ranks_than_slices(tmp_path: Path) -> None:
    """Files are counted by those that hold something."""
    whole = {"a": array((4,), seed=1), "b": array((4,), seed=2)}
    stages = [dict.fromkeys(whole, Sharding((8,), ((),)))]
    source = write_file(tmp_path / "full.safetensors", whole)
    target = options(str(write_strategy(tmp_path / "s", stages)), drop_redundancy=True)
    reshard.convert(source, tmp_path / "out", target)
    assert {name for name in names(tmp_path / "out") if "model" in name} == {
        "CKP-model-0000000-0000002.safetensors",
        "CKP-model-0000001-0000002.safetensors",
    }
    assert faults_of(tmp_path / "out", whole, stages) == []


def test_dropped_replicas_are_spread_evenly(tmp_path: Path) -> None:
    whole = {f"l.{i}.w": array((16, 4), seed=i) for i in range(13)}
    stages = [dict.fromkeys(whole, Sharding((4, 2), ((0,), ())))]
    source = write_file(tmp_path / "full.safetensors", whole)
    target = options(str(write_strategy(tmp_path / "s", stages)), drop_redundancy=True)
    reshard.convert(source, tmp_path / "out", target)
    sizes = [sum(a.nbytes for a in read_file(p).values()) for p in latest(tmp_path / "out").glob("*.safetensors")]
    assert max(sizes) - min(sizes) <= whole["l.0.w"].nbytes // 2


def test_what_is_refused(full: Path, strategy: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"r1\.7"):
        reshard.plan(full, "out", options(strategy, release="r1.6"))
    with pytest.raises(UsageError, match="no replicas to drop"):
        reshard.plan(full, "out", options(drop_redundancy=True))
    alone = write_strategy(tmp_path / "alone", [{"w": Sharding.whole(1, 2)}])
    with pytest.raises(UsageError, match="hint: leave --drop-redundancy out"):
        reshard.plan(full, "out", options(str(alone), drop_redundancy=True))
    across = write_strategy(tmp_path / "across", [{"w": Sharding((2, 3), ((), ()), opt_shard=2)}])
    with pytest.raises(LayoutError, match=r"w: an optimizer shard of 2 in devices.*\n  hint: .*--to ranks"):
        reshard.plan(write_file(tmp_path / "w.safetensors", {"w": array((4, 2))}), "out", options(str(across)))
    with pytest.raises(UsageError, match="--format"):
        reshard.plan(full, "out", options(strategy, format="ckpt"))
    with pytest.raises(UsageError, match="names a file"):
        reshard.plan(full, "out.safetensors", options(strategy))
    with pytest.raises(UsageError, match="--dst-iteration"):
        reshard.plan(full, "out", Options(dst_strategy=strategy, dst_iteration=3))


def test_an_optimizer_shard_that_no_layout_says(tmp_path: Path) -> None:
    """Of replicas on axes of 2 and 3 devices, parts of 2 go across both."""
    stages = [{"w": Sharding((2, 3), ((), ()), opt_shard=2)}]
    source = write_file(tmp_path / "full.safetensors", {"w": array((4, 6))})
    with pytest.raises(LayoutError, match="w: "):
        reshard.plan(source, "out", options(str(write_strategy(tmp_path / "s", stages))))
    with pytest.raises(LayoutError):
        folded(stages[0]["w"])


# --- whole or not there


def test_what_tells_of_all_files_comes_last(full: Path, strategy: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for index in (1, 0):
        assert not (out / "latest_checkpointed_iteration.txt").exists()
        reshard.convert(full, out, options(strategy, share=Share(index, 2)))
    assert faults_of(out, FULL, STAGES) == []
    plan = reshard.plan(full, "out", options(strategy))
    assert [small.path for small in plan.closing][-1] == "latest_checkpointed_iteration.txt"


def test_one_that_was_not_finished_is_not_read(full: Path, strategy: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reshard.convert(full, out, options(strategy, share=Share(0, 2)))
    for place in (out, out / "iteration_00000000"):
        with pytest.raises(Exception, match="a conversion into it has not ended"):
            open_source(Source(str(place)))
    reshard.convert(full, out, options(strategy, resume=True))
    assert open_source(Source(str(out))).iteration == 0


def test_some_ranks_first(full: Path, strategy: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reshard.convert(full, out, options(strategy, ranks=frozenset({0, 1, 2, 3})))
    reshard.convert(full, out, options(strategy, ranks=frozenset({4, 5, 6, 7})))
    assert faults_of(out, FULL, STAGES) == []


def test_it_replaces_another(full: Path, strategy: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reshard.convert(full, out, options(strategy, dst_iteration=9))
    reshard.convert(full, out, options(strategy, dst_iteration=3, overwrite=True))
    assert [path.name for path in out.glob("iteration_*")] == ["iteration_00000003"]
