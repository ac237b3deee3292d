"""Every kind of adapter against sums in fp64, whatever the layouts, the blocks and the workers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import pytest

import reshard
from making import read_file, read_rank, shard_of, write_file, write_ranks, write_strategy
from reshard import Options
from reshard.errors import InputError, PlanError
from reshard.layout.tensor import Sharding
from reshard.names.wishes import Naming
from reshard.ops.adapters import AdapterAt
from reshard.ops.convert import execute
from reshard.ops.lora import lora_config, open_merge, plan_merge
from reshard.ops.observer import Observer
from reshard.planning.plan import Plan
from reshard.planning.shares import Share

RNG = np.random.default_rng(17)
FRONT = "base_model.model."
OUT, IN, VOCAB, EXPERTS, RANK = 24, 32, 40, 4, 3
BF16 = np.dtype(ml_dtypes.bfloat16)
TOKENS = (30, 2, 39, 7)
Arrays = dict[str, np.ndarray]


def normal(*shape: int, dtype: np.dtype = BF16) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def factor(*shape: int) -> np.ndarray:
    return normal(*shape, dtype=np.dtype(np.float32))


BASE: Arrays = {
    "dora.weight": normal(OUT, IN),
    "in_out.weight": normal(IN, OUT),
    "conv.weight": normal(OUT, 8, 4),
    "experts.up": normal(EXPERTS, 2 * OUT, IN),
    "experts.down": normal(EXPERTS, IN, OUT),
    "q.weight": normal(OUT, IN),
    "q.bias": normal(OUT),
    "embed_tokens.weight": normal(VOCAB, IN),
    "lm_head.weight": normal(VOCAB, IN),
    "norm.weight": normal(IN),
    "other.weight": normal(OUT, IN),
}
HALF = BF16
ADAPTER: Arrays = {
    "dora.lora_A.weight": factor(RANK, IN),
    "dora.lora_B.weight": factor(OUT, RANK),
    "dora.lora_magnitude_vector": np.abs(factor(OUT)) + 1,
    "in_out.lora_A.weight": factor(RANK, IN),
    "in_out.lora_B.weight": factor(OUT, RANK),
    "in_out.lora_magnitude_vector.default.weight": np.abs(factor(OUT)) + 1,
    "conv.lora_A.weight": factor(RANK, 8, 4),
    "conv.lora_B.weight": factor(OUT, RANK, 1),
    "conv.lora_magnitude_vector": np.abs(factor(1, OUT, 1)) + 1,
    "experts.base_layer.lora_A.weight": factor(EXPERTS * RANK, IN),
    "experts.base_layer.lora_B.weight": factor(2 * OUT, EXPERTS * RANK),
    "experts.lora_A.weight": factor(EXPERTS * RANK, OUT),
    "experts.lora_B.weight": factor(IN, EXPERTS * RANK),
    "q.lora_A.weight": factor(RANK, IN),
    "q.lora_B.weight": factor(OUT, RANK),
    "q.lora_B.bias": factor(OUT),
    "embed_tokens.token_adapter.trainable_tokens_delta": factor(len(TOKENS), IN),
    "lm_head.base_layer.weight": BASE["lm_head.weight"],
    "lm_head.lora_A.weight": factor(RANK, IN),
    "lm_head.lora_B.weight": factor(VOCAB, RANK),
    "norm.weight": factor(IN),
}
CONFIG = {
    "r": RANK,
    "lora_alpha": 2 * RANK,
    "trainable_token_indices": list(TOKENS),
    "target_parameters": ["experts.up", "experts.down"],
}


def product(layer: str, adapter: Arrays = ADAPTER) -> np.ndarray:
    b, a = (adapter[f"{layer}.lora_{side}.weight"].astype(np.float64) for side in "BA")
    return 2 * np.einsum("or,r...->o...", b.reshape(b.shape[:2]), a)


def of_experts(layer: str) -> np.ndarray:
    b, a = (ADAPTER[f"{layer}.lora_{side}.weight"].astype(np.float64) for side in "BA")
    return 2 * np.einsum("ore,eri->eoi", b.reshape(len(b), RANK, EXPERTS), a.reshape(EXPERTS, RANK, -1))


def scaled(total: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    length = np.sqrt((total.reshape(len(total), -1) ** 2).sum(axis=1))
    return (total.T * (magnitude.reshape(-1) / length)).T


def expected() -> Arrays:
    wide = {name: value.astype(np.float64) for name, value in BASE.items()}
    made = dict(wide)
    for layer in ("dora", "conv"):
        total = wide[f"{layer}.weight"] + product(layer)
        made[f"{layer}.weight"] = scaled(total, ADAPTER[f"{layer}.lora_magnitude_vector"])
    total = wide["in_out.weight"].T + product("in_out")
    made["in_out.weight"] = scaled(total, ADAPTER["in_out.lora_magnitude_vector.default.weight"]).T
    made["experts.up"] = wide["experts.up"] + of_experts("experts.base_layer")
    made["experts.down"] = wide["experts.down"] + of_experts("experts")
    for layer in ("q", "lm_head"):
        made[f"{layer}.weight"] = wide[f"{layer}.weight"] + product(layer)
    made["q.bias"] = wide["q.bias"] + 2 * ADAPTER["q.lora_B.bias"]
    rows = made["embed_tokens.weight"] = wide["embed_tokens.weight"].copy()
    rows[list(TOKENS)] = ADAPTER["embed_tokens.token_adapter.trainable_tokens_delta"]
    made["norm.weight"] = ADAPTER["norm.weight"]
    return {name: value.astype(BASE[name].dtype) for name, value in made.items()}


WHOLE = {name: Sharding((2, 2), ((),) * value.ndim) for name, value in BASE.items()}
ROWS = {name: Sharding((2, 2), ((0,), *((),) * (value.ndim - 1))) for name, value in BASE.items()}
INNER = {name: Sharding((2, 2), (*((),) * (value.ndim - 1), (0,))) for name, value in BASE.items()}
BOTH = {
    name: Sharding((2, 2), ((0,), *((),) * (v.ndim - 2), (1,))) if v.ndim > 1 else ROWS[name]
    for name, v in BASE.items()
}
LAYOUTS = {"whole": WHOLE, "rows": ROWS, "inner": INNER, "both": BOTH}


def save_adapter(folder: Path, adapter: Arrays = ADAPTER, *, suffix: str = "safetensors", **config: object) -> Path:
    named = {FRONT + name: value for name, value in adapter.items()}
    write_file(folder / "adapter_model.safetensors", named)
    if suffix == "bin":
        reshard.convert(folder / "adapter_model.safetensors", folder / "adapter_model.bin", Options(format="torch"))
        (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


@pytest.fixture(scope="module")
def wanted() -> Arrays:
    return expected()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, whole and cut in every way, and the adapter."""
    folder = tmp_path_factory.mktemp("places")
    write_file(folder / "base.safetensors", BASE)
    for name, cut in LAYOUTS.items():
        write_strategy(folder / f"s-{name}", [cut])
        write_ranks(folder / name, BASE, [cut], ".safetensors")
    save_adapter(folder / "adapter")
    return folder


