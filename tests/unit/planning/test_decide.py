"""One test for each rule of "who knows a name decides"."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from catalogs import ROWS, WHOLE, full, ranks, strategy
from msgspec.structs import replace

from reshard.errors import PlanError, UsageError
from reshard.layout.stages import Strategy
from reshard.layout.tensor import Sharding
from reshard.planning.catalog import Catalog
from reshard.planning.decide import Decisions, Missing, decide
from reshard.planning.names import NameRules

STATES = "optimizer states that the target's strategy does not have"
NO_STATES = "optimizer states and gradients that a strategy lists and no file holds"
NO_LORA = "LoRA weights that the source does not hold"


def decided(
    source: Catalog,
    target: Strategy | None,
    missing: Missing = "error",
    agreed: Mapping[str, bool] | None = None,
    rules: NameRules | None = None,
) -> Decisions:
    return decide(source, target, rules or NameRules(), missing, agreed or {})


def kept(found: Decisions) -> dict[str, dict[int, Sharding]]:
    """Name in the target → how each stage that gets it cuts it."""
    return {k.name: {stage: at.sharding for stage, at in k.layouts.items()} for k in found.kept}


def left(found: Decisions) -> dict[tuple[str, str], tuple[str, ...]]:
    return {(out.fate, out.reason): out.names for out in found.left_out}


def full_cut(devices: int, ndim: int = 1) -> Sharding:
    return Sharding.whole(devices, ndim)


# --- source and target strategy know it


def test_known_to_both_is_cut_as_the_target_says() -> None:
    source = ranks(strategy({"w": ROWS}), {"w": (2,)}, {"w": (2,)})
    assert kept(decided(source, strategy({"w": WHOLE}))) == {"w": {0: WHOLE}}


def test_states_known_to_both_are_kept() -> None:
    states = {"adam_m.w": ROWS, "accu_grads.w": ROWS}
    source = ranks(strategy(states), *[dict.fromkeys(states, (2,))] * 2)
    assert kept(decided(source, strategy(states))) == {n: {0: ROWS} for n in states}


def test_a_tied_tensor_goes_to_every_stage_that_knows_it() -> None:
    source = full({"w": (4,), "x": (4,)})
    found = decided(source, strategy({"w": ROWS, "x": ROWS}, {"w": WHOLE}))
    assert kept(found) == {"w": {0: ROWS, 1: WHOLE}, "x": {0: ROWS}}


# --- no target strategy


def test_merge_to_full_keeps_everything_whole() -> None:
    names = {"w": ROWS, "adam_m.w": ROWS, "accu_grads.w": ROWS}
    source = ranks(strategy(names), *[dict.fromkeys([*names, "global_step"], (2,))] * 2)
    found = decided(source, None, agreed={"global_step": True})
    assert kept(found) == {n: {0: full_cut(1)} for n in (*names, "global_step")}
    assert [k.layouts[0].shape for k in found.kept] == [(4,), (4,), (4,), (2,)]
    assert not found.left_out


def test_merge_names_every_weight_of_the_source_strategy_that_no_file_holds() -> None:
    source = ranks(strategy({"w": ROWS, "a": ROWS, "b": ROWS}), {"w": (2,)}, {"w": (2,)})
    with pytest.raises(PlanError, match="a: no source file holds it\nb: no source file holds it"):
        decided(source, None)


def test_merge_with_drop_leaves_such_weights_out_by_name() -> None:
    source = ranks(strategy({"w": ROWS, "a": ROWS, "adam_m.a": ROWS}), {"w": (2,)}, {"w": (2,)})
    found = decided(source, None, "drop")
    assert left(found) == {("absent", "no source file holds it"): ("a",), ("absent", NO_STATES): ("adam_m.a",)}


# --- target only


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("adam_m.w", NO_STATES),
        ("adam_v.w", NO_STATES),
        ("accu_grads.w", NO_STATES),
        ("w.mindpet_delta_lora_a", NO_LORA),
        ("layers.0.wq.lora_a", NO_LORA),
    ],
)
def test_states_and_lora_that_only_the_target_knows_are_left_out_and_counted(name: str, reason: str) -> None:
    found = decided(full({"w": (4,)}), strategy({"w": ROWS, name: ROWS}))
    assert kept(found) == {"w": {0: ROWS}}
    assert left(found) == {("absent", reason): (name,)}


def test_a_weight_that_only_the_target_knows_is_an_error() -> None:
    with pytest.raises(PlanError, match="extra: no source file holds it"):
        decided(full({"w": (4,)}), strategy({"w": ROWS, "extra": ROWS}))


def test_a_weight_that_only_the_target_knows_may_be_left_out() -> None:
    found = decided(full({"w": (4,)}), strategy({"w": ROWS, "extra": ROWS}), "drop")
    assert left(found) == {("absent", "no source file holds it"): ("extra",)}


# --- source only


def test_states_that_only_the_source_strategy_knows_are_dropped_and_counted() -> None:
    names = {"w": ROWS, "adam_m.w": ROWS, "accu_grads.w": ROWS}
    source = ranks(strategy(names), *[dict.fromkeys(names, (2,))] * 2)
    found = decided(source, strategy({"w": WHOLE}))
    assert kept(found) == {"w": {0: WHOLE}}
    assert left(found) == {("dropped", STATES): ("adam_m.w", "accu_grads.w")}


def test_a_weight_that_only_the_source_strategy_knows_is_an_error() -> None:
    source = ranks(strategy({"w": ROWS, "old": ROWS}), *[{"w": (2,), "old": (2,)}] * 2)
    with pytest.raises(PlanError, match="old: only the source's strategy has it"):
        decided(source, strategy({"w": WHOLE}))


def test_a_weight_that_only_the_source_strategy_knows_may_be_dropped() -> None:
    source = ranks(strategy({"w": ROWS, "old": ROWS}), *[{"w": (2,), "old": (2,)}] * 2)
    found = decided(source, strategy({"w": WHOLE}), "drop")
    assert kept(found) == {"w": {0: WHOLE}}
    assert left(found) == {("dropped", "only the source's strategy has it"): ("old",)}


# --- in no source strategy although there is one


def test_unknown_and_equal_on_all_ranks_goes_whole_to_every_target_rank() -> None:
    source = ranks(strategy({"w": ROWS}), *[{"w": (2,), "base": (3,)}] * 2)
    found = decided(source, strategy({"w": ROWS}, {"w": ROWS}), agreed={"base": True})
    assert kept(found)["base"] == {0: full_cut(2), 1: full_cut(2)}


def test_unknown_and_equal_is_sliced_where_the_target_cuts_it() -> None:
    source = ranks(strategy({"w": ROWS}), *[{"w": (2,), "base": (4,)}] * 2)
    found = decided(source, strategy({"w": ROWS, "base": ROWS}), agreed={"base": True})
    assert kept(found)["base"] == {0: ROWS}
    assert found.kept[1].layouts[0].shape == (4,)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_value_on_which_ranks_disagree_is_taken_rank_by_rank_with_a_warning(shape: tuple[int, ...]) -> None:
    source = ranks(strategy({"w": ROWS}), *[{"w": (2,), "global_step": shape}] * 2)
    found = decided(source, strategy({"w": ROWS}), agreed={"global_step": False})
    assert [k.varied for k in found.kept] == [False, True]
    assert [w for w in found.warnings if w.startswith("global_step: ")] == list(found.warnings)
    assert len(found.warnings) == 1


@pytest.mark.parametrize("agreed", [True, False])
def test_one_value_that_the_target_cuts_is_refused_by_name(agreed: bool) -> None:
    source = ranks(strategy({"w": ROWS}), *[{"w": (2,), "step": (1,)}] * 2)
    with pytest.raises(PlanError, match="step: dim 0"):
        decided(source, strategy({"w": ROWS, "step": ROWS}), agreed={"step": agreed})


def test_a_larger_tensor_on_which_ranks_disagree_is_an_error() -> None:
    source = ranks(strategy({"w": ROWS}), *[{"w": (2,), "base": (2,)}] * 2)
    with pytest.raises(PlanError, match="base: no strategy knows it and its ranks disagree"):
        decided(source, strategy({"w": ROWS}), agreed={"base": False})


@pytest.mark.parametrize("target", [None, strategy({"w": ROWS}), strategy({"w": ROWS, "base": ROWS})])
def test_a_larger_tensor_on_which_ranks_disagree_may_be_left_out(target: Strategy | None) -> None:
    source = ranks(strategy({"w": ROWS}), *[{"w": (2,), "base": (2,)}] * 2)
    found = decided(source, target, "drop", agreed={"base": False})
    assert list(kept(found)) == ["w"]
    assert left(found) == {("dropped", "no strategy knows it and its ranks disagree"): ("base",)}


# --- full source, name unknown to the target


def test_a_state_of_a_known_weight_is_dropped() -> None:
    found = decided(full({"w": (4,), "adam_m.w": (4,), "accu_grads.w": (4,)}), strategy({"w": ROWS}))
    assert left(found) == {("dropped", STATES): ("adam_m.w", "accu_grads.w")}


def test_a_name_that_the_target_knows_for_other_layers_is_an_error() -> None:
    source = full({"layers.0.x": (4,), "layers.7.x": (4,)})
    with pytest.raises(PlanError, match=r"layers.7.x: .*lacks a stage"):
        decided(source, strategy({"layers.0.x": ROWS}))


def test_a_name_that_the_target_knows_for_other_layers_may_be_dropped() -> None:
    source = full({"layers.0.x": (4,), "layers.7.x": (4,)})
    found = decided(source, strategy({"layers.0.x": ROWS}), "drop")
    assert list(kept(found)) == ["layers.0.x"]
    ((_, names),) = left(found).items()
    assert names == ("layers.7.x",)


def test_anything_else_goes_whole_to_every_rank() -> None:
    found = decided(full({"w": (4,), "epoch_num": ()}), strategy({"w": ROWS}, {"w": ROWS}))
    assert kept(found)["epoch_num"] == {0: full_cut(2, 0), 1: full_cut(2, 0)}


# --- what holds for all of them


def test_all_faults_are_told_at_once() -> None:
    source = ranks(strategy({"w": ROWS, "a": ROWS}), *[{"w": (3,), "a": (2,)}] * 2)
    uneven = Sharding((4,), ((0,),))
    with pytest.raises(PlanError) as caught:
        decided(source, strategy({"w": uneven, "new": uneven}, devices=4))
    assert caught.value.message.splitlines()[1:] == [
        "w: dim 0 of [6] has 6, not divisible into 4 parts",
        "a: only the source's strategy has it",
        "new: no source file holds it",
    ]


def test_excluded_names_are_dropped_and_not_missed() -> None:
    source = full({"w": (4,), "lm_head": (4,)})
    target = strategy({"w": ROWS, "lm_head": ROWS})
    found = decided(source, target, rules=NameRules(exclude=("lm_head",)))
    assert kept(found) == {"w": {0: ROWS}}
    assert left(found) == {("dropped", "by --include / --exclude"): ("lm_head",)}


def test_the_target_is_asked_for_the_new_name() -> None:
    rules = NameRules(rename=((r"^model\.", ""),))
    found = decided(full({"model.w": (4,)}), strategy({"w": ROWS}), rules=rules)
    assert kept(found) == {"w": {0: ROWS}}


def test_two_tensors_of_one_new_name_are_refused() -> None:
    rules = NameRules(rename=((r"\d", "n"),))
    with pytest.raises(UsageError, match="w1 and w2 would both be called wn"):
        decided(full({"w1": (4,), "w2": (4,)}), None, rules=rules)


@pytest.mark.parametrize(("old", "new"), [("w", "note"), ("note", "w"), ("x", "note")])
def test_a_string_is_not_called_as_a_tensor_or_another(old: str, new: str) -> None:
    source = replace(full({"w": (4,)}), texts={"note": {0: "a"}, "x": {0: "b"}})
    with pytest.raises(UsageError, match=f"would both be called {new}"):
        decided(source, None, rules=NameRules(rename=((f"^{old}$", new),)))
    assert decided(source, None, rules=NameRules(rename=((f"^{old}$", new),), exclude=(f"^{new}$",)))
