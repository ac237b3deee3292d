"""The identity of a conversion: another one for all that changes a byte of the target, the same for all else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

import reshard
from making import array, counted, write_file, write_ranks, write_strategy
from megatron_ranks import FULL as MEGATRON
from reshard.errors import UsageError
from reshard.layout.tensor import Sharding
from reshard.ops.lora import lora_config, plan_lora
from reshard.ops.options import NodeRanks, Options
from reshard.ops.strategies import merge
from reshard.ops.unify import plan_unify
from reshard.planning.identity import hash_of
from reshard.planning.names import NameRules
from reshard.planning.plan import Plan
from reshard.planning.shares import Share
from reshard.target.filling import BEGUN
from reshard.target.manifest import MANIFEST
from reshard.target.target_paths import META

ROWS, COLUMNS, WHOLE = (Sharding((2,), cut) for cut in (((0,), ()), ((), (0,)), ((), ())))
WEIGHTS = {"a.weight": counted(4, 4), "b.weight": array((4, 4), seed=2)}


class Work:
    """A conversion of rank folders, and what else a plan may be made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        full = {**WEIGHTS, "exp_avg.a.weight": array((4, 4), seed=3)}
        cuts = dict.fromkeys(full, ROWS)
        self.ranks = write_ranks(folder / "ranks", full, [cuts])
        for rank in range(2):
            mine = self.ranks / f"rank_{rank}"
            (mine / f"model_{rank}.ckpt").rename(mine / "model-1_10.ckpt")
            shutil.copyfile(mine / "model-1_10.ckpt", mine / "model-1_9.ckpt")
            os.utime(mine / "model-1_9.ckpt", (2_000_000_000, 2_000_000_000))
        self.old = write_strategy(folder / "old", [cuts])
        self.new = write_strategy(folder / "new", [{**cuts, "b.weight": WHOLE}])
        self.options = Options(src_strategy=str(self.old), dst_strategy=str(self.new))

    def plan(self, options: Options | None = None, dst: str = "out", src: Path | None = None) -> Plan:
        return reshard.plan(src or self.ranks, dst, options or self.options)

    def identity(self) -> str:
        return self.plan().identity

    def with_other_cut(self, path: Path, cut: Sharding) -> str:
        shutil.rmtree(path)
        write_strategy(path, [{**dict.fromkeys(WEIGHTS, cut), "exp_avg.a.weight": ROWS}])
        return self.identity()


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


# --- options: each in one of these

CHANGES = {
    "src_strategy": lambda w: write_strategy(w.folder / "s", [dict.fromkeys([*WEIGHTS, "exp_avg.a.weight"], COLUMNS)]),
    "dst_strategy": lambda w: write_strategy(w.folder / "s", [dict.fromkeys([*WEIGHTS, "exp_avg.a.weight"], COLUMNS)]),
    "format": lambda w: "safetensors",
    "prefix": lambda w: "net_",
    "select": lambda w: "name",
    "suffix": lambda w: "1_9",
    "names": lambda w: NameRules(include=("weight$",)),
    "dtype": lambda w: "float16",
    "drop_redundancy": lambda w: True,
    "crc": lambda w: True,
}
OF_A_FULL_TARGET = {"max_shard_nbytes", "to"}
OF_A_CHECKPOINT2 = {"dst_iteration": 12, "release": "r1.8"}
OF_FOLDERS_FOR_TORCH = {"files": ("dcp", 2), "tp": ("megatron", 2), "pp": ("megatron", 2), "ep": ("megatron", 2)}
SAME = {
    "family": "ranks",
    "ranks": frozenset({1}),
    "share": Share(0, 2),
    "missing": "drop",
    "check_replicas": True,
    "reflink": "never",
    "checksum": False,
    "fsync": False,
    "workers": 3,
    "max_rate_nbytes": 1 << 20,
    "link_replicas": True,
    "max_memory_nbytes": 1 << 30,
    "engine": "ray",
    "address": "local",
    "nodes_local": (NodeRanks(frozenset({0, 1}), "10.0.0.1"),),
    "resume": True,
    "overwrite": True,
    "verify": True,
}
OF_OTHER_NAMES = {"naming", "along"}
"""Its own table is in test_naming.py."""
OF_SOME_FAMILIES = {"iteration", "frozen"}


