"""Several adapters and initial ones from Python, and tensors of an adapter that PEFT saves under names of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import reshard
from making import read_file, write_file
from reshard.errors import PlanError, UsageError
from reshard.ops.adapters import AdapterAt
from reshard.ops.lora import open_merge
from reshard.ops.options import Options

FRONT = "base_model.model."
BASE = {
    "q.weight": np.full((4, 6), 10, np.float32),
    "q.bias": np.zeros(4, np.float32),
    "norm.bias": np.zeros(6, np.float32),
}
Arrays = dict[str, np.ndarray]


def save_adapter(folder: Path, tensors: Arrays, **config: object) -> str:
    folder.mkdir()
    write_file(folder / "adapter_model.safetensors", {FRONT + name: array for name, array in tensors.items()})
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return str(folder)


def ones(scale: float) -> Arrays:
    """Factors whose product is ``2 * scale`` everywhere."""
    a, b = np.ones((2, 6), np.float32), np.full((4, 2), scale, np.float32)
    return {"q.lora_A.weight": a, "q.lora_B.weight": b}


def merged(tmp_path: Path, adapters: list[AdapterAt], **how: str) -> Arrays:
    write_file(tmp_path / "base.safetensors", BASE)
    out = tmp_path / "out.safetensors"
    reshard.merge_lora(tmp_path / "base.safetensors", out, adapters, **how)  # type: ignore[arg-type]
    return read_file(out)


ROOT = np.sqrt(0.5)  # by which each factor of the second counts, A's with the sign
SUMS = {"cat": 10 + 2 - 3, "linear": 10 + 2 * (1 + 3 * ROOT) * (1 - ROOT)}


@pytest.mark.parametrize("combination", SUMS)
def test_several_each_with_its_weight(tmp_path: Path, combination: str) -> None:
    paths = [save_adapter(tmp_path / "a", ones(1)), save_adapter(tmp_path / "b", ones(3))]
    adapters = [
        reshard.AdapterAt(path, reshard.lora_config(adapter=path), weight)
        for path, weight in zip(paths, (1.0, -0.5), strict=True)
    ]
    found = merged(tmp_path, adapters, combination=combination)["q.weight"]
    np.testing.assert_allclose(found, np.full((4, 6), SUMS[combination]), rtol=1e-6)


def test_initial_with_a_trained_bias(tmp_path: Path) -> None:
    """The copy of the weight beside the factors is what was left of it; that of the bias was trained."""
    more = {"q.base_layer.weight": np.ones((4, 6), np.float32), "q.base_layer.bias": np.full(4, 7, np.float32)}
    path = save_adapter(tmp_path / "a", {**ones(2), **more}, init_lora_weights="pissa", bias="all")
    initial = save_adapter(tmp_path / "i", ones(1), init_lora_weights="pissa")
    config = reshard.lora_config(adapter=path, initial=True)
    found = merged(tmp_path, [AdapterAt(path, config, initial=initial)])
    np.testing.assert_array_equal(found["q.weight"], np.full((4, 6), 10 + 4 - 2))
    np.testing.assert_array_equal(found["q.bias"], np.full(4, 7))


def test_what_cannot_be_told_apart_is_a_usage_error(tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "a", ones(1))
    config = reshard.lora_config(adapter=path)
    begun = AdapterAt(path, config, initial=path)
    with pytest.raises(UsageError, match="of one adapter, and several"):
        merged(tmp_path, [begun, AdapterAt(path, config)])
    with pytest.raises(UsageError, match=r"--weights 0\.5 with --initial"):
        merged(tmp_path, [AdapterAt(path, config, 0.5, path)])
    with pytest.raises(UsageError, match="'svd'"):
        merged(tmp_path, [AdapterAt(path, config)], combination="svd")
    with pytest.raises(UsageError, match="besides the adapters"):
        reshard.merge_lora(tmp_path / "base.safetensors", tmp_path / "out", [AdapterAt(path, config)], adapter=path)
    with pytest.raises(UsageError, match="is nan"):
        AdapterAt(path, config, float("nan"))
    with pytest.raises(PlanError, match="no LoRA tensors"):
        merged(tmp_path, [])


def test_weights_of_adapters_that_peft_counts_otherwise(tmp_path: Path) -> None:
    """It keeps the first's use_rslora for the sum of all."""
    paths = [save_adapter(tmp_path / "a", ones(1), use_rslora=True), save_adapter(tmp_path / "b", ones(3))]
    adapters = [AdapterAt(path, reshard.lora_config(adapter=path)) for path in paths]
    found = merged(tmp_path, adapters)["q.weight"]
    np.testing.assert_allclose(found, np.full((4, 6), 10 + 2 * np.sqrt(2) + 6), rtol=1e-6)
    weighted = [AdapterAt(each.path, each.config, 0.5) for each in adapters]
    for given, how in ((weighted, "cat"), (adapters, "linear")):
        with pytest.raises(UsageError, match="the first says use_rslora"):
            merged(tmp_path, given, combination=how)
    (tmp_path / "other").mkdir()
    assert merged(tmp_path / "other", weighted[::-1])["q.weight"].shape == (4, 6)


