from __future__ import annotations

import pytest

from reshard.errors import UsageError
from reshard.planning.names import NameRules, is_lora, is_state, layer_pattern, weight_of_state

WEIGHTS = (
    "lm_head.weight",
    "model.layers.0.attention.wq.weight",
    "adam_mixer.weight",
    "accu_grads",
    "moments",
    "state.0.step.weight",
    "ssm.state.1.mean",
)
STATES = {
    "adam_m.w": "w", "adam_v.model.x": "model.x", "accu_grads.w": "w", "moments.w": "w", "moment1.w": "w",
    "momentum.w": "w", "exp_avg.w": "w", "exp_avg_sq.w": "w", "max_exp_avg_sq.w": "w", "muon_m.w": "w",
    "exp_avg_sq_row_w": "w", "exp_avg_sq_col_w": "w",
    **{name: name for name in ("optimizer.state.exp_avg.w", "chained_1.optimizer.state.exp_avg.w")},
    # as fairseq, trainers of several networks, and torch.save of an optimizer alone have them
    **{name: name for name in ("last_optimizer_state.state.0.exp_avg", "g_optim.state.2.row_var")},
    **{name: name for name in ("opt.state.3.step", "opt.state.layers.0.w.exp_avg", "state.0.square_avg")},
}  # fmt: skip


@pytest.mark.parametrize(("name", "weight"), STATES.items())
def test_states(name: str, weight: str) -> None:
    assert is_state(name)
    assert weight_of_state(name) == weight


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_no_states(name: str) -> None:
    assert not is_state(name)
    assert weight_of_state(name) == name


@pytest.mark.parametrize(
    "name",
    ["l.0.wq.mindpet_delta_lora_a", "l.wq.lora_A.weight", "l.wq.lora_b", "lora_a", "x_lora_A"],
)
def test_lora(name: str) -> None:
    assert is_lora(name)


@pytest.mark.parametrize("name", ["explora_a.weight", "flora.weight", "lora_alpha", "wq.weight"])
def test_not_lora(name: str) -> None:
    assert not is_lora(name)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("layers.7.wq", "layers.#.wq"),
        ("layers.12.experts.3.w1", "layers.#.experts.#.w1"),
        ("w1.weight", "w1.weight"),
        ("7.wq", "7.wq"),
    ],
)
def test_layers_of_a_kind_look_alike(name: str, pattern: str) -> None:
    assert layer_pattern(name) == pattern


def test_include_and_exclude_search() -> None:
    rules = NameRules(include=("wq", "wk$"), exclude=("^layers.0",))
    assert [rules.takes(n) for n in ("layers.1.wq.weight", "x.wk", "x.wk.weight", "layers.0.wq")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert NameRules().takes("anything")


def test_renames_are_applied_in_order() -> None:
    rules = NameRules(rename=((r"^model\.", ""), (r"layers\.(\d+)", r"blocks.\1")))
    assert rules.renamed("model.layers.3.wq") == "blocks.3.wq"


@pytest.mark.parametrize("rules", [{"include": ("(",)}, {"exclude": ("[",)}, {"rename": (("*", ""),)}])
def test_what_is_no_regular_expression(rules: dict) -> None:
    with pytest.raises(UsageError, match="not a regular expression"):
        NameRules(**rules)


def test_a_group_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="rename"):
        NameRules(rename=(("a", r"\1"),)).renamed("a")


@pytest.mark.parametrize(
    "name",
    [
        "adam_m.w",
        "exp_avg.w",
        "max_exp_avg_sq.w",
        "momentum_buffer.w",
        "step.w",
        "fp32.w",
        "optim.state.w.exp_avg",
        "optimizer.state.0.exp_avg",
        "optimizer_states.0.state.0.exp_avg",
        "optimizer_state_dict.state.0.exp_avg",
        "optim_state_dict.w",
        "optimizers.0.state.1.step",
        "app.optim.state.w.exp_avg",
        "app.optim.param_groups.0.lr",
        "optimizer_0.state.w.exp_avg",
        "state.optimizers.AdamW.state.model.w.exp_avg",
    ],
)
def test_weights_only_takes_no_states(name: str) -> None:
    rules = NameRules(weights_only=True)
    assert not rules.takes(name)
    assert NameRules().takes(name)
    assert rules.takes("model.steps.w")
    assert rules.takes("optimize.w")
    assert rules.takes("model.optimizer.w")
    assert rules.takes("state.model.w")
