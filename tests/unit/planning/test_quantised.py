"""Which tensors are the codes, scales and maps of quantised weights, by the names that tools give them."""

from __future__ import annotations

import pytest

from reshard.planning.quantised import quantised

TOGETHER = {
    "fp8 by block": {"up.weight": "float8_e4m3fn", "up.weight_scale_inv": "float32"},
    "fp8 with e8m0 scales": {"wq.weight": "float8_e4m3fn", "wq.scale": "float8_e8m0fnu"},
    "fp8 with activations": {"q.weight": "float8_e5m2", "q.weight_scale": "float32", "q.input_scale": "bfloat16"},
    "fp8 for images": {"q.weight": "float8_e4m3fn", "q.scale_weight": "float32", "q.scale_input": "float32"},
    "fp8 with a cache": {"k.weight": "float8_e4m3fn", "k.weight_scale": "float32", "k.k_scale": "float32"},
    "nvfp4": {"q.weight": "uint8", "q.weight_scale": "float8_e4m3fn", "q.weight_scale_2": "float32"},
    "gptq": {"q.qweight": "int32", "q.qzeros": "int32", "q.scales": "float16", "q.g_idx": "int32"},
    "packed": {"q.weight_packed": "int32", "q.weight_scale": "bfloat16", "q.weight_shape": "int64"},
    "bitsandbytes 8": {"q.weight": "int8", "q.SCB": "float32", "q.weight_format": "uint8"},
    "bitsandbytes 4": {
        "q.weight": "uint8", "q.weight.absmax": "float32", "q.weight.quant_map": "float32",
        "q.weight.quant_state.bitsandbytes__nf4": "uint8",
    },
    "hqq": {"q.W_q": "uint8", "q.scale": "float16", "q.zero": "float16"},
    "exl2": {"q.q_weight": "int32", "q.q_scale": "int32", "q.q_scale_max": "float16", "q.q_groups": "int16"},
    "aqlm": {"q.codes": "int16", "q.codebooks": "float16", "q.scales": "float16"},
    "mxfp4 experts": {"e.up_blocks": "uint8", "e.up_scales": "uint8"},
    "fused experts": {"e.w13_weight": "float8_e4m3fn", "e.w13_weight_scale_inv": "float32"},
    "experts as parameters": {"e.gate_up_proj": "float8_e4m3fn", "e.gate_up_proj_scale": "float32"},
    "ascend": {"q.weight": "int8", "q.weight_offset": "float32", "q.deq_scale": "int64", "q.quant_bias": "int32"},
    "golden stick": {
        "q._layer.weight": "int8", "q._layer.matmul.weight_scale": "float32", "q.quant_op.input_zp": "int8",
    },
    "bitsandbytes 4, kept as bfloat16": {
        "q.weight": "bfloat16", "q.weight.absmax": "float32", "q.weight.quant_map": "float32",
        "q.weight.quant_state.bitsandbytes__nf4": "uint8",
    },
    "hqq, kept as floats": {"q.W_q": "float16", "q.scale": "float16", "q.zero": "float16"},
    "exl3": {"q.trellis": "int16", "q.suh": "float16", "q.svh": "float16", "q.mcg": "int32"},
    "exl3, its signs packed": {"q.trellis": "int16", "q.su": "int16", "q.sv": "int16"},
    "higgs": {"q.weight": "int16", "q.scales": "bfloat16", "q.tables": "bfloat16", "q.tables2": "float16"},
    "vptq": {
        "q.indices": "int32", "q.centroids.weight": "bfloat16", "q.res_centroids.weight": "bfloat16",
        "q.outlier_indices": "int16", "q.outlier_centroids.weight": "bfloat16", "q.perm": "int64",
        "q.weight_scale": "bfloat16", "q.weight_bias": "bfloat16",
    },
    "vptq without norms": {"q.indices": "int32", "q.centroids.weight": "bfloat16"},
    "spqr": {"q.dense_weights": "int64", "q.row_offsets": "int32", "q.col_vals": "int32", "q.in_perm": "int16"},
    "quanto": {
        "q.weight._data": "int8", "q.weight._scale": "bfloat16", "q.weight._shift": "bfloat16",
        "q.input_scale": "bfloat16", "q.output_scale": "bfloat16",
    },
    "torchao": {"q._weight_qdata": "int8", "q._weight_scale": "bfloat16", "q._weight_zero_point": "int8"},
    "torchao by tiles": {"q._weight_qdata": "int32", "q._weight_scale_and_zero": "bfloat16"},
    "eetq": {"q.weight": "int8", "q.weight_scales": "float16"},
    "bitnet": {"q.weight": "uint8", "q.weight_scale": "bfloat16"},
    "fbgemm": {"q.weight": "float8_e4m3fn", "q.weight_scale": "float32", "q.input_scale_ub": "float32"},
    "modelopt, compressed": {
        "q.weight": "float8_e4m3fn", "q.weight_quantizer._scale": "float32", "q.weight_quantizer._amax": "float32",
        "q.input_quantizer._amax": "float32",
    },
    "modelopt, compressed to 4 bits": {
        "q.weight": "uint8", "q.weight_quantizer._scale": "float8_e4m3fn",
        "q.weight_quantizer._double_scale": "float32",
    },
    "metal": {"q.weight": "uint32", "q.scales": "bfloat16", "q.qbiases": "bfloat16"},
    "fp_quant": {"q.qweight": "uint8", "q.scales": "uint8", "q.forward_hadamard_matrix": "bfloat16"},
    "sparse": {"q.weight.compressed": "bfloat16", "q.weight.bitmask": "uint8", "q.weight.shape": "int64"},
    "gemma": {"q.embedding_quantized": "uint8", "q.embedding_scale": "float32"},
}  # fmt: skip


@pytest.mark.parametrize("case", TOGETHER)
def test_all_that_belongs_to_one_layer_is_found_together(case: str) -> None:
    (found,) = quantised(TOGETHER[case] | {"norm.weight": "bfloat16", "norm.scale": "float32"}).values()
    assert set(found.names) == set(TOGETHER[case])


PLAIN = {
    "fp8 without scales": {"q.weight": "float8_e4m3fn", "norm.scale": "float32"},
    "a float weight with a scale": {"q.weight": "bfloat16", "q.weight_scale": "float32"},
    "a mask in a layer with a scale": {"attn.bias": "uint8", "attn.scale": "float32"},
    "counters": {"step": "int32", "scale": "float32"},
}


@pytest.mark.parametrize("case", PLAIN)
def test_what_only_looks_alike_is_plain(case: str) -> None:
    assert quantised(PLAIN[case]) == {}


def test_layers_side_by_side_stay_apart() -> None:
    experts = {f"e.{n}_{x}": "uint8" for n in ("up", "down") for x in ("blocks", "scales")}
    short = {f"attn.{n}.{x}": d for n in "qk" for x, d in (("weight", "int8"), ("weight_scale", "float32"))}
    assert list(quantised(experts | short)) == ["e.up", "e.down", "attn.q", "attn.k"]
