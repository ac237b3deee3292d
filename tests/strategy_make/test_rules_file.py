"""Rules that a user writes: any model, axes, stages, optimizer shard; and what is wrong in such a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from making import write_file
from reshard.errors import StrategyError, UsageError
from reshard.layout.tensor import Layout
from reshard.ops.make_strategy import StrategyWish, made_stages
from reshard.strategy.families import built_in
from reshard.strategy.job import Sizes
from reshard.strategy.rules import read_family

RULES = r"""
family: toy
devices:
  grid: {dp: dp, mp: mp}
  experts: {data: dp * mp // ep, ep: ep}
blocks:
  - stage: first
    tensors:
      - name: embedding
        cases:
          - {when: dim0 % mp}
          - {over: grid, cut: [mp, ~]}
  - stage: last
    tensors:
      - {name: head, over: grid, cut: [[mp, dp], ~], shard: false}
  - prefix: h.{n}.
    stage: stage_of(n)
    tensors:
      - {name: [q, k], over: grid, cut: [mp, ~]}
      - {name: out, over: grid, cut: [~, mp]}
      - {match: 'experts\.(up|down)', over: experts, cut: [ep, ~, ~]}
      - {match: 'norm\d'}
"""
SHAPES = {
    "embedding": (48, 8), "head": (48, 8), "global_step": (1,), "adam_m.head": (48, 8),
    **{f"h.{n}.{name}": (16, 16) for n in range(4) for name in ("q", "k", "out")},
    **{f"h.{n}.experts.{name}": (8, 4, 4) for n in range(4) for name in ("up", "down")},
    **{f"h.{n}.norm1": (16,) for n in range(4)},
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    weights = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    return str(write_file(tmp_path / "full.safetensors", weights))


def rules_file(tmp_path: Path, text: str = RULES) -> str:
    path = tmp_path / "rules.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def made(tmp_path: Path, checkpoint: str, sizes: Sizes, **asked: object) -> tuple[dict[str, Layout], ...]:
    return made_stages(StrategyWish(rules=rules_file(tmp_path), checkpoint=checkpoint, sizes=sizes, **asked))[2]  # type: ignore[arg-type]


def test_any_model(tmp_path: Path, checkpoint: str) -> None:
    first, last = made(tmp_path, checkpoint, Sizes(dp=2, mp=4, pp=2, ep=8))
    assert {name.split(".")[1] for name in first if name.startswith("h.")} == {"0", "1"}
    assert ("embedding" in first, "head" in last, "head" in first) == (True, True, False)
    assert first["embedding"].sharding.parts == (4, 1)
    assert last["head"].sharding.parts == (8, 1)
    assert last["head"].sharding.cells()[:3] == ((0, 0), (2, 0), (4, 0))  # mp cuts coarser than dp
    assert first["h.0.out"].sharding.parts == (1, 4)
    assert first["h.1.experts.up"].sharding.cells()[5] == (5, 0, 0)
    assert first["h.1.norm1"].sharding.parts == (1,)
    assert not [name for name in (*first, *last) if "adam" in name or name == "global_step"]


def test_a_case_is_taken_by_the_tensors_own_shape(tmp_path: Path, checkpoint: str) -> None:
    (stage,) = made(tmp_path, checkpoint, Sizes(mp=16))
    assert stage["embedding"].sharding.parts == (16, 1)
    (stage,) = made(tmp_path, checkpoint, Sizes(mp=1, dp=4))
    assert stage["embedding"].sharding.holders() == {(0, 0): (0, 1, 2, 3)}


def test_optimizer_and_optimizer_parallel_without_a_yaml(tmp_path: Path, checkpoint: str) -> None:
    weights = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    weights["embedding"] = np.zeros((4096, 8), np.float32)
    large = str(write_file(tmp_path / "large.safetensors", weights))
    (stage,) = made(tmp_path, large, Sizes(dp=2, mp=2), optimizer="AdamW", optimizer_parallel=True)
    assert stage["embedding"].sharding.parts == stage["adam_v.embedding"].sharding.parts == (4, 1)
    assert stage["h.0.q"].sharding.parts == (2, 1)  # below 64 KB
    assert len(stage) == 3 * (len(SHAPES) - 2)


def test_a_tensor_that_no_rule_matches_is_named(tmp_path: Path) -> None:
    weights = {"embedding": np.zeros((8, 8), np.float32), "h.0.qq": np.zeros((4,), np.float32)}
    odd = str(write_file(tmp_path / "odd.safetensors", weights))
    with pytest.raises(StrategyError, match=r"no rule of family 'toy' matches 1 tensor:\nh\.0\.qq"):
        made(tmp_path, odd, Sizes())


def test_without_shapes_a_checkpoint_is_needed(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match="embedding: the rules give no shape") as caught:
        made_stages(StrategyWish(rules=rules_file(tmp_path), sizes=Sizes()))
    assert "--checkpoint" in caught.value.hint


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (Sizes(mp=3), r"dim 0 of \[16, 16\] has 16, not divisible into 3"),
        (Sizes(pp=3), "4 layers do not come out even on 3 stages"),
        (Sizes(dp=2, ep=3), "cannot be arranged as data 0, ep 3"),
    ],
)
def test_a_layout_that_does_not_fit_names_tensor_and_sizes(
    tmp_path: Path, checkpoint: str, sizes: Sizes, message: str
) -> None:
    with pytest.raises(StrategyError, match=message):
        made(tmp_path, checkpoint, sizes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("family: toy", "famly: toy", "the file has unknown keys famly"),
        ("family: toy", "[", "not YAML"),
        ("over: grid, cut: [~, mp]", "over: grd, cut: [~, mp]", "devices 'grd'"),
        ("cut: [~, mp]", "cut: [~, tp]", "no axis 'tp', only dp, mp"),
        ("cut: [~, mp]", "cut: [mp]", "the rule cuts 1 dims, the tensor has 2"),
        ("cut: [~, mp]", "cut: mp", "expected a list"),
        ("cut: [~, mp]", "cutt: [~, mp]", "unknown keys cutt"),
        ("dim0 % mp", "dim0 % %", "not an expression"),
        ("dim0 % mp", "dim0 % tp", "unknown name 'tp'"),
        ("dim0 % mp", "open('x')", "no function 'open'"),
        ("'norm\\d'", "'norm('", "not a regular expression"),
        ("    stage: stage_of(n)\n", "", "has no stage"),
        ("stage: stage_of(n)", "stage: n", "stage 2 of 2"),
        ("stage: last", "stage: lst", "unknown name 'lst'"),
        ("{name: out,", "{name: out, match: out,", "needs one of name and match"),
        ("dp: dp,", "dp: dp + 1,", "cannot be arranged as dp 3, mp 4"),
        ("blocks:", "blocks: 3\nmodels:", "expected a list"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, checkpoint: str, old: str, new: str, message: str) -> None:
    assert old in RULES
    path = rules_file(tmp_path, RULES.replace(old, new, 1))
    with pytest.raises(StrategyError) as caught:
        made_stages(StrategyWish(rules=path, checkpoint=checkpoint, sizes=Sizes(dp=2, mp=4, pp=2, ep=8)))
    assert message in str(caught.value)
    assert caught.value.where == path


def test_a_yaml_may_bring_the_sizes_for_a_users_rules(tmp_path: Path, checkpoint: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("parallel_config: {data_parallel: 2, model_parallel: 4, pipeline_stage: 2, expert_parallel: 2}\n")
    _, job, stages = made_stages(StrategyWish(config=str(config), rules=rules_file(tmp_path), checkpoint=checkpoint))
    assert (job.sizes, len(stages)) == (Sizes(2, 4, 2, 1, 2), 2)
    assert "accu_grads.h.3.q" in stages[1]


def test_built_in_families_are_such_files() -> None:
    assert {family.name for family in built_in()} == {"llama", "deepseek", "telechat2", "glm", "mcore"}


def test_neither_config_nor_rules() -> None:
    with pytest.raises(UsageError):
        made_stages(StrategyWish())


def test_a_file_that_is_not_a_map() -> None:
    with pytest.raises(StrategyError, match="expected a map"):
        read_family("- 1\n", "rules.yaml")