def test_files_laid_out_to_be_shared_are_others(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = work.identity()
    monkeypatch.setattr("reshard.ops.convert.block_shared_by", lambda source, folder: 4096)
    assert work.identity() != apart
    assert work.plan(replace(work.options, reflink="never")).identity == apart


def test_every_option_is_in_one_table() -> None:
    tables = [
        set(CHANGES),
        OF_A_FULL_TARGET,
        set(OF_A_CHECKPOINT2),
        set(OF_FOLDERS_FOR_TORCH),
        set(SAME),
        OF_OTHER_NAMES,
        OF_SOME_FAMILIES,
    ]
    assert sorted(name for table in tables for name in table) == sorted(Options.__struct_fields__)


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_bytes_has_another_identity(work: Work, name: str) -> None:
    value = CHANGES[name](work)  # type: ignore[no-untyped-call]
    other = replace(work.options, **{name: str(value) if isinstance(value, Path) else value})
    assert work.plan(other).identity != work.identity()


@pytest.mark.parametrize("name", OF_A_CHECKPOINT2)
def test_what_a_checkpoint2_says_of_itself_counts(work: Work, name: str) -> None:
    options = replace(work.options, to="checkpoint2", format="", prefix="CKP")
    assert work.plan(replace(options, **{name: OF_A_CHECKPOINT2[name]})).identity != work.plan(options).identity


@pytest.mark.parametrize("name", OF_FOLDERS_FOR_TORCH)
def test_of_how_many_files_and_ranks_a_folder_consists_counts(work: Work, name: str) -> None:
    to, value = OF_FOLDERS_FOR_TORCH[name]
    shapes = {"linear_fc1": (2, 16, 8), "linear_fc2": (2, 8, 8)}
    experts = {f"decoder.layers.0.mlp.experts.experts.{n}.weight": array(s) for n, s in shapes.items()}
    full = write_file(work.folder / "full.safetensors", {**MEGATRON, **(experts if name == "ep" else {})})
    plain = Options(to=to)
    assert work.plan(replace(plain, **{name: value}), src=full).identity != work.plan(plain, src=full).identity


@pytest.mark.parametrize("name", SAME)
def test_what_changes_no_byte_has_the_same(work: Work, name: str) -> None:
    more = {"engine": "ray"} if name == "nodes_local" else {}
    assert work.plan(replace(work.options, **more, **{name: SAME[name]})).identity == work.identity()


NAMES = {
    "include": ("weight$",),
    "exclude": ("^a",),
    "rename": (("^a", "c"),),
    "weights_only": True,
}


def test_every_rule_of_names_is_in_the_table() -> None:
    assert sorted(NAMES) == sorted(NameRules.__struct_fields__)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_taken_and_given_count(work: Work, name: str) -> None:
    full = write_file(work.folder / "full.ckpt", WEIGHTS)
    rules = NameRules(**{name: NAMES[name]})  # type: ignore[arg-type]
    assert work.plan(Options(names=rules), src=full).identity != work.plan(Options(), src=full).identity


def test_of_a_full_target_its_name_its_parts_and_their_names_count(work: Work) -> None:
    full = Options(src_strategy=str(work.old), format="safetensors")
    made = [
        work.plan(full),
        work.plan(full, "one.safetensors"),
        work.plan(full, "two.safetensors"),
        work.plan(replace(full, to="parts")),
        work.plan(replace(full, max_shard_nbytes=100)),
        work.plan(replace(full, max_shard_nbytes=200)),
        plan_unify(work.ranks, "out", replace(full, max_shard_nbytes=100), "mindspore"),
    ]
    assert len({plan.identity for plan in made}) == len(made)


# --- files

EDITS: dict[str, Callable[[Work], object]] = {
    "the source's strategy says another cut": lambda w: w.with_other_cut(w.old, COLUMNS),
    "the target's strategy says another cut": lambda w: w.with_other_cut(w.new, COLUMNS),
    "a weight file was written again": lambda w: os.utime(w.ranks / "rank_1" / "model-1_10.ckpt", (5, 5)),
    "a rank has no file": lambda w: shutil.rmtree(w.ranks / "rank_1"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_files_that_decide_count(work: Work, edit: str) -> None:
    work.options = replace(work.options, ranks=frozenset({0}), dst_strategy=str(work.new))
    before = work.identity()
    EDITS[edit](work)
    if edit == "a rank has no file":
        work.options = replace(work.options, dst_strategy=str(work.old))
    assert work.identity() != before


def test_copies_with_their_times_and_strategies_of_the_same_meaning_count_as_the_same(work: Work) -> None:
    before = work.identity()
    copied = shutil.copytree(work.ranks, work.folder / "elsewhere", copy_function=shutil.copy2)
    os.utime(work.old / "ckpt_strategy_rank_0.ckpt", (5, 5))
    merged = work.folder / "merged.ckpt"
    merge(str(work.new), str(merged))
    assert work.plan(replace(work.options, dst_strategy=str(merged)), src=copied).identity == before


def test_the_manifest_by_which_our_own_folders_are_read_counts(work: Work) -> None:
    reshard.convert(work.ranks, work.folder / "ours", work.options)
    manifest = work.folder / "ours" / META / MANIFEST
    alone = Options(format="ckpt")
    before = work.plan(alone, src=work.folder / "ours").identity
    os.utime(manifest, (5, 5))
    assert work.plan(alone, src=work.folder / "ours").identity == before
    content = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps({**content, "reshard": "0.0.9"}))
    assert work.plan(alone, src=work.folder / "ours").identity != before


def test_an_index_that_takes_a_tensor_from_another_file_counts(work: Work) -> None:
    folder = work.folder / "parts"
    for part in ("one", "two"):
        write_file(folder / f"{part}.safetensors", WEIGHTS)
    index = folder / "model.safetensors.index.json"

    def said(a: str, b: str) -> str:
        index.write_text(json.dumps({"weight_map": {"a.weight": f"{a}.safetensors", "b.weight": f"{b}.safetensors"}}))
        return work.plan(Options(), src=folder).identity

    one, two = said("one", "two"), said("two", "one")
    assert one != two
    os.utime(index, (5, 5))
    copied = shutil.copytree(folder, work.folder / "copied", copy_function=shutil.copy2)
    assert work.plan(Options(), src=copied).identity == two


class Adapter:
    """A base and the factors of one of its weights."""

    def __init__(self, folder: Path) -> None:
        self.base = write_file(folder / "base.safetensors", WEIGHTS)
        self.folder = folder / "adapter"
        factors = {"a.lora_A.weight": counted(2, 4), "a.lora_B.weight": counted(4, 2)}
        write_file(self.folder / "adapter_model.safetensors", factors)
        self.config = self.folder / "adapter_config.json"
        self.configure()
        self.yaml = folder / "run.yaml"
        self.yaml.write_text("model:\n  model_config:\n    pet_config: {pet_type: lora, lora_rank: 2, lora_alpha: 4}\n")

    def configure(self, **more: object) -> None:
        self.config.write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **more}))

    def identity(self, scaling: str = "", config: str = "") -> str:
        how = lora_config(scaling, config=config, adapter=str(self.folder))
        return plan_lora(self.base, "out", how, adapter=self.folder).identity


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    return Adapter(tmp_path)