def test_a_bias_trained_whole_is_saved_twice(tmp_path: Path) -> None:
    whole = np.full(6, 5, np.float32)
    twice = {"norm.bias": whole, "norm.modules_to_save.bias": whole, "norm.original_module.bias": whole * 0}
    for number, tensors in enumerate((twice, {"norm.modules_to_save.bias": whole})):
        (tmp_path / str(number)).mkdir()
        path = save_adapter(tmp_path / str(number) / "a", {**ones(1), **tensors}, bias="all")
        found = merged(tmp_path / str(number), [AdapterAt(path, reshard.lora_config(adapter=path))])
        np.testing.assert_array_equal(found["norm.bias"], whole)


def test_patterns_know_a_parameter_by_its_name(tmp_path: Path) -> None:
    """``target_parameters`` of a layer's weight: its key ends in the parameter's name, a module's does not."""
    pattern = {"alpha_pattern": {"q.weight": 20}}
    path = save_adapter(tmp_path / "a", ones(1), target_parameters=["q.weight"], **pattern)
    other = save_adapter(tmp_path / "b", ones(1), **pattern)
    for number, (adapter, wanted) in enumerate(((path, 10 + 20), (other, 10 + 2))):
        (tmp_path / str(number)).mkdir()
        found = merged(tmp_path / str(number), [AdapterAt(adapter, reshard.lora_config(adapter=adapter))])
        np.testing.assert_array_equal(found["q.weight"], np.full((4, 6), wanted))


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        ({"norm.modules_to_save.bias": np.ones(6, np.float32)}, {}),
        ({"norm.bias": np.ones(6, np.float32)}, {"modules_to_save": ["norm"]}),
        (
            {"q.token_adapter.trainable_tokens_delta": np.ones((1, 6), np.float32)},
            {"trainable_token_indices": {"q": [2]}},
        ),
    ],
)
def test_what_was_trained_whole_has_no_weight(tmp_path: Path, tensors: Arrays, config: Arrays) -> None:
    """PEFT's sum of several would be without it, and no word."""
    paths = [save_adapter(tmp_path / "a", ones(1)), save_adapter(tmp_path / "b", tensors, **config)]
    adapters = [AdapterAt(path, reshard.lora_config(adapter=path)) for path in paths]
    with pytest.raises(PlanError, match=r"(bias|delta) counts whole: leave the weight of its adapter at 1"):
        merged(tmp_path, [adapters[0], AdapterAt(paths[1], adapters[1].config, 0.5)])


def test_both_ends_of_a_tied_model_are_put_together_each_by_itself(tmp_path: Path) -> None:
    write_file(tmp_path / "base.safetensors", {"embed_tokens.weight": np.zeros((4, 6), np.float32)})
    rng = np.random.default_rng(1)
    (a, b), (c, d), (e, f) = [
        (rng.standard_normal(one, np.float32), rng.standard_normal(two, np.float32))
        for one, two in (((2, 4), (6, 2)), ((2, 4), (6, 2)), ((2, 6), (4, 2)))
    ]
    paths = [
        save_adapter(tmp_path / "a", {"embed_tokens.lora_embedding_A": a, "embed_tokens.lora_embedding_B": b}),
        save_adapter(
            tmp_path / "b",
            {
                "embed_tokens.lora_embedding_A": c,
                "embed_tokens.lora_embedding_B": d,
                "lm_head.lora_A.weight": e,
                "lm_head.lora_B.weight": f,
            },
        ),
    ]
    adapters = [AdapterAt(path, reshard.lora_config(adapter=path)) for path in paths]
    out = tmp_path / "out.safetensors"
    reshard.merge_lora(tmp_path / "base.safetensors", out, adapters, combination="linear")
    np.testing.assert_allclose(read_file(out)["embed_tokens.weight"], ((b + d) @ (a + c)).T + f @ e, rtol=1e-5)


