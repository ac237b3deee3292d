"""LoRA merge against NumPy: full and sliced sources, any target layout, all names, tiny blocks."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from reshard.errors import InputError, PlanError
from reshard.formats.safetensors import Safetensors
from reshard.index import TensorSpec
from reshard.layout.tensor import Sharding
from reshard.ops.convert import convert
from reshard.ops.lora import lora_config, merge_lora
from reshard.ops.options import Options
from reshard.strategy.protobuf import encode_layout, encode_made, write_protobuf

RNG = np.random.default_rng(7)
OUT, IN, RANK = 24, 32, 4


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def save(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, path)
    return path


def merged(out: Path, rank: int = 0) -> dict[str, np.ndarray]:
    return load_file(next((out / f"rank_{rank}").glob("*.safetensors")))


def exact_sum(
    w: np.ndarray, a: np.ndarray, b: np.ndarray, scaling: float, wide: type[np.floating] | None = None
) -> np.ndarray:
    """Factors beside their weight: the product summed from the first of the rank to the last, for an fp32 weight in
    fp32 as fused multiply-adds, else in fp64; rounded once.
    """
    wide = wide or (np.float32 if w.dtype == np.float32 else np.float64)
    product = np.zeros(w.shape, wide)
    for k in range(a.shape[-2]):
        row, column = a[..., k, None, :].astype(np.float64), b[..., :, k, None].astype(np.float64)
        product = (product + column * row).astype(wide)  # fp64 holds the product of two fp32 numbers exactly
    return (w.astype(wide) + product * wide(scaling)).astype(w.dtype)


NAMES = [
    ("layer.weight", "layer.mindpet_delta_lora_a", "layer.mindpet_delta_lora_b"),
    ("layer.weight", "layer.lora_A", "layer.lora_B"),
    ("layer", "layer.lora_A", "layer.lora_B"),
    ("layer.weight", "layer.weight.lora_A", "layer.weight.lora_B"),
    ("layer.weight", "layer.lora_A.weight", "layer.lora_B.weight"),
    ("layer.weight", "layer.lora_A.default.weight", "layer.lora_B.default.weight"),
    ("layer.weight", "base_model.model.layer.lora_A.weight", "base_model.model.layer.lora_B.weight"),
]


@pytest.mark.parametrize("names", NAMES, ids=[a for _, a, _ in NAMES])
def test_every_way_to_name_factors(tmp_path: Path, names: tuple[str, str, str]) -> None:
    w, a, b = normal(OUT, IN), normal(RANK, IN), normal(OUT, RANK)
    source = save(tmp_path / "in.safetensors", dict(zip(names, (w, a, b), strict=True)))
    merge_lora(source, tmp_path / "out", lora_config(scaling="0.5"))
    found = merged(tmp_path / "out")
    assert list(found) == [names[0]]
    np.testing.assert_array_equal(found[names[0]], exact_sum(w, a, b, 0.5))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("workers", [1, 3])
def test_values_whatever_the_blocking(tmp_path: Path, dtype: str, workers: int) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    w, a, b = (normal(*s).astype(kind) for s in ((300, 500), (16, 500), (300, 16)))
    with (tmp_path / "in.safetensors").open("wb") as file:
        write_any(file, {"l.weight": w, "l.lora_A": a, "l.lora_B": b}, dtype)
    options = Options(workers=workers, max_memory_nbytes=(96 << 20) + workers * 3 * (64 << 10))
    merge_lora(tmp_path / "in.safetensors", tmp_path / "out", lora_config(scaling="2"), options)
    found = read_any(next((tmp_path / "out").rglob("*.safetensors")), "l.weight", kind, w.shape)
    np.testing.assert_array_equal(found, exact_sum(w, a, b, 2))


def test_a_float64_weight_is_summed_in_float64(tmp_path: Path) -> None:
    w, a, b = (normal(*s).astype(np.float64) for s in ((OUT, IN), (RANK, IN), (OUT, RANK)))
    source = save(tmp_path / "in.safetensors", {"l.weight": w, "l.lora_A": a, "l.lora_B": b})
    merge_lora(source, tmp_path / "out", lora_config(scaling="2"))
    np.testing.assert_allclose(merged(tmp_path / "out")["l.weight"], w + b @ a * 2, rtol=1e-12, atol=1e-14)


def write_any(file: object, tensors: dict[str, np.ndarray], dtype: str) -> None:
    frame = Safetensors().frame({n: TensorSpec(dtype, t.shape) for n, t in tensors.items()}, {}, {})
    file.write(frame.filled({name: t.tobytes() for name, t in tensors.items()}))  # type: ignore[attr-defined]


def read_any(path: Path, name: str, kind: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    start, stop = json.loads(data[8 : 8 + size])[name]["data_offsets"]
    return np.frombuffer(data[8 + size + start : 8 + size + stop], kind).reshape(shape)


def test_experts_in_three_dims(tmp_path: Path) -> None:
    w, a, b = normal(3, OUT, IN), normal(3, RANK, IN), normal(3, OUT, RANK)
    source = save(tmp_path / "in.safetensors", {"e.weight": w, "e.lora_A": a, "e.lora_B": b})
    merge_lora(source, tmp_path / "out", lora_config(scaling="2"))
    np.testing.assert_array_equal(merged(tmp_path / "out")["e.weight"], exact_sum(w, a, b, 2))


def test_transposed_weights(tmp_path: Path) -> None:
    w, a, b = normal(IN, OUT), normal(RANK, IN), normal(OUT, RANK)
    source = save(tmp_path / "in.safetensors", {"l.weight": w, "l.lora_A": a, "l.lora_B": b})
    merge_lora(source, tmp_path / "out", lora_config(scaling="2"))
    np.testing.assert_array_equal(merged(tmp_path / "out")["l.weight"], exact_sum(w.T, a, b, 2).T)


def strategy(folder: Path, dp: int, mp: int, names: dict[str, tuple[tuple[int, ...], ...]]) -> Path:
    folder.mkdir()
    content = write_protobuf([encode_made(0)], {n: encode_layout(Sharding((dp, mp), m)) for n, m in names.items()}, 1)
    for rank in range(dp * mp):
        (folder / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(content)
    return folder


COLUMN, ROW, WHOLE = ((0,), ()), ((), (0,)), ((), ())


@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_from_slices_to_another_layout_without_a_full_checkpoint(tmp_path: Path, form: str) -> None:
    full = {"q.weight": normal(OUT, IN), "q.lora_A": normal(RANK, IN), "q.lora_B": normal(OUT, RANK)}
    full |= {"o.weight": normal(IN, OUT), "o.lora_A": normal(RANK, OUT), "o.lora_B": normal(IN, RANK), "n": normal(6)}
    cut = {"q.weight": COLUMN, "q.lora_A": WHOLE, "q.lora_B": COLUMN}
    cut |= {"o.weight": ROW, "o.lora_A": ROW, "o.lora_B": WHOLE, "n": ((),)}
    source = save(tmp_path / "full.safetensors", full)
    a = strategy(tmp_path / "a", 2, 2, cut)
    b = strategy(tmp_path / "b", 1, 4, {"q.weight": ROW, "o.weight": COLUMN, "n": ((),)})
    convert(source, tmp_path / "sliced", Options(dst_strategy=str(a), format=form))
    options = Options(src_strategy=str(a), dst_strategy=str(b), format="safetensors")
    merge_lora(tmp_path / "sliced", tmp_path / "out", lora_config(scaling="16/8"), options)
    q, o = (exact_sum(full[f"{n}.weight"], full[f"{n}.lora_A"], full[f"{n}.lora_B"], 2) for n in "qo")
    for rank in range(4):
        found = merged(tmp_path / "out", rank)
        assert sorted(found) == ["n", "o.weight", "q.weight"]
        np.testing.assert_array_equal(found["q.weight"], q[:, rank * 8 : rank * 8 + 8])
        np.testing.assert_array_equal(found["o.weight"], o[rank * 8 : rank * 8 + 8])


def test_a_separate_adapter(tmp_path: Path) -> None:
    w, a, b = normal(OUT, IN), normal(RANK, IN), normal(OUT, RANK)
    base = save(tmp_path / "base.safetensors", {"l.weight": w, "n": normal(3)})
    adapter = save(tmp_path / "adapter" / "adapter_model.safetensors", {
        "base_model.model.l.lora_A.weight": a, "base_model.model.l.lora_B.weight": b,
    })  # fmt: skip
    done = merge_lora(base, tmp_path / "out", lora_config(scaling="1"), adapter=adapter.parent)
    np.testing.assert_array_equal(merged(tmp_path / "out")["l.weight"], exact_sum(w, a, b, 1, np.float64))
    assert done.bill.dropped == {"LoRA weights, added to their base": 2}


REFUSED = {
    "b missing": ({"l.weight": (OUT, IN), "l.lora_A": (RANK, IN)}, "factor B is missing"),
    "a missing": ({"l.weight": (OUT, IN), "l.lora_B": (OUT, RANK)}, "factor A is missing"),
    "base missing": ({"l.lora_A": (RANK, IN), "l.lora_B": (OUT, RANK)}, "its weight is missing"),
    "ranks differ": ({"l.weight": (OUT, IN), "l.lora_A": (RANK, IN), "l.lora_B": (OUT, RANK + 1)}, "do not make"),
    "another model": ({"l.weight": (OUT, IN), "l.lora_A": (RANK, IN + 1), "l.lora_B": (OUT, RANK)}, "do not make"),
    "no lora": ({"l.weight": (OUT, IN)}, "no LoRA tensors"),
    "magnitudes alone": ({"l.weight": (OUT, IN), "l.lora_magnitude_vector": (OUT,)}, "factor A is missing"),
    "half an embedding": ({"l.weight": (OUT, IN), "l.lora_embedding_A": (RANK, OUT)}, "factor B is missing"),
    "AdaLoRA's": ({"l.weight": (OUT, IN), "l.lora_E": (RANK, 1)}, "of a kind that cannot be merged"),
    "Kohya's": ({"l.weight": (OUT, IN), "lora_unet_l.lora_up.weight": (OUT, RANK)}, "kohya's"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path, case: str) -> None:
    shapes, message = REFUSED[case]
    source = save(tmp_path / "in.safetensors", {n: normal(*s) for n, s in shapes.items()})
    with pytest.raises(PlanError, match=message):
        merge_lora(source, tmp_path / "out", lora_config(scaling="1"))
    assert not (tmp_path / "out").exists()


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    source = save(tmp_path / "in.safetensors", {"x.lora_A": normal(RANK, IN), "y.lora_B": normal(OUT, RANK)})
    with pytest.raises(PlanError, match=r"(?s)x\.lora_A.*y\.lora_B"):
        merge_lora(source, tmp_path / "out", lora_config(scaling="1"))


def test_an_infinity_that_did_not_go_in_is_refused_and_nothing_is_named(tmp_path: Path) -> None:
    w = np.full((OUT, IN), 60000, np.float16)
    ones = {"l.weight": w, "l.lora_A": np.ones((1, IN), np.float16), "l.lora_B": np.ones((OUT, 1), np.float16)}
    source = save(tmp_path / "in.safetensors", ones)
    with pytest.raises(InputError, match=r"makes inf at \[0, 0\] of l\.weight"):
        merge_lora(source, tmp_path / "out", lora_config(scaling="60000"))
    assert not list(tmp_path.rglob("out/**/*.safetensors*"))


def test_a_nan_that_went_in_comes_out(tmp_path: Path) -> None:
    w, a, b = normal(OUT, IN), normal(RANK, IN), normal(OUT, RANK)
    w[3, 5] = np.nan
    a[1, 7] = np.inf
    source = save(tmp_path / "in.safetensors", {"l.weight": w, "l.lora_A": a, "l.lora_B": b})
    merge_lora(source, tmp_path / "out", lora_config(scaling="2"))
    found = merged(tmp_path / "out")["l.weight"]
    assert np.isnan(found[3, 5])
    assert not np.isfinite(found[:, 7]).any()
    assert np.isfinite(np.delete(np.delete(found, 7, axis=1), 3, axis=0)).all()


def test_optimizer_states_stay_behind_with_a_count(tmp_path: Path) -> None:
    tensors = {"l.weight": normal(OUT, IN), "l.lora_A": normal(RANK, IN), "l.lora_B": normal(OUT, RANK)}
    tensors |= {"adam_m.l.lora_A": normal(RANK, IN), "adam_v.l.lora_A": normal(RANK, IN), "global_step": normal(1)}
    source = save(tmp_path / "in.safetensors", tensors)
    done = merge_lora(source, tmp_path / "out.ckpt", lora_config(scaling="1"))
    assert done.bill.dropped["optimizer states of the training"] == 2
    assert done.bill.tensors == 2