def merge(places: Path, out: Path, source: str = "", **options: object) -> None:
    src = places / source if source else places / "base.safetensors"
    made = Options(src_strategy=str(places / f"s-{source}") if source else "", format="safetensors", **options)
    folder = places / "adapter"
    reshard.merge_lora(src, out, lora_config(adapter=str(folder)), made, folder)


def equal(found: Arrays, wanted: Arrays) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name].view(np.uint16), value.view(np.uint16), err_msg=name)


def test_values(places: Path, wanted: Arrays, tmp_path: Path) -> None:
    merge(places, tmp_path / "out.safetensors")
    found = read_file(tmp_path / "out.safetensors")
    for name, value in wanted.items():
        ulp = np.abs(value.astype(np.float64)) * 2.0**-7
        off = np.abs(found[name].astype(np.float64) - value.astype(np.float64))
        assert (off <= ulp).all(), name


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("source", ["", *LAYOUTS])
def test_the_bits_of_any_layout(places: Path, tmp_path: Path, source: str, target: str, workers: int) -> None:
    merge(places, tmp_path / "one.safetensors")
    made = read_file(tmp_path / "one.safetensors")
    small = (96 << 20) + workers * 3 * (64 << 10)
    cut = LAYOUTS[target]
    strategy = str(places / f"s-{target}")
    merge(places, tmp_path / "out", source, dst_strategy=strategy, workers=workers, max_memory_nbytes=small)
    for rank in range(4):
        equal(read_rank(tmp_path / "out", rank), {name: shard_of(made[name], s, rank) for name, s in cut.items()})