SQUARE = {"h.c_proj.weight": np.zeros((4, 4), np.float32), "lm_head.weight": np.zeros((9, 4), np.float32)}


def of_square(scale: float) -> Arrays:
    return {
        "h.c_proj.lora_A.weight": np.full((2, 4), scale, np.float32),
        "h.c_proj.lora_B.weight": np.eye(4, 2, dtype="f4"),
    }


def test_adapters_that_disagree_on_how_a_square_weight_is_stored_are_refused(tmp_path: Path) -> None:
    """PEFT saves what the last layer was: of a Conv1D and a head it says that of the head."""
    write_file(tmp_path / "base.safetensors", SQUARE)
    paths = [save_adapter(tmp_path / str(n), of_square(n), fan_in_fan_out=bool(n)) for n in range(2)]
    for order in (paths, paths[::-1]):
        adapters = [AdapterAt(path, reshard.lora_config(adapter=path)) for path in order]
        with pytest.raises(PlanError, match=r"c_proj.weight: nothing tells .*; another adapter says it is \[in, out\]"):
            reshard.merge_lora(tmp_path / "base.safetensors", tmp_path / "out.safetensors", adapters)


def test_heads_and_embeddings_are_stored_alike_whatever_layers_are(tmp_path: Path) -> None:
    write_file(tmp_path / "base.safetensors", SQUARE)
    head = {"lm_head.lora_A.weight": np.ones((2, 4), np.float32), "lm_head.lora_B.weight": np.ones((9, 2), np.float32)}
    path = save_adapter(tmp_path / "a", {**of_square(3), **head}, fan_in_fan_out=True)
    config = reshard.lora_config(adapter=path)
    for stated in (False, True):
        (tmp_path / "out.safetensors").unlink(missing_ok=True)
        reshard.merge_lora(
            tmp_path / "base.safetensors", tmp_path / "out.safetensors", replace(config, stated=stated), adapter=path
        )
        found = read_file(tmp_path / "out.safetensors")
        np.testing.assert_array_equal(found["h.c_proj.weight"], np.tile([3, 3, 0, 0], (4, 1)))
        np.testing.assert_array_equal(found["lm_head.weight"], np.full((9, 4), 2))


CLASSES = {"modules_to_save": ["classifier", "score"]}  # PEFT says both of any model


def test_a_classifier_that_the_base_has_not_is_written(tmp_path: Path) -> None:
    score = np.ones((3, 6), np.float32)
    path = save_adapter(tmp_path / "a", {**ones(1), "score.weight": score}, **CLASSES)
    adapter = AdapterAt(path, reshard.lora_config(adapter=path))
    found = merged(tmp_path, [adapter])
    assert found.keys() == {*BASE, "score.weight"}
    np.testing.assert_array_equal(found["score.weight"], score)
    warnings = open_merge(tmp_path / "base.safetensors", Options(), [adapter]).joined.source.warnings
    assert warnings == (
        "score.weight is the adapter's, and the base has none: config.json must name the class that it was trained in",
    )
    other = save_adapter(tmp_path / "b", {"score.weight": score}, **CLASSES)
    with pytest.raises(PlanError, match=r"a second replacement of score\.weight"):
        merged(tmp_path, [adapter, AdapterAt(other, reshard.lora_config(adapter=other))])


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("score.weight", {}),
        ("a.norm.bias", {"modules_to_save": ["norm"]}),
        ("lm_head.weight", {"modules_to_save": ["lm_head"]}),
    ],
)
def test_what_may_be_the_base_s_under_another_name_is_none_of_its_own(
    tmp_path: Path, name: str, config: Arrays
) -> None:
    path = save_adapter(tmp_path / "a", {**ones(1), name: np.ones(6, np.float32)}, **config)
    with pytest.raises(PlanError, match=f"the base has no {name} that it would replace"):
        merged(tmp_path, [AdapterAt(path, reshard.lora_config(adapter=path))])


def test_biases_of_products_are_not_put_together_before_them(tmp_path: Path) -> None:
    biased = {**ones(1), "q.lora_B.bias": np.ones(4, np.float32)}
    paths = [save_adapter(tmp_path / name, biased, lora_bias=True) for name in "ab"]
    adapters = [AdapterAt(path, reshard.lora_config(adapter=path)) for path in paths]
    with pytest.raises(PlanError, match=r"q\.bias: a bias of the product: .* cat alone"):
        merged(tmp_path, adapters, combination="linear")
    np.testing.assert_array_equal(merged(tmp_path, adapters[:1], combination="linear")["q.bias"], np.ones(4))
