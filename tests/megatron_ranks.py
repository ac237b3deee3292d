"""Megatron's rank folders for tests: cut with NumPy, by the rules and not by reshard's code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from making import Arrays, array
from reshard.formats.pickled import Global, Record
from reshard.formats.torch_file import torch_bytes
from reshard.formats.torch_values import whole
from reshard.index import TensorSpec

LAYERS, HIDDEN, ROWS, VOCABULARY = 8, 4, 6, 8
_BY_ROWS = ("linear_qkv.weight", "word_embeddings.weight", "output_layer.weight")
STACK = {
    "self_attention.linear_qkv.layer_norm_weight": array((LAYERS, HIDDEN), seed=1),
    "self_attention.linear_qkv.weight": array((LAYERS, 8, HIDDEN), "bfloat16", seed=2),
    "self_attention.linear_proj.weight": array((LAYERS, HIDDEN, 4), "bfloat16", seed=3),
    "mlp.linear_fc1.layer_norm_weight": array((LAYERS, HIDDEN), seed=4),
    "mlp.linear_fc1.weight": array((LAYERS, 2 * ROWS, HIDDEN), "bfloat16", seed=5),
    "mlp.linear_fc2.weight": array((LAYERS, HIDDEN, ROWS), "bfloat16", seed=6),
}
FULL = {
    "embedding.word_embeddings.weight": array((VOCABULARY, HIDDEN), "bfloat16", seed=7),
    **{f"decoder.layers.{name}": value for name, value in STACK.items()},
    "decoder.final_layernorm.weight": array((HIDDEN,), seed=8),
    "output_layer.weight": array((VOCABULARY, HIDDEN), "bfloat16", seed=9),
}
ARGS = {
    "num_layers": LAYERS,
    "hidden_size": HIDDEN,
    "tensor_model_parallel_size": 2,
    "pipeline_model_parallel_size": 2,
    "untie_embeddings_and_output_weights": True,
    "data_path": ["0.3", "corpus"],
    "num_layers_per_virtual_pipeline_stage": 2,
}
_ON_RANK = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


def write_torch(path: Path, value: Mapping[str, Any], arrays: Arrays) -> Path:
    """A torch file of a value in which ``arrays`` stand by their keys, as ``ref`` gives them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(torch_bytes(value, {key: each.tobytes() for key, each in arrays.items()}))
    return path


def saved(path: Path, told: Mapping[str, Any], chunks: Mapping[str, Arrays]) -> Path:
    """A rank's file: of each chunk of the model its tensors, and what else it tells."""
    arrays = {f"{chunk}.{name}": value for chunk, held in chunks.items() for name, value in held.items()}
    model = {
        chunk: {name: whole(f"{chunk}.{name}", TensorSpec(v.dtype.name, v.shape)) for name, v in held.items()}
        for chunk, held in chunks.items()
    }
    return write_torch(path, {**told, **model}, arrays)


def told(args: Mapping[str, Any] = ARGS, iteration: int = 7) -> dict[str, Any]:
    namespace = Record(Global("argparse", "Namespace"), (), dict(args))
    return {"args": namespace, "checkpoint_version": 3.0, "iteration": iteration}


def of_rank(name: str, value: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """What a tensor-parallel rank holds of a tensor of one layer."""
    if name.endswith("linear_fc1.weight"):
        return np.concatenate([np.split(half, ranks)[rank] for half in np.split(value, 2)])
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return np.split(value, ranks, axis=1)[rank]
    return np.split(value, ranks)[rank] if name.endswith(_BY_ROWS) else value


def chunk_of(stage: int, chunk: int, tensor: int, sizes: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """What a rank holds in one of its chunks. ``sizes``: tensor-parallel ranks, stages, chunks."""
    ranks, stages, chunks = sizes
    each = LAYERS // (stages * chunks)
    first = chunk * stages * each + stage * each
    held = {}
    if (stage, chunk) == (0, 0):
        held["embedding.word_embeddings.weight"] = FULL["embedding.word_embeddings.weight"]
    for local in range(each):
        for name, value in STACK.items():
            held[f"decoder.layers.{local}.{_ON_RANK.get(name, name)}"] = value[first + local]
    if (stage, chunk) == (stages - 1, chunks - 1):
        held |= {name: FULL[name] for name in ("decoder.final_layernorm.weight", "output_layer.weight")}
    return {name: of_rank(name, value, tensor, ranks) for name, value in held.items()}


def write_megatron(folder: Path, *, chunks: int = 2) -> Path:
    """The model in folders of two tensor-parallel ranks and two stages, each of so many virtual ones."""
    for stage in range(2):
        for tensor in range(2):
            held = {
                f"model{chunk}" if chunks > 1 else "model": chunk_of(stage, chunk, tensor, (2, 2, chunks))
                for chunk in range(chunks)
            }
            saved(folder / "iter_0000007" / f"mp_rank_{tensor:02d}_{stage:03d}" / "model_optim_rng.pt", told(), held)
    (folder / "latest_checkpointed_iteration.txt").write_text("7\n")
    return folder