@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("source", ["", "both"])
def test_the_bits_of_one_rank(places: Path, tmp_path: Path, source: str, target: str) -> None:
    """Lengths of rows are those of whole rows, of which a rank may have a part."""
    merge(places, tmp_path / "one.safetensors")
    made = read_file(tmp_path / "one.safetensors")
    merge(places, tmp_path / "out", source, dst_strategy=str(places / f"s-{target}"), ranks=frozenset({3}))
    cut = LAYOUTS[target]
    equal(read_rank(tmp_path / "out", 3), {name: shard_of(made[name], s, 3) for name, s in cut.items()})


def test_lengths_of_rows_that_no_file_holds_whole(places: Path, tmp_path: Path) -> None:
    for name in ("s-both", "adapter"):
        shutil.copytree(places / name, tmp_path / name)
    shutil.copytree(places / "both", tmp_path / "both", ignore=shutil.ignore_patterns("rank_1"))
    with pytest.raises(PlanError, match=r"dora\.weight: 25% missing"):
        merge(tmp_path, tmp_path / "out", "both", dst_strategy=str(tmp_path / "s-both"), ranks=frozenset({0}))


def test_blocks_of_a_few_elements(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge(places, tmp_path / "one.safetensors")
    monkeypatch.setattr(Options, "block_nbytes", lambda *_, **__: 96)
    monkeypatch.setattr("reshard.moving.lora._READ_NBYTES", 700)
    monkeypatch.setattr("reshard.moving.lora._CHUNK", 50)
    merge(places, tmp_path / "two.safetensors")
    equal(read_file(tmp_path / "two.safetensors"), read_file(tmp_path / "one.safetensors"))


def test_shares_and_plans_as_json(places: Path, tmp_path: Path) -> None:
    merge(places, tmp_path / "whole", dst_strategy=str(places / "s-both"))
    for index in range(2):
        merge(places, tmp_path / "out", dst_strategy=str(places / "s-both"), share=Share(index, 2))
    for rank in range(4):
        equal(read_rank(tmp_path / "out", rank), read_rank(tmp_path / "whole", rank))
    folder = str(places / "adapter")
    at = [AdapterAt(folder, lora_config(adapter=folder))]
    plan = plan_merge(open_merge(places / "base.safetensors", Options(), at), tmp_path / "x.safetensors")
    assert msgspec.json.decode(plan.to_json(), type=Plan) == plan


def test_torch_files_and_what_a_trainer_leaves_beside(places: Path, tmp_path: Path) -> None:
    merge(places, tmp_path / "one.safetensors")
    folder = save_adapter(tmp_path / "adapter", suffix="bin")
    (folder / "optimizer.pt").write_bytes(b"no torch file")
    (folder / "training_args.bin").write_bytes(b"nor this")
    config = lora_config(adapter=str(folder))
    reshard.merge_lora(places / "base.safetensors", tmp_path / "two.safetensors", config, adapter=folder)
    equal(read_file(tmp_path / "two.safetensors"), read_file(tmp_path / "one.safetensors"))


def test_a_model_saved_with_its_adapter(places: Path, tmp_path: Path) -> None:
    layers = {name.split(".lora_")[0] for name in ADAPTER if ".lora_" in name and not name.startswith("experts")}
    layers |= {"embed_tokens"}
    model = {}
    for name, value in BASE.items():
        layer, _, last = name.rpartition(".")
        wrapped = f"{layer}.base_layer.{last}" if layer in layers else name
        if layer in ("experts", "embed_tokens"):
            wrapped = f"{layer}.{'base_layer' if layer == 'experts' else 'token_adapter'}.base_layer.{last}"
        model[FRONT + (f"{layer}.original_module.{last}" if layer == "norm" else wrapped)] = value
    for name, value in ADAPTER.items():
        if name == "lm_head.base_layer.weight":
            continue
        named = name.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.weight", "lora_B.default.weight")
        model[FRONT + named.replace("norm.weight", "norm.modules_to_save.default.weight")] = value
    write_file(tmp_path / "model" / "m.safetensors", model)
    (tmp_path / "model" / "adapter_config.json").write_text(json.dumps(CONFIG))
    config = lora_config(adapter=str(tmp_path / "model"))
    reshard.merge_lora(tmp_path / "model" / "m.safetensors", tmp_path / "out.safetensors", config)
    merge(places, tmp_path / "one.safetensors")
    equal(read_file(tmp_path / "out.safetensors"), read_file(tmp_path / "one.safetensors"))


@pytest.mark.parametrize("other", ["q.weight", "q.original_module.weight"])
def test_two_tensors_of_one_name(tmp_path: Path, other: str) -> None:
    model = {**Q, "q.base_layer.weight": factor(OUT, IN), other: factor(OUT, IN)}
    write_file(tmp_path / "m.safetensors", model)
    with pytest.raises(InputError, match=r"names that are one .*\nq\.base_layer\.weight\nq\."):
        reshard.merge_lora(tmp_path / "m.safetensors", tmp_path / "o.safetensors", lora_config(scaling="1"))


def test_the_configuration_goes_along_as_it_is_now(tmp_path: Path) -> None:
    base = {"model.embed_tokens.weight": factor(VOCAB, IN), "model.norm.weight": factor(IN)}
    write_file(tmp_path / "base" / "model.safetensors", base)
    config = {"model_type": "llama", "vocab_size": VOCAB, "tie_word_embeddings": True, "hidden_size": IN}
    more = {"num_hidden_layers": 0, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 8}
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, **more}))
    grown = {"model.embed_tokens.weight": factor(VOCAB + 3, IN), "lm_head.weight": factor(VOCAB + 3, IN)}
    folder = save_adapter(tmp_path / "adapter", grown)
    options = Options(to="parts", naming=Naming(dst="hf", files=True))
    reshard.merge_lora(tmp_path / "base", tmp_path / "out", lora_config(adapter=str(folder)), options, folder)
    said = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert (said["vocab_size"], said["tie_word_embeddings"]) == (VOCAB + 3, False)
    assert read_file(tmp_path / "out" / "model.safetensors").keys() == {*base, *grown}


