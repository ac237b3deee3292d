"""--dequantize: what NumPy makes of codes and scales, by whatever blocks, wherever scales lie, whatever the cut."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from hub_model import SIZES, qwen3
from making import array, dtype_named, read_file, read_rank, same, shard_of, write_file, write_strategy
from reshard.errors import CheckpointError, PlanError
from reshard.layout.tensor import Sharding
from reshard.names.wishes import Naming
from reshard.ops.convert import convert
from reshard.ops.options import Options
from reshard.planning.names import NameRules

Tensors = dict[str, np.ndarray]
Shape = tuple[int, ...]
CUTS = {
    "whole": None,
    "rows": Sharding((3,), ((0,), ())),
    "columns": Sharding((3,), ((), (0,))),
    "both": Sharding((3, 2), ((1,), (0,))),
}
E4M3, E5M2 = "float8_e4m3fn", "float8_e5m2"
KINDS: dict[str, tuple[str, str, Shape, Shape, dict[str, Any]]] = {
    "fp8 by blocks": (E4M3, "weight_scale_inv", (306, 258), (3, 3), {}),
    "fp8 by blocks that are told": (E4M3, "weight_scale_inv", (54, 30), (6, 10), {"weight_block_size": [9, 3]}),
    "fp8 by blocks that divide nothing": (E5M2, "weight_scale_inv", (54, 30), (8, 5), {"weight_block_size": [7, 7]}),
    "fp8 by row": (E4M3, "weight_scale", (54, 30), (54, 1), {}),
    "fp8 by row, a vector": (E5M2, "weight_scale", (54, 30), (54,), {}),
    "fp8 by column": (E5M2, "weight_scale", (54, 30), (1, 30), {}),
    "fp8 as one": (E4M3, "weight_scale", (54, 30), (), {}),
    "fp8 as one of a list": (E4M3, "weight_scale", (54, 30), (1,), {}),
    "fp8 by groups of a row": (E4M3, "weight_scale", (54, 36), (54, 6), {"group_size": 6}),
    "fp8 by blocks of one group of layers": (
        E4M3, "weight_scale", (54, 30), (6, 10),
        {"config_groups": {"g": {"weights": {"block_structure": [9, 3]}, "input_activations": {"group_size": 5}}}},
    ),
    "int8 by row": ("int8", "weight_scale", (54, 30), (54, 1), {}),
    "int8 by row, a vector": ("int8", "scales", (54, 30), (54,), {}),
    "int8 as one": ("int8", "weight_scale", (54, 30), (1, 1), {}),
}  # fmt: skip
"""Codes, what is beside them, shapes of both, what the configuration tells of blocks."""


def spread(scales: np.ndarray, block: Shape, shape: Shape) -> np.ndarray:
    wide = scales.astype(np.float32)
    for dim, n in enumerate(block):
        wide = np.repeat(wide, n, dim)
    return wide[tuple(slice(n) for n in shape)]


def product(codes: np.ndarray, scales: np.ndarray, block: Shape, dtype: str = "bfloat16") -> np.ndarray:
    """Of NaNs those of the dtype alone: of two of them processors keep either."""
    with np.errstate(all="ignore"):
        made = (codes.astype(np.float32) * spread(scales, block, codes.shape)).astype(dtype_named(dtype))
        return np.where(np.isnan(made), dtype_named(dtype).type(np.nan), made)


def block_of(shape: Shape, counts: Shape, told: dict[str, Any]) -> Shape:
    counts = counts if len(counts) == 2 else (prod(counts), 1)
    groups = told.get("config_groups", {"g": {"weights": {"block_structure": None}}})
    own = told.get("weight_block_size") or groups["g"]["weights"]["block_structure"]
    own = own or ([1, told["group_size"]] if told else [128, 128])
    return tuple(n if c == 1 else 1 if c == n else b for n, c, b in zip(shape, counts, own, strict=True))


def in_parts(folder: Path, parts: list[Tensors], config: dict[str, Any]) -> Path:
    """A folder of several files and an index."""
    folder.mkdir()
    names = {}
    for number, tensors in enumerate(parts, 1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        write_file(folder / name, tensors)
        names |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_of_any_kind(kind: str, scale_dtype: str, cut: str, tmp_path: Path) -> None:
    """Random bits: NaN, infinities and numbers that fit no bfloat16 among them. Scales lie in another file."""
    dtype, beside, shape, counts, told = KINDS[kind]
    codes, scales = array(shape, dtype, 1), array(counts, scale_dtype, 2)
    config = {"torch_dtype": "bfloat16", **({"quantization_config": told} if told else {})}
    parts = [{"up.weight": codes, "norm.weight": array((4,))}, {f"up.{beside}": scales}]
    source = in_parts(tmp_path / "in", parts, config)
    block = block_of(shape, counts, told)
    full = scales.reshape(tuple(-(-n // b) for n, b in zip(shape, block, strict=True)))
    wanted = product(codes, full, block)
    sharding = CUTS[cut]
    if sharding is None:
        convert(source, tmp_path / "out.safetensors", Options(naming=Naming(dequantize=True)))
        found = read_file(tmp_path / "out.safetensors")
        assert found.keys() == {"up.weight", "norm.weight"}
        assert same(found["up.weight"], wanted)
        return
    strategy = {"up.weight": sharding, "norm.weight": Sharding(sharding.device_matrix, ((),))}
    write_strategy(tmp_path / "strategy", [strategy])
    options = Options(dst_strategy=str(tmp_path / "strategy"), format="safetensors", naming=Naming(dequantize=True))
    convert(source, tmp_path / "out", options)
    for rank in range(sharding.devices):
        assert same(read_rank(tmp_path / "out", rank)["up.weight"], shard_of(wanted, sharding, rank))
    convert(
        source, tmp_path / "alone", replace(options, ranks=frozenset({1}))
    )  # of which no block begins at the first scale
    assert same(read_rank(tmp_path / "alone", 1)["up.weight"], shard_of(wanted, sharding, 1))


@pytest.mark.parametrize(
    "told",
    [
        {"quant_method": "mxfp8"},
        {"quant_method": "fp8", "weight_block_size": [1, 6], "scale_fmt": "ue8m0"},
        {"quant_method": "compressed-tensors", "format": "mxfp8-quantized", "weights": {"group_size": 6}},
    ],
)  # fmt: skip
def test_exponents_in_bytes(told: dict[str, Any], tmp_path: Path) -> None:
    """2 to the power of a byte less 127, as transformers and compressed-tensors have it."""
    size = 8 if told["quant_method"] == "mxfp8" else 6
    codes, powers = array((54, 48), E4M3, 1), np.random.default_rng(2).integers(117, 138, (54, 48 // size), np.uint8)
    source = in_parts(tmp_path / "in", [{"up.weight": codes, "up.weight_scale": powers}], {"quantization_config": told})
    convert(source, tmp_path / "out.safetensors", Options(naming=Naming(dequantize=True)))
    scales = np.exp2(powers.astype(np.float32) - 127)
    assert same(read_file(tmp_path / "out.safetensors")["up.weight"], product(codes, scales, (1, size)))


def test_scales_that_mistral_calls_otherwise(tmp_path: Path) -> None:
    codes, scale = array((6, 4), E4M3, 1), array((), "bfloat16", 2)
    made = {"wq.weight": codes, "wq.qscale_weight": scale, "wq.qscale_act": array((), "bfloat16")}
    source = in_parts(tmp_path / "in", [made], {})
    with pytest.raises(PlanError, match="mean nothing without their scales"):
        convert(source, tmp_path / "cast.safetensors", Options(dtype="bfloat16"))
    convert(source, tmp_path / "out.safetensors", Options(naming=Naming(dequantize=True)))
    found = read_file(tmp_path / "out.safetensors")
    assert [*found] == ["wq.weight"]
    assert same(found["wq.weight"], product(codes, scale.reshape(1, 1), (6, 4)))


@pytest.mark.parametrize("told", [True, False])
def test_scales_of_keys_and_values_stay_behind_where_they_are_told(told: bool, tmp_path: Path) -> None:
    """As compressed-tensors has them, beside nothing that is made of codes."""
    scheme = {"kv_cache_scheme": {"num_bits": 8, "type": "float"} if told else None, "quant_method": "fp8"}
    codes, scale = array((6, 4), E4M3, 1), array((), "float32", 2)
    made = {"attn.q.weight": codes, "attn.q.weight_scale": scale, "attn.k_scale": scale, "attn.v_scale": scale}
    source = in_parts(tmp_path / "in", [made], {"quantization_config": scheme})
    convert(source, tmp_path / "out.safetensors", Options(naming=Naming(dequantize=True)))
    found = read_file(tmp_path / "out.safetensors")
    assert {*found} == {"attn.q.weight", *(() if told else ("attn.k_scale", "attn.v_scale"))}


@pytest.mark.parametrize("kind", ["blocks", "packed"])
@pytest.mark.parametrize("how", ["names", "without scales", "cast", "megatron"])
def test_what_makes_numbers_of_codes_is_told(kind: str, how: str, tmp_path: Path) -> None:
    """Not that scales are to be left out."""
    coded, _, _ = quantised(qwen3("bfloat16"), "blocks", E4M3)
    if kind == "packed":
        coded = {
            n.replace("weight_scale", "scales"): v.view(np.uint8) if v.dtype == E4M3 else v for n, v in coded.items()
        }
        coded = {n.replace("weight", "qweight") if v.dtype == np.uint8 else n: v for n, v in coded.items()}
    source = in_parts(tmp_path / "in", [coded], SIZES)
    rules = NameRules(exclude=("_scale|scales",)) if how == "without scales" else NameRules()
    naming = Naming(dst="mcore") if how in ("names", "without scales") else Naming()
    options = Options(naming=naming, names=rules, dtype="bfloat16" if how == "cast" else "")
    options = replace(options, to="torch_dist") if how == "megatron" else options
    with pytest.raises(PlanError, match="mean nothing without their scales") as refused:
        convert(source, tmp_path / "out", options)
    wanted = "--dequantize multiplies them" if kind == "blocks" else "the tool that quantised them"
    assert wanted in (refused.value.hint or "")


def quantised(plain: Tensors, kind: str, dtype: str) -> tuple[Tensors, Tensors, dict[str, Any]]:
    """The matrices of layers as codes of random bits: with their scales; as numbers; and what is told of blocks."""
    coded, numbers = dict(plain), dict(plain)
    for seed, (name, value) in enumerate(plain.items()):
        if not name.startswith("model.layers.") or value.ndim != 2:
            continue
        block = {"blocks": (3, 5), "rows": (1, value.shape[1]), "one": value.shape}[kind]
        counts = tuple(-(-n // b) for n, b in zip(value.shape, block, strict=True))
        codes, scales = array(value.shape, dtype, seed), array(counts, "float32", seed + 100)
        numbers[name] = product(codes, scales, block)
        coded |= {name: codes, f"{name}_scale": scales.reshape(()) if kind == "one" else scales}
    return coded, numbers, {"weight_block_size": [3, 5]} if kind == "blocks" else {}


def qwen3_moe() -> tuple[Tensors, dict[str, Any]]:
    made = {name: value for name, value in qwen3("bfloat16").items() if ".mlp." not in name}
    for layer in range(2):
        at = f"model.layers.{layer}.mlp."
        shapes = {"gate_proj": (6, 8), "up_proj": (6, 8), "down_proj": (8, 6)}
        made |= {
            f"{at}experts.{e}.{name}.weight": array(shape, "bfloat16", layer + e)
            for e in range(3)
            for name, shape in shapes.items()
        }
    config = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 3}
    return made, SIZES | config | {"moe_intermediate_size": 6, "torch_dtype": "bfloat16"}


def dense(kind: str) -> tuple[Tensors, dict[str, Any]]:
    made = {n: t for n, t in qwen3("bfloat16").items() if kind == "qwen3" or ("q_norm" not in n and "k_norm" not in n)}
    return made, SIZES | {"torch_dtype": "bfloat16", "model_type": kind, "architectures": None}


MODELS = {"qwen3": lambda: dense("qwen3"), "llama": lambda: dense("llama"), "experts": qwen3_moe}


@pytest.mark.parametrize("kind", ["blocks", "rows", "one"])
@pytest.mark.parametrize("dtype", [E4M3, E5M2, "int8"])
@pytest.mark.parametrize(("model", "names"), [("qwen3", "mcore"), ("llama", "mindformers"), ("experts", "mcore")])
@pytest.mark.parametrize("ranks", [1, 2])
def test_under_other_names_as_if_dequantised_before(
    model: str, names: str, dtype: str, kind: str, ranks: int, tmp_path: Path
) -> None:
    """Fused, stacked and turned, cut in the middle of blocks: parts bring their scales along."""
    plain, config = MODELS[model]()
    plain |= {f"model.layers.{n}.mlp.gate.weight": array((3, 8), "bfloat16") for n in range(2) if model == "experts"}
    coded, numbers, told = quantised({n: t for n, t in plain.items() if ".gate.weight" not in n}, kind, dtype)
    routers = {name: value for name, value in plain.items() if ".gate.weight" in name}
    half = len(coded) // 2
    parts = [dict([*coded.items()][half:]), dict([*coded.items()][:half])]
    codes = in_parts(tmp_path / "codes", [parts[0] | routers, parts[1]], config | {"quantization_config": told})
    before = in_parts(tmp_path / "numbers", [numbers | routers], config)
    naming = Naming(dst=names)
    convert(before, tmp_path / "one.safetensors", Options(naming=naming))
    wanted = read_file(tmp_path / "one.safetensors")
    for source, out, dequantize in ((codes, "a", True), (before, "b", False)):
        strategy = ""
        if ranks > 1:
            last = {name: Sharding((ranks,), (*((),) * (t.ndim - 1), (0,))) for name, t in wanted.items()}
            strategy = str(write_strategy(tmp_path / f"strategy {out}", [last]))
        options = Options(dst_strategy=strategy, format="safetensors", naming=Naming(dst=names, dequantize=dequantize))
        convert(source, tmp_path / (out if ranks > 1 else f"{out}.safetensors"), options)
    for rank in range(ranks):
        a, b = (
            read_rank(tmp_path / out, rank) if ranks > 1 else read_file(tmp_path / f"{out}.safetensors")
            for out in ("a", "b")
        )
        assert a.keys() == b.keys() == wanted.keys()
        assert not [name for name in a if not same(a[name], b[name])]


REFUSED: dict[str, tuple[dict[str, tuple[str, Shape]], dict[str, Any]]] = {
    "what a sum is multiplied by": ({"up.weight": ("int8", (4, 4)), "up.deq_scale": ("float32", (4,))}, {}),
    "codes that no name tells": ({"up.B": ("int32", (4, 4)), "up.s": ("float16", (4,))}, {"quant_method": "gptq"}),
    "an order of the kernel's": (
        {"up.weight": ("int8", (4, 4)), "up.weight_scales": ("float16", (4,))},
        {"quant_method": "eetq"},
    ),
    "an order of the kernel's, by its names": (
        {"up.weight": ("int8", (4, 4)), "up.weight_scales": ("float16", (4,))},
        {},
    ),
    "a method that is not known": (
        {"up.weight": ("int8", (4, 4)), "up.weight_scale": ("float16", (4, 1))},
        {"quant_method": "higgs"},
    ),
    "turned weights": (
        {"up.weight": (E4M3, (4, 4)), "up.weight_scale": ("float32", (4, 1))},
        {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}},
    ),
    "a scale of what comes in": ({"up.weight": (E4M3, (4, 4)), "up.pre_quant_scale": ("float32", (4,))}, {}),
    "codes called otherwise": ({"up.weight._data": ("int8", (4, 4)), "up.weight._scale": ("float16", (4, 1))}, {}),
    "two codes in a byte, beside fp8": (
        {"up.weight": ("int8", (4, 32)), "up.scale": ("float32", (4, 2))},
        {"quant_method": "fp8", "expert_dtype": "fp4"},
    ),
    "bytes that nothing calls exponents": (
        {"up.weight": (E4M3, (4, 32)), "up.weight_scale": ("uint8", (4, 1))},
        {"quant_method": "fp8"},
    ),
    "wide codes": ({"up.weight": ("int16", (4, 4)), "up.scales": ("float16", (4, 1))}, {}),
}
"""Tensors, and the quantization_config."""


@pytest.mark.parametrize("kind", REFUSED)
def test_what_codes_mean_is_never_guessed(kind: str, tmp_path: Path) -> None:
    tensors, told = REFUSED[kind]
    made = {name: array(shape, dtype) for name, (dtype, shape) in tensors.items()}
    source = in_parts(tmp_path / "in", [made], {"quantization_config": told} if told else {})
    with pytest.raises(CheckpointError, match="cannot be dequantised"):
        convert(source, tmp_path / "out.safetensors", Options(naming=Naming(dequantize=True)))
    assert not (tmp_path / "out.safetensors").exists()


def test_two_codes_in_a_byte_by_their_scales(tmp_path: Path) -> None:
    """Of a type that the library does not write yet."""
    header = {
        "up.weight": {"dtype": "I8", "shape": [4, 32], "data_offsets": [0, 128]},
        "up.scale": {"dtype": "F8_E8M0", "shape": [4, 2], "data_offsets": [128, 136]},
    }
    head = json.dumps(header).encode()
    (tmp_path / "in.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(136))
    with pytest.raises(CheckpointError, match="two codes of 4 bits in a byte"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", Options(naming=Naming(dequantize=True)))


CODES = {"up.weight": E4M3, "up.weight_scale": "float32", "down.weight": "int8", "down.absmax": "float32"}


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        (NameRules(exclude=("down",)), ["up.weight"]),
        (NameRules(include=("up.weight$",)), ["up.weight"]),
        (NameRules(exclude=("down.weight$",), rename=(("up.weight", "gate.weight"),)), ["gate.weight"]),
    ],
)
def test_names_are_those_of_numbers_and_scales_go_with_their_codes(
    rules: NameRules, names: list[str], tmp_path: Path
) -> None:
    """What cannot be dequantised and is left out harms nothing."""
    made = {name: array((4, 1 if "scale" in name else 4), dtype) for name, dtype in CODES.items()}
    source = in_parts(tmp_path / "in", [made], {})
    convert(source, tmp_path / "out.safetensors", Options(names=rules, naming=Naming(dequantize=True)))
    found = read_file(tmp_path / "out.safetensors")
    assert [*found] == names
    assert same(found[names[0]], product(made["up.weight"], made["up.weight_scale"], (1, 4)))
