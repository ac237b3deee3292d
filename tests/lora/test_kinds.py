"""Adapters that are merged exactly as PEFT merges them, and those that are refused by name.

What is right here was tried with PEFT 0.21.2 (``merge_and_unload``).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from reshard.errors import InputError, PlanError, UsageError
from reshard.ops.adapters import AdapterAt
from reshard.ops.lora import lora_config, merge_lora
from reshard.ops.peft import UNMERGEABLE
from reshard.ops.scaling import LoraConfig, Unscaled, _end_of, read_config
from reshard.planning import lora_hints
from reshard.planning.lora_names import model_name

OUT, IN, RANK = 6, 4, 2
RNG = np.random.default_rng(3)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def configuration(folder: Path, **more: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, **more}))
    return path


def adapter(folder: Path, layers: dict[str, tuple[int, ...]], front: str = "base_model.model.", **more: object) -> Path:
    """Factors of ones for weights [out, in] or more dims before these."""
    configuration(folder, **more)
    factors = {}
    for name, (*lead, out, inner) in layers.items():
        factors[f"{front}{name}.lora_A.weight"] = ones(*lead, RANK, inner)
        factors[f"{front}{name}.lora_B.weight"] = ones(*lead, out, RANK)
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


def merged(base: dict[str, np.ndarray], folder: Path, config: LoraConfig | None = None) -> dict[str, np.ndarray]:
    source, out = folder.parent / "base.safetensors", folder.parent / "out.safetensors"
    save_file(base, source)
    done = merge_lora(source, out, config or lora_config(adapter=str(folder)), adapter=folder)
    assert done.bill.warnings == ()
    return load_file(out)


REFUSED = {
    "peft_type": "ADALORA",
    "init_lora_weights": "pissa",
    "alora_invocation_tokens": [7],
    "layer_replication": [[0, 2], [1, 3]],
    "megatron_config": {"hidden_size": 4},
    "use_qalora": True,
    "something_of_next_year": {"strength": 3},
}


@pytest.mark.parametrize("key", REFUSED)
@pytest.mark.parametrize("scaling", ["", "2"], ids=["its own scaling", "another scaling"])
def test_what_is_no_plain_lora_is_refused_by_name(tmp_path: Path, key: str, scaling: str) -> None:
    configuration(tmp_path, **{key: REFUSED[key]})
    with pytest.raises(InputError, match=rf"not a plain LoRA adapter: {key}"):
        lora_config(scaling=scaling, adapter=str(tmp_path))


@pytest.mark.parametrize("init", ["pissa_niter_16", "OLoRA", "corda", "loftq", "lora_ga", "of_next_year"])
def test_factors_that_began_in_the_base_are_refused(tmp_path: Path, init: str) -> None:
    with pytest.raises(InputError, match=f"init_lora_weights is {init.lower()}"):
        read_config(configuration(tmp_path, init_lora_weights=init))


def test_a_quantised_beginning_is_refused_with_the_initial_adapter_too(tmp_path: Path) -> None:
    for initial in (False, True):
        with pytest.raises(InputError, match="a base that had been quantised") as refused:
            read_config(configuration(tmp_path, init_lora_weights="loftq"), initial=initial)
        assert "--initial" not in str(refused.value)


KINDS = (
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADALORA", "ADAMSS", "BOFT",
    "ADAPTION_PROMPT", "BEFT", "LILY", "LOHA", "LOKR", "OFT", "POLY", "VERA", "FROD", "PVERA", "FOURIERFT", "GLORA",
    "XLORA", "HRA", "VBLORA", "UNILORA", "CPT", "MISS", "RANDLORA", "ROAD", "HIRA", "SHIRA", "C3A", "WAVEFT", "OSF",
    "DELORA", "GRALORA", "CARTRIDGE", "TINYLORA", "PSOFT", "PEANUT", "SHADOW", "SUPERTUNING", "DEFT",
)  # fmt: skip
"""All that PEFT 0.21 has and that are not merged."""


@pytest.mark.parametrize("kind", [*KINDS, "PeftType.LOHA", "OF_NEXT_YEAR"])
def test_other_methods_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=f"peft_type is {kind.removeprefix('PeftType.')}") as refused:
        read_config(configuration(tmp_path, peft_type=kind))
    assert ("no merged weight does" in str(refused.value)) is (kind in UNMERGEABLE)


def of_kind(folder: Path, kind: str, base: dict[str, np.ndarray], **tensors: np.ndarray) -> dict[str, np.ndarray]:
    save_file({f"base_model.model.{n}": a for n, a in tensors.items()}, folder / "adapter_model.safetensors")
    of_kinds = {"IA3": {"feedforward_modules": ["k"]}, "TRAINABLE_TOKENS": {"token_indices": [2, 0]}}
    targets = [model_name(name).rpartition(".")[0] for name in tensors]
    said = {"peft_type": kind, "target_modules": targets, **of_kinds.get(kind, {})}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return merged(base, folder)


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter").mkdir()
    return tmp_path / "adapter"


def test_ia3_multiplies_outputs_with_their_bias_and_inputs(adapter_folder: Path) -> None:
    base = {"q.weight": ones(3, 2), "q.bias": ones(3), "k.weight": ones(4, 2), "k.bias": ones(4)}
    outputs, inputs = np.float32([[2], [3], [4]]), np.float32([[5, 6]])
    found = of_kind(adapter_folder, "IA3", base, **{"q.ia3_l": outputs, "k.ia3_l": inputs})
    np.testing.assert_array_equal(found["q.weight"], outputs * np.ones((3, 2), np.float32))
    np.testing.assert_array_equal(found["q.bias"], [2, 3, 4])
    np.testing.assert_array_equal(found["k.weight"], inputs * np.ones((4, 2), np.float32))
    np.testing.assert_array_equal(found["k.bias"], base["k.bias"])


@pytest.mark.parametrize(("weight", "by"), [((3, 2), (5, 1)), ((4, 1), (1, 1)), ((4, 2, 3), (1, 4, 1))], ids=str)
def test_ia3_whose_shape_does_not_tell_what_it_multiplies_is_refused(
    adapter_folder: Path, weight: tuple[int, ...], by: tuple[int, ...]
) -> None:
    with pytest.raises(PlanError, match=r"q\.ia3_l: float32\[.*\] does not multiply q\.weight"):
        of_kind(adapter_folder, "IA3", {"q.weight": ones(*weight)}, **{"q.ia3_l": ones(*by)})


def test_a_square_weight_beside_ones_stored_in_out_is_asked_for(adapter_folder: Path) -> None:
    base = {"q.weight": ones(3, 3), "k.weight": ones(3, 4)}
    with pytest.raises(PlanError, match=r"q\.weight: nothing tells whether it is stored .*k\.weight is \[in, out\]"):
        of_kind(adapter_folder, "IA3", base, **{"q.ia3_l": ones(3, 1), "k.ia3_l": ones(4, 1)})


def test_a_base_is_looked_through_once_for_all_square_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr(lora_hints, "stored_in_out", lambda tensors: looked.append(len(tensors)))
    layers = {f"layers.{n}.q": (3, 3) for n in range(5)}
    save_file({f"{name}.weight": ones(*shape) for name, shape in layers.items()}, tmp_path / "base.safetensors")
    folder = adapter(tmp_path / "a", layers)
    config = lora_config(adapter=str(folder))
    merge_lora(tmp_path / "base.safetensors", tmp_path / "o.safetensors", config, adapter=folder)
    assert looked == [5]


def test_ia3_has_no_scaling(adapter_folder: Path) -> None:
    configuration(adapter_folder, peft_type="IA3")
    for more in ({"scaling": "2"}, {"alpha": 2.0, "rank": 1}):
        with pytest.raises(UsageError, match="a scaling for an adapter of peft_type IA3"):
            lora_config(adapter=str(adapter_folder), **more)


@pytest.mark.parametrize("kind", ["IA3", "LN_TUNING", "TRAINABLE_TOKENS"])
def test_what_has_no_factors_counts_whole(tmp_path: Path, kind: str) -> None:
    save_file({"n.weight": ones(3)}, tmp_path / "base.safetensors")
    save_file({"n.ln_tuning_layers.weight": ones(3)}, tmp_path / "adapter_model.safetensors")
    config = read_config(configuration(tmp_path, peft_type=kind))
    with pytest.raises(UsageError, match=rf"--weights 0\.5 of .*, and peft_type is {kind}"):
        merge_lora(tmp_path / "base.safetensors", tmp_path / "o.safetensors", [AdapterAt(str(tmp_path), config, 0.5)])


def test_factors_under_a_kind_that_has_none_are_refused(adapter_folder: Path) -> None:
    with pytest.raises(InputError, match="q has factors, and peft_type is IA3"):
        of_kind(
            adapter_folder,
            "IA3",
            {"q.weight": ones(3, 2)},
            **{"q.lora_A.weight": ones(1, 2), "q.lora_B.weight": ones(3, 1)},
        )


@pytest.mark.parametrize("also", ["q.lora_A.weight", "q.trainable_tokens_delta"])
def test_what_ia3_multiplies_nothing_else_changes(tmp_path: Path, also: str) -> None:
    save_file({"q.weight": ones(3, 2)}, tmp_path / "base.safetensors")
    paths = [tmp_path / "one", tmp_path / "two"]
    factors = {"q.lora_A.weight": ones(1, 2), "q.lora_B.weight": ones(3, 1)}
    configuration(paths[0], peft_type="IA3")
    save_file({"q.ia3_l": ones(3, 1)}, paths[0] / "adapter_model.safetensors")
    configuration(paths[1], r=1, trainable_token_indices=None if also in factors else [0])
    save_file(factors if also in factors else {also: ones(1, 2)}, paths[1] / "adapter_model.safetensors")
    adapters = [AdapterAt(str(path), lora_config(adapter=str(path))) for path in paths]
    with pytest.raises(PlanError, match=r"multiplies it and another changes it|scaled"):
        merge_lora(tmp_path / "base.safetensors", tmp_path / "out.safetensors", adapters)


def test_norms_that_were_tuned_replace_the_base_s(adapter_folder: Path) -> None:
    base = {"n.weight": ones(3), "w": ones(2)}
    found = of_kind(adapter_folder, "LN_TUNING", base, **{"n.ln_tuning_layers.weight": 7 * ones(3)})
    np.testing.assert_array_equal(found["n.weight"], np.float32([7, 7, 7]))
    np.testing.assert_array_equal(found["w"], base["w"])


def test_tuned_norms_in_a_model_that_was_saved_with_them(tmp_path: Path) -> None:
    save_file(
        {"n.base_layer.weight": ones(3), "n.ln_tuning_layers.default.weight": 7 * ones(3), "w": ones(2)},
        tmp_path / "base.safetensors",
    )
    merge_lora(tmp_path / "base.safetensors", tmp_path / "out.safetensors", LoraConfig(Unscaled("LN_TUNING")))
    found = load_file(tmp_path / "out.safetensors")
    assert {name: values.tolist() for name, values in found.items()} == {"n.weight": [7, 7, 7], "w": [1, 1]}


def test_rows_that_were_trained_alone_replace_the_base_s(adapter_folder: Path) -> None:
    rows = np.float32([[5, 6], [7, 8]])
    base = {"e.weight": ones(4, 2)}
    found = of_kind(adapter_folder, "TRAINABLE_TOKENS", base, **{"e.trainable_tokens_delta": rows})
    np.testing.assert_array_equal(found["e.weight"], [[7, 8], [1, 1], [5, 6], [1, 1]])


def test_of_another_method_its_name_is_enough(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read_config(configuration(tmp_path, peft_type="ADALORA", beta1=0.85))
    assert "peft_type is ADALORA" in str(refused.value)
    assert "beta1" not in str(refused.value)


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "Gaussian", "eva", "orthogonal", "mica"])
def test_factors_that_began_beside_the_base_are_merged(tmp_path: Path, init: object) -> None:
    assert read_config(configuration(tmp_path, init_lora_weights=init)).scaling.of("m", RANK) == 1


def test_keys_that_are_off_or_of_the_training_say_nothing(tmp_path: Path) -> None:
    off = {"use_qalora": False, "modules_to_save": None, "layer_replication": [], "of_next_year": None, "bias": "none"}
    training = {
        "target_modules": ["q"],
        "lora_dropout": 0.1,
        "task_type": "CAUSAL_LM",
        "megatron_core": "megatron.core",
    }
    read_config(configuration(tmp_path, **off, **training, qalora_group_size=16, eva_config={"rho": 2.0}))


def test_a_file_has_the_configuration_beside_it(tmp_path: Path) -> None:
    configuration(tmp_path, use_qalora=True)
    with pytest.raises(InputError, match="use_qalora"):
        lora_config(adapter=str(tmp_path / "adapter_model.safetensors"))


def test_a_mindformers_adapter_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("pet_config: {pet_type: slora, lora_rank: 8, lora_alpha: 8}\n")
    with pytest.raises(InputError, match="pet_type is slora"):
        read_config(path)
    path.write_text("pet_config: {lora_rank: 8, lora_alpha: 8, target_cells: [{cell: a.b, alpha: 4}]}\n")
    with pytest.raises(InputError, match="target_cells"):
        read_config(path)


PATTERNS = {
    r"^layers\.0\.q": True,
    r"^model\.layers\.0\.q": False,
    "layers.0.q": True,
    r"layers\.(0|7)\.(q|k)": True,
    "k|q": True,
    "q$": True,
    r"layers.(\d).q": True,
    "base_model.model.layers.0.q": False,
    "ers.0.q": False,
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_as_in_peft(tmp_path: Path, pattern: str) -> None:
    folder = adapter(tmp_path / "a", {"layers.0.q": (OUT, IN)}, alpha_pattern={pattern: 16 * RANK})
    found = merged({"layers.0.q.weight": ones(OUT, IN)}, folder)["layers.0.q.weight"]
    assert found[0, 0] == 1 + RANK * (16 if PATTERNS[pattern] else 1)


def test_patterns_of_many_layers_are_compiled_once(tmp_path: Path) -> None:
    """``re`` itself forgets all beyond 512."""
    patterns = {f"layers.{n}.q": 8 for n in range(600)}
    scaling = read_config(configuration(tmp_path, alpha_pattern=patterns)).scaling
    _end_of.cache_clear()
    assert [scaling.of(f"layers.{n}.q", RANK) for n in (599, 598)] == [4, 4]
    assert _end_of.cache_info().misses == 600


def test_the_first_pattern_that_matches_counts(tmp_path: Path) -> None:
    scaling = read_config(configuration(tmp_path, alpha_pattern={"q": 8, "layers.0.q": 16})).scaling
    assert scaling.of("layers.0.q", RANK) == 4


CONVOLUTIONS = {
    "1d": ((RANK, IN, 3), (OUT, RANK, 1), (OUT, IN, 3)),
    "2d": ((RANK, IN, 3, 3), (OUT, RANK, 1, 1), (OUT, IN, 3, 3)),
    "2d of one, all sizes alike": ((RANK, RANK, 1, 1), (RANK, RANK, 1, 1), (RANK, RANK, 1, 1)),
    "3d": ((RANK, IN, 1, 1, 1), (OUT, RANK, 1, 1, 1), (OUT, IN, 1, 1, 1)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions(tmp_path: Path, kind: str) -> None:
    a, b, w = (RNG.standard_normal(shape).astype(np.float32) for shape in CONVOLUTIONS[kind])
    save_file({"c.weight": w, "c.lora_A": a, "c.lora_B": b}, tmp_path / "in.safetensors")
    merge_lora(tmp_path / "in.safetensors", tmp_path / "out.safetensors", lora_config(alpha=4, rank=RANK))
    product = np.einsum("or,r...->o...", b.reshape(b.shape[:2]).astype(np.float64), a)
    np.testing.assert_array_equal(load_file(tmp_path / "out.safetensors")["c.weight"], (w + 2 * product).astype("f4"))


def layer_with_ramp(folder: Path, name: str, size: int) -> np.ndarray:
    """Make the factors of one square layer so that their product differs from its transpose; gives the product."""
    path = folder / "adapter_model.safetensors"
    factors = load_file(path)
    ramp = np.arange(RANK * size, dtype=np.float32).reshape(RANK, size)
    factors[f"base_model.model.{name}.lora_A.weight"] = ramp
    save_file(factors, path)
    return ones(size, RANK) @ ramp


@pytest.mark.parametrize("said", [True, False])
def test_square_weights_are_stored_as_the_configuration_says(tmp_path: Path, said: bool) -> None:
    folder = adapter(tmp_path / "a", {"q": (IN, IN)}, fan_in_fan_out=said)
    product = layer_with_ramp(folder, "q", IN)
    found = merged({"q.weight": ones(IN, IN)}, folder)["q.weight"]
    np.testing.assert_array_equal(found - 1, product.T if said else product)


def test_of_other_weights_the_shapes_tell(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", {"q": (OUT, IN), "k": (OUT, IN)}, fan_in_fan_out=True)
    found = merged({"q.weight": ones(IN, OUT), "k.weight": ones(OUT, IN)}, folder)
    assert found["q.weight"].shape == (IN, OUT)
    assert found["k.weight"].shape == (OUT, IN)


@pytest.mark.parametrize("said", [True, False])
def test_a_square_weight_among_both_ways_is_refused(tmp_path: Path, said: bool) -> None:
    folder = adapter(tmp_path / "a", {"q": (OUT, IN), "k": (OUT, IN), "s": (IN, IN)}, fan_in_fan_out=said)
    base = {"q.weight": ones(IN, OUT), "k.weight": ones(OUT, IN), "s.weight": ones(IN, IN)}
    with pytest.raises(PlanError, match=r"s\.weight: nothing tells whether it is stored"):
        merged(base, folder)


def test_a_bias_tells_that_a_model_stores_in_out(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", {"c_proj": (IN, IN)})
    base = {"c_proj.weight": ones(IN, IN), "c_attn.weight": ones(IN, OUT), "c_attn.bias": ones(OUT)}
    with pytest.raises(PlanError, match=r"c_proj\.weight: nothing tells.*c_attn\.weight is \[in, out\]"):
        merged(base, folder, lora_config(scaling="1"))
    stated = LoraConfig(lora_config(scaling="1").scaling, transposed=True, stated=True)
    assert merged(base, folder, stated)["c_proj.weight"][0, 0] == 1 + RANK


def test_what_the_user_states_holds_for_all(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", {"q": (OUT, IN)})
    stated = LoraConfig(lora_config(scaling="1").scaling, transposed=True, stated=True)
    with pytest.raises(PlanError, match="do not make"):
        merged({"q.weight": ones(OUT, IN)}, folder, stated)


NAMES = {
    "model.layers.0.attn.q": r"^language_model\.=>",
    "text.model.layers.0.attn.q": r"^language_model\.=>text.",
    "language_model.text.model.layers.0.attn.q": r"^language_model\.=>language_model.text.",
}


@pytest.mark.parametrize("base", NAMES)
def test_the_nearest_name_is_said_and_leads_on(tmp_path: Path, base: str) -> None:
    asked = "language_model.model.layers.0.attn.q"
    folder = adapter(tmp_path / "a", {asked: (OUT, IN)}, alpha_pattern={r"^language_model\..*\.q": 4 * RANK})
    weights = {f"{base}.weight": ones(OUT, IN), "model.layers.1.attn.q.weight": ones(OUT, IN)}
    with pytest.raises(PlanError, match=rf"the base has {base}\.weight") as refused:
        merged(weights, folder)
    assert f"--adapter-rename '{NAMES[base]}'" in refused.value.hint
    rename = tuple(NAMES[base].split("=>"))
    config = lora_config(adapter=str(folder))
    found = merged(weights, folder, LoraConfig(config.scaling, rename=(rename,)))
    assert found[f"{base}.weight"][0, 0] == 1 + 4 * RANK, "patterns are of the adapter's own names"


def test_another_layer_is_not_near(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", {"model.layers.5.attn.q": (OUT, IN)})
    with pytest.raises(PlanError, match="its weight is missing") as refused:
        merged({"model.layers.0.attn.q.weight": ones(OUT, IN)}, folder)
    assert "rename" not in refused.value.hint