CODES = np.dtype(ml_dtypes.float8_e4m3fn)


@pytest.mark.parametrize("dora", [False, True])
def test_codes_that_are_dequantised_first(tmp_path: Path, dora: bool) -> None:
    """Scales of blocks of 128: summed before anything is rounded."""
    codes, scales = factor(256, 384).astype(CODES), np.abs(factor(2, 3)) + 1
    adapter = {"q.lora_A.weight": factor(RANK, 384), "q.lora_B.weight": factor(256, RANK)}
    wide = codes.astype(np.float64) * np.kron(scales.astype(np.float64), np.ones((128, 128))) + product("q", adapter)
    if dora:
        adapter["q.lora_magnitude_vector"] = np.abs(factor(256)) + 1
        wide = scaled(wide, adapter["q.lora_magnitude_vector"])
    base = {"q.weight": codes, "q.weight_scale_inv": scales}
    write_file(tmp_path / "base.safetensors", base)
    folder = save_adapter(tmp_path / "adapter", adapter, target_parameters=None)
    how = lora_config(adapter=str(folder))
    with pytest.raises(PlanError, match="mean nothing without their scales"):
        reshard.merge_lora(tmp_path / "base.safetensors", tmp_path / "out.safetensors", how, adapter=folder)
    cut = {"q.weight": Sharding((1, 2), ((), (0,)))}
    strategy = write_strategy(tmp_path / "s", [cut])
    for rank in range(2):
        options = Options(naming=Naming(dequantize=True), dst_strategy=str(strategy), ranks=frozenset({rank}))
        out = tmp_path / f"out{rank}"
        reshard.merge_lora(tmp_path / "base.safetensors", out, how, options, folder)
        found = read_rank(out, rank)
        assert found.keys() == {"q.weight"}
        wanted = shard_of(wide, cut["q.weight"], rank)
        np.testing.assert_allclose(found["q.weight"].astype(np.float64), wanted, rtol=2.0**-8)