@pytest.mark.parametrize("scaling", ["", "2"], ids=["its own scaling", "another scaling"])
def test_the_adapter_s_own_configuration_counts_by_what_is_in_it(adapter: Adapter, scaling: str) -> None:
    before = adapter.identity(scaling)
    os.utime(adapter.config, (5, 5))
    assert adapter.identity(scaling) == before
    for more in ({"fan_in_fan_out": True}, {"lora_dropout": 0.5}, {"lora_alpha": 8}):
        adapter.configure(**more)
        assert adapter.identity(scaling) != before


def test_a_run_s_yaml_counts_by_what_is_in_it(adapter: Adapter) -> None:
    before = adapter.identity(config=str(adapter.yaml))
    adapter.yaml.write_text(adapter.yaml.read_text().replace("lora_alpha: 4", "lora_alpha: 8"))
    assert adapter.identity(config=str(adapter.yaml)) != before


def test_scaling_counts_whoever_says_it(adapter: Adapter) -> None:
    assert adapter.identity("2") == adapter.identity() != adapter.identity("1")


# --- what a run that goes on is told


def test_a_configuration_that_changed_is_named(adapter: Adapter, tmp_path: Path) -> None:
    def merged(**more: object) -> None:
        adapter.configure(**more)
        how = lora_config(adapter=str(adapter.folder))
        reshard.merge_lora(adapter.base, tmp_path / "out", how, Options(resume=True), adapter.folder)

    merged()
    merged()
    with pytest.raises(UsageError, match=r"what differs: adapter_config\.json, LoRA scaling\n"):
        merged(lora_alpha=8)


def test_notes_of_another_schema_are_refused_with_their_reason(work: Work, tmp_path: Path) -> None:
    reshard.convert(work.ranks, tmp_path / "out", work.options)
    manifest = tmp_path / "out" / META / MANIFEST
    content = json.loads(manifest.read_bytes())
    older = {k: v for k, v in content["made_of"].items() if "schema" not in k}
    for name, notes in (
        (MANIFEST, {**content, "plan": "0" * 32, "made_of": older}),
        (BEGUN, {"plan": "0" * 32, "made_of": {}}),
    ):
        (tmp_path / "out" / META / name).write_text(json.dumps(notes))
        with pytest.raises(UsageError, match="notes are of schema 1, ours of 3"):
            reshard.convert(work.ranks, tmp_path / "out", replace(work.options, resume=True))


def test_tensors_one_by_one_count_as_all_of_them(tmp_path: Path) -> None:
    plan = Work(tmp_path).plan()
    told = [(ascii(t.name), ascii(t.source_name), t.spec, "") for t in plan.tensors]
    assert plan.made_of["tensors taken"] == hash_of([NameRules(), told])
