"""Quantised weights: copied with their scales, and refused by name for anything that would make them mean another."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import reshard
from reshard.errors import PlanError
from reshard.formats.safetensors import Safetensors
from reshard.index import TensorSpec
from reshard.layout.tensor import Sharding
from reshard.ops.lora import lora_config, merge_lora
from reshard.ops.options import Options
from reshard.strategy.protobuf import encode_layout, encode_made, write_protobuf

FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
KINDS = {
    "fp8 by block": {"up.weight": ((4, 4), FP8), "up.weight_scale_inv": ((1, 1), np.float32)},
    "int8 by channel": {"up.weight": ((4, 4), np.int8), "up.scales": ((4,), np.float32)},
    "gptq": {"up.qweight": ((1, 4), np.int32), "up.qzeros": ((1, 1), np.int32), "up.scales": ((1, 4), np.float32)},
    "bitsandbytes": {
        "up.weight": ((8, 1), np.uint8),
        "up.weight.absmax": ((1,), np.float32),
        "up.weight.quant_map": ((16,), np.float32),
    },
}


def ones(kind: str) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, dtype) for name, (shape, dtype) in KINDS[kind].items()}


def save(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    specs = {n: TensorSpec(t.dtype.name, t.shape) for n, t in tensors.items()}
    path.write_bytes(Safetensors().frame(specs, {}, {}).filled({n: t.tobytes() for n, t in tensors.items()}))
    return path


@pytest.fixture(params=KINDS)
def quantised(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """The file, and the name of its codes."""
    norm = {"norm.weight": np.ones(4, np.float32)}
    return save(tmp_path / "in.safetensors", ones(request.param) | norm), next(iter(KINDS[request.param]))


def refused(source: Path, match: str, options: Options) -> None:
    out = source.parent / ("out" if options.dst_strategy else "out.safetensors")
    with pytest.raises(PlanError, match=match):
        reshard.convert(source, out, options)
    assert not out.exists()


def test_codes_and_scales_are_copied_together(quantised: tuple[Path, str], tmp_path: Path) -> None:
    reshard.convert(quantised[0], tmp_path / "out.safetensors", Options(names=reshard.NameRules(rename=(("^", "m."),))))
    reshard.convert(quantised[0], tmp_path / "without.safetensors", Options(names=reshard.NameRules(exclude=("^up",))))
    assert sorted(reshard.open(tmp_path / "without.safetensors")) == ["norm.weight"]


def test_a_cast_is_refused(quantised: tuple[Path, str]) -> None:
    refused(quantised[0], "(?s)quantised.*up", Options(dtype="bfloat16"))


def test_a_cast_of_scales_whose_codes_are_wide_is_refused(tmp_path: Path) -> None:
    codes, half = np.ones((4, 4), np.int16), np.ones(4, np.float16)
    trellis = save(tmp_path / "trellis.safetensors", {"up.trellis": codes, "up.suh": half, "up.svh": half})
    refused(trellis, r"up\.suh", Options(dtype="bfloat16"))
    grid = save(tmp_path / "grid.safetensors", {"up.weight": codes, "up.scales": half})
    refused(grid, r"up\.scales", Options(dtype="bfloat16"))


def test_a_cast_of_the_codes_alone_is_refused(tmp_path: Path) -> None:
    scale = np.ones((1, 1), ml_dtypes.bfloat16)
    tensors = {"up.weight": np.ones((4, 4), FP8), "up.weight_scale_inv": scale}
    refused(save(tmp_path / "in.safetensors", tensors), r"up\.weight: raw codes", Options(dtype="bfloat16"))


def test_a_cast_that_touches_neither_is_none(tmp_path: Path) -> None:
    tensors = {"up.qweight": np.ones((1, 4), np.int32), "up.scales": np.ones((1, 4), np.float16)}
    source = save(tmp_path / "in.safetensors", tensors | {"norm.weight": np.ones(4, np.float32)})
    reshard.convert(source, tmp_path / "out.safetensors", Options(dtype="float16"))
    found = {name: view.dtype for name, view in reshard.open(tmp_path / "out.safetensors").items()}
    assert found == {"up.qweight": "int32", "up.scales": "float16", "norm.weight": "float16"}


@pytest.mark.parametrize("left_out", ["scale|absmax", "weight$"])
def test_what_would_be_left_alone_is_refused(quantised: tuple[Path, str], left_out: str) -> None:
    rules = reshard.NameRules(exclude=(rf"^up\..*({left_out})",))
    refused(quantised[0], "would go without up", Options(names=rules))


def test_names_that_part_them_are_refused(quantised: tuple[Path, str]) -> None:
    source, codes = quantised
    rules = reshard.NameRules(rename=((f"^{codes}$", "other.weight"),))
    refused(source, "no longer belong together", Options(names=rules))


def test_a_target_that_knows_the_codes_alone_is_refused(quantised: tuple[Path, str]) -> None:
    source, codes = quantised
    strategy = source.parent / "ckpt_strategy_rank_0.ckpt"
    layouts = {n: encode_layout(Sharding((1,), ((),) * d)) for n, d in ((codes, 2), ("norm.weight", 1))}
    strategy.write_bytes(write_protobuf([encode_made(0)], layouts, 1))
    refused(source, "the target's strategy has", Options(dst_strategy=str(strategy)))


def test_a_sum_is_refused(quantised: tuple[Path, str], tmp_path: Path) -> None:
    factors = {"up.lora_A": np.ones((1, 4), np.float32), "up.lora_B": np.ones((4, 1), np.float32)}
    adapter = save(tmp_path / "adapter.safetensors", factors)
    with pytest.raises(PlanError, match=r"up\.q?weight"):
        merge_lora(quantised[0], tmp_path / "out", lora_config(scaling="1"), adapter=adapter)
    assert not (tmp_path / "out").exists()


def test_a_sum_elsewhere_copies_them(tmp_path: Path) -> None:
    factors = {"q.lora_A": np.ones((1, 4), np.float32), "q.lora_B": np.ones((4, 1), np.float32)}
    tensors = ones("fp8 by block") | {"q.weight": np.ones((4, 4), np.float32)}
    source = save(tmp_path / "in.safetensors", tensors | factors)
    merge_lora(source, tmp_path / "out.safetensors", lora_config(scaling="1"))
    found = reshard.open(tmp_path / "out.safetensors")
    assert sorted(found) == ["q.weight", "up.weight", "up.weight_scale_inv"]
    assert found["q.weight"].read()[0, 0] == 2


def test_fp8_without_scales_is_cast_with_a_warning(tmp_path: Path) -> None:
    source = save(tmp_path / "in.safetensors", {"w": np.array([0.5, 448], FP8)})
    plan = reshard.plan(source, tmp_path / "out.safetensors", Options(dtype="float32"))
    assert [w for w in plan.warnings if "no scale" in w and "w" in w]
    reshard.convert(source, tmp_path / "out.safetensors", Options(dtype="float32"))
    assert list(reshard.open(tmp_path / "out.safetensors")["w"].read()) == [0.5, 448]