def test_what_verl_leaves_beside(tmp_path: Path) -> None:
    (tmp_path / "lora_train_meta.json").write_text('{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}')
    assert lora_config(adapter=str(tmp_path)).scaling.of("q", 4) == 2


def small(tmp_path: Path, base: Arrays, adapter: Arrays, **config: object) -> Arrays:
    write_file(tmp_path / "base" / "m.safetensors", base)
    folder = save_adapter(tmp_path / "adapter", adapter, **config)
    how = lora_config(adapter=str(folder))
    done = reshard.merge_lora(tmp_path / "base", tmp_path / "out.safetensors", how, adapter=folder)
    (tmp_path / "said").write_text("\n".join((*done.bill.warnings, *map(str, done.bill.dropped))))
    return read_file(tmp_path / "out.safetensors")


Q = {"q.lora_A.weight": factor(RANK, IN), "q.lora_B.weight": factor(OUT, RANK)}
Q_BASE = {"q.weight": factor(OUT, IN)}


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"target_modules": ["q", "v"]}, "no factors of v, which target_modules names"),
        ({"modules_to_save": ["v"]}, "lacks something of modules_to_save"),
        ({"trainable_token_indices": [1]}, "lacks something of trainable_token_indices"),
        ({"target_modules": ["q", "absent"]}, ""),
        ({"target_modules": ["q", "v"], "exclude_modules": ["v"]}, ""),
    ],
)
def test_an_adapter_that_was_cut_short_is_told(tmp_path: Path, config: dict[str, object], word: str) -> None:
    said = {"modules_to_save": None, "trainable_token_indices": None, "target_parameters": None, **config}
    small(tmp_path, {**Q_BASE, "v.weight": factor(OUT, IN)}, Q, **said)
    assert word in (told := (tmp_path / "said").read_text())
    assert bool(word) is ("whole?" in told)


def test_a_grown_vocabulary_is_told(tmp_path: Path) -> None:
    base = {**Q_BASE, "embed_tokens.weight": factor(VOCAB, IN)}
    grown = factor(VOCAB + 2, IN)
    found = small(tmp_path, base, {**Q, "embed_tokens.weight": grown})
    np.testing.assert_array_equal(found["embed_tokens.weight"], grown)
    assert f"{VOCAB} rows become {VOCAB + 2}" in (tmp_path / "said").read_text()


