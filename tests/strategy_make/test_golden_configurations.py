"""From the YAML alone the same tensors in each stage, in the same boxes on each rank, as MindSpore's compiler gave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from configurations import CONFIGURATIONS, headers, making, parameters

from making import write_file
from reshard.layout.stages import AnySharding
from reshard.layout.tensor import Layout, Sharding
from reshard.ops import make_strategy
from reshard.ops.make_strategy import StrategyWish, made_stages
from reshard.strategy.expression import evaluate
from reshard.strategy.file import StrategyFile
from reshard.strategy.folder import read_strategy, stage_files
from reshard.strategy.named import named_by_family, values_of

each_configuration = pytest.mark.parametrize("folder", CONFIGURATIONS, ids=lambda folder: folder.name)


def meaning(entry: AnySharding) -> tuple[object, ...]:
    sharding = entry if isinstance(entry, Sharding) else entry.sharding
    return sharding.parts, sharding.cells()


def differences(ours: Mapping[str, Layout], theirs: StrategyFile) -> list[str]:
    known = theirs.entries()
    absent = [f"only in one: {name}" for name in sorted(ours.keys() ^ known.keys())]
    shared = sorted(ours.keys() & known.keys())
    return absent + [f"cut differently: {n}" for n in shared if meaning(ours[n].sharding) != meaning(known[n])]


def test_all_configurations_are_here() -> None:
    assert len(CONFIGURATIONS) == 94


@each_configuration
def test_equals_what_mindspore_compiled(folder: Path) -> None:
    compiled = stage_files(folder)
    _, _, stages = made_stages(making(folder))
    assert len(stages) == len(compiled)
    assert [differences(stages[stage], file) for stage, file in compiled.items()] == [[]] * len(compiled)


@each_configuration
def test_equals_it_with_names_from_headers_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint holds all parameters of the job; its states also tell the optimizer."""
    monkeypatch.setattr(make_strategy, "_stored", lambda _: {n: s for n, s in headers(folder).items() if s.shape})
    asked = making(folder)
    _, _, stages = made_stages(StrategyWish(asked.config, "", None, "full/", asked.mindformers_version))
    compiled = stage_files(folder)
    assert [differences(stages[stage], file) for stage, file in compiled.items()] == [[]] * len(compiled)


@each_configuration
def test_the_family_knows_the_parameters(folder: Path) -> None:
    """Full shapes, dtypes and both flags, also where optimizer parallel is off and nothing is frozen."""
    family, job, _ = made_stages(making(folder))
    found = {t.name: t for t in named_by_family(family, values_of(family, job))}
    known = {p[0]: p for p in parameters(folder)}
    assert found.keys() <= known.keys()
    for name, tensor in found.items():
        _, shape, dtype, *flags = known[name]
        assert (tensor.spec.shape, tensor.spec.dtype) == (tuple(shape), dtype.lower()), name
        assert flags[-1] is (tensor.rule.trained and job.lora is None), name
        if len(flags) == 2:
            assert flags[0] is bool(evaluate(tensor.rule.shard, tensor.names)), name


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("json_format", [False, True])
def test_written_files_are_read_as_what_was_made(tmp_path: Path, merged: bool, json_format: bool) -> None:
    asked = making(next(f for f in CONFIGURATIONS if f.name == "qwen3moe_dp2mp2pp2ep4_opt"))
    _, job, stages = made_stages(asked)
    made = make_strategy.make_strategy(asked, str(tmp_path / "s"), merged=merged, json_format=json_format)
    files = sorted(p.name for p in (tmp_path / "s").iterdir())
    assert made.files == len(files) == (1 if merged else 8)
    assert {Path(name).suffix for name in files} == {".json" if json_format else ".ckpt"}
    strategy = read_strategy(tmp_path / "s" / files[0] if merged else tmp_path / "s")
    assert strategy.made
    assert strategy.devices == job.sizes.devices
    for read, own in zip(strategy.stages, stages, strict=True):
        assert {n: meaning(e) for n, e in read.items()} == {n: meaning(x.sharding) for n, x in own.items()}


def test_a_checkpoint_on_disk(tmp_path: Path) -> None:
    """Names and shapes are its; a model of other sizes than the YAML says is cut by its own."""
    import numpy as np

    folder = next(f for f in CONFIGURATIONS if f.name == "llama_dp4mp2_optshard")
    weights = {p[0]: np.zeros(p[1], np.float32) for p in parameters(folder) if "adam" not in p[0] and len(p[1]) > 0}
    weights["model.tok_embeddings.embedding_weight"] = np.zeros((514, 64), np.float32)
    del weights["model.layers.3.feed_forward.w2.weight"]
    write_file(tmp_path / "full.safetensors", weights)
    _, _, (stage,) = made_stages(
        StrategyWish(config=str(folder / "run.yaml"), checkpoint=str(tmp_path / "full.safetensors"))
    )
    assert stage["model.tok_embeddings.embedding_weight"].shape == (514, 64)
    assert "model.layers.3.feed_forward.w2.weight" not in stage
    assert {name for name in stage if not name.startswith("adam_")} == {n for n in weights if weights[n].size > 1}