@pytest.mark.parametrize("same", [True, False])
def test_a_copy_of_the_base_is_told_where_it_is_another(tmp_path: Path, same: bool) -> None:
    base = {**Q_BASE, "lm_head.weight": factor(VOCAB, IN)}
    copy = base["lm_head.weight"] + (0 if same else 1)
    found = small(tmp_path, base, {**Q, "lm_head.base_layer.weight": copy})
    np.testing.assert_array_equal(found["lm_head.weight"], copy)
    said = (tmp_path / "said").read_text()
    assert ("which are others and are used, as in PEFT:\nlm_head.weight" in said) == (not same)
    assert ("in whose place" in said) == (not same)


def test_lengths_that_other_factors_change_are_refused(tmp_path: Path) -> None:
    """Of a second adapter, or of a head that is tied."""
    adapter = {**Q, "q.lora_magnitude_vector": factor(OUT)}
    paths = [str(save_adapter(tmp_path / name, adapter, target_parameters=None)) for name in "ab"]
    write_file(tmp_path / "base.safetensors", Q_BASE)
    at = [AdapterAt(path, lora_config(adapter=path)) for path in paths]
    with pytest.raises(PlanError, match=r"DoRA scales q\.weight by its length"):
        open_merge(tmp_path / "base.safetensors", Options(), at)
    ends = {
        "lm_head.lora_A.weight": factor(RANK, IN),
        "lm_head.lora_B.weight": factor(VOCAB, RANK),
        "lm_head.lora_magnitude_vector": factor(VOCAB),
        "embed_tokens.lora_embedding_A": factor(RANK, VOCAB),
        "embed_tokens.lora_embedding_B": factor(IN, RANK),
    }
    with pytest.raises(PlanError, match=r"DoRA scales embed_tokens\.weight by its length"):
        small(tmp_path, {"embed_tokens.weight": factor(VOCAB, IN)}, ends, target_parameters=None)


def test_what_was_trained_whole_is_no_copy(tmp_path: Path) -> None:
    small(tmp_path, {**Q_BASE, "norm.weight": factor(IN)}, {**Q, "norm.weight": factor(IN)})
    assert "others" not in (tmp_path / "said").read_text()


def test_a_head_that_is_tied(tmp_path: Path) -> None:
    base = {**Q_BASE, "embed_tokens.weight": factor(VOCAB, IN)}
    adapter = {**Q, "lm_head.lora_A.weight": factor(RANK, IN), "lm_head.lora_B.weight": factor(VOCAB, RANK)}
    found = small(tmp_path, base, adapter)
    wide = base["embed_tokens.weight"] + product("lm_head", adapter)
    np.testing.assert_array_equal(found["embed_tokens.weight"], wide.astype(np.float32))
    assert "changes both sides" in (tmp_path / "said").read_text()


WRONG: dict[str, tuple[Arrays, Arrays, dict[str, object], str]] = {
    "no rows said": (
        {"e.weight": factor(VOCAB, IN)},
        {"e.token_adapter.trainable_tokens_delta": factor(1, IN)},
        {"trainable_token_indices": None},
        "trainable_token_indices does not say",
    ),
    "rows beyond": (
        {"e.weight": factor(VOCAB, IN)},
        {"e.token_adapter.trainable_tokens_delta": factor(1, IN)},
        {"trainable_token_indices": [VOCAB]},
        "rows that e.weight has not",
    ),
    "rows twice": (
        {"e.weight": factor(VOCAB, IN)},
        {"e.token_adapter.trainable_tokens_delta": factor(2, IN)},
        {"trainable_token_indices": [1, 1]},
        "or some twice",
    ),
    "no magnitudes": (Q_BASE, Q, {"use_dora": True}, "use_dora says that it has a magnitude"),
    "another shape": (
        {**Q_BASE, "n.weight": factor(IN)},
        {**Q, "n.weight": factor(IN, 2)},
        {},
        r"\[32, 2\] would replace n.weight \[32\]",
    ),
    "nothing to replace": (Q_BASE, {**Q, "z.weight": factor(IN)}, {}, "the base has no z.weight"),
    "a bias that there is not": (
        Q_BASE,
        {**Q, "q.lora_B.bias": factor(OUT)},
        {"lora_bias": True},
        "q.bias, which the base does not have",
    ),
    "square experts": (
        {"experts.up": factor(2, 4, 4)},
        {"experts.lora_A.weight": factor(2, 4), "experts.lora_B.weight": factor(4, 2)},
        {"r": 1, "target_parameters": ["experts.up"]},
        r"stored \[expert, out, in\] or \[expert, in, out\]",
    ),
    "two parameters of one shape": (
        {"experts.up": factor(2, OUT, IN), "experts.gate": factor(2, OUT, IN)},
        {"experts.lora_A.weight": factor(2, IN), "experts.lora_B.weight": factor(OUT, 2)},
        {"r": 1},
        "nothing tells of which parameter it is",
    ),
    "GPTQ": (
        {"q.qweight": np.zeros((4, OUT), np.int32), "q.qzeros": np.zeros((1, 3), np.int32),
         "q.scales": factor(1, OUT), "q.g_idx": np.zeros(IN, np.int32)},
        Q, {}, "its weight is quantised by GPTQ",
    ),
    "kohya's": (Q_BASE, {"lora_unet_q.lora_down.weight": factor(RANK, IN)}, {}, "an adapter tensor kohya's"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, case: str) -> None:
    base, adapter, config, said = WRONG[case]
    with pytest.raises(PlanError, match=said):
        small(tmp_path, base, adapter, **{"target_parameters": None, "trainable_token_indices": None, **config})
    assert not (tmp_path / "out.safetensors").exists()


def test_a_sum_that_is_infinite_is_written_with_allow_nan(tmp_path: Path) -> None:
    big = {"q.weight": np.full((OUT, IN), 60000, np.float16)}
    ones = {"q.lora_A.weight": np.full((1, IN), 30000, np.float16), "q.lora_B.weight": np.ones((OUT, 1), np.float16)}
    write_file(tmp_path / "base.safetensors", big)
    folder = save_adapter(tmp_path / "adapter", ones, r=1, lora_alpha=1)
    at = [AdapterAt(str(folder), lora_config(adapter=str(folder)))]
    out = tmp_path / "out.safetensors"
    for allow in (False, True):
        joined = open_merge(tmp_path / "base.safetensors", Options(), at, allow_nan=allow)
        plan = plan_merge(joined, out)
        if not allow:
            with pytest.raises(InputError, match="--allow-nan"):
                execute(plan, out, Options(), Observer())
            continue
        done = execute(plan, out, Options(), Observer())
        assert str(done.misfits[0]) == f"q.weight: {OUT * IN} infinite"
    assert np.isinf(read_file(out)["q.weight"]).all()


def test_the_manifest_says_what_was_merged(places: Path, tmp_path: Path) -> None:
    merge(places, tmp_path / "out", dst_strategy=str(places / "s-rows"))
    made_of = json.loads((tmp_path / "out" / ".reshard" / "manifest.json").read_bytes())["made_of"]
    assert len(made_of["adapter's adapter_model.safetensors"]) == 32
    assert len(made_of["adapter_config.json"]) == 32
    assert made_of["LoRA scaling"].startswith("2 of 8; ")


def test_fp32_is_within_a_unit_of_fp64(tmp_path: Path) -> None:
    w, a, b = factor(200, 300), factor(64, 300), factor(200, 64)
    w -= (b.astype(np.float64) @ a).astype(np.float32) * (RNG.random((200, 300)) < 0.5)  # half of it cancels out
    found = small(
        tmp_path, {"q.weight": w}, {"q.lora_A.weight": a, "q.lora_B.weight": b}, r=64, lora_alpha=64
    )["q.weight"]  # fmt: skip
    wanted = w.astype(np.longdouble) + b.astype(np.longdouble) @ a.astype(np.longdouble)
    unit = np.spacing(np.abs(wanted.astype(np.float32)))
    assert (np.abs(found - wanted) <= unit).all()
