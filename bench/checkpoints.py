"""Llama-like checkpoints of any size, and strategies for them, to time conversions on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reshard.formats.registry import format_named
from reshard.index import Frame, TensorSpec
from reshard.layout.tensor import Sharding
from reshard.strategy.protobuf import encode_layout, encode_made, write_protobuf

_CHUNK = 16 << 20


@dataclass(frozen=True)
class Model:
    """Sizes of a dense Llama-like model; the default has 1.36 billion weights (2.7 GB in bf16)."""

    layers: int = 24
    hidden: int = 2048
    ffn: int = 5632
    vocab: int = 32000
    dtype: str = "bfloat16"

    def tensors(self) -> dict[str, tuple[tuple[int, ...], tuple[tuple[int, ...], ...], int]]:
        """Name → shape, tensor map on (dp, mp), layer (-1 for the embedding, ``layers`` for the head)."""
        h, f, column, row, whole = self.hidden, self.ffn, ((0,), ()), ((), (0,)), ((),)
        made: dict[str, tuple[tuple[int, ...], tuple[tuple[int, ...], ...], int]] = {
            "model.tok_embeddings.embedding_weight": ((self.vocab, h), column, -1)
        }
        for i in range(self.layers):
            layer = f"model.layers.{i}."
            made |= {f"{layer}attention.{w}.weight": ((h, h), column, i) for w in ("wq", "wk", "wv")}
            made[f"{layer}attention.wo.weight"] = ((h, h), row, i)
            made |= {f"{layer}feed_forward.{w}.weight": ((f, h), column, i) for w in ("w1", "w3")}
            made[f"{layer}feed_forward.w2.weight"] = ((h, f), row, i)
            made |= {f"{layer}{norm}.weight": ((h,), whole, i) for norm in ("attention_norm", "ffn_norm")}
        made["model.norm_out.weight"] = ((h,), whole, self.layers)
        made["lm_head.weight"] = ((self.vocab, h), column, self.layers)
        return made

    def specs(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(self.dtype, shape) for name, (shape, _, _) in self.tensors().items()}


def write_strategy(model: Model, folder: Path, dp: int, mp: int, pp: int) -> Path:
    """The strategy files of all ranks of dp·mp·pp."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage in range(pp):
        layouts = {
            name: encode_layout(Sharding((dp, mp), tensor_map))
            for name, (_, tensor_map, layer) in model.tensors().items()
            if min(max(layer, 0), model.layers - 1) * pp // model.layers == stage
        }
        content = write_protobuf([encode_made(stage)], layouts, 1)
        for rank in range(stage * dp * mp, (stage + 1) * dp * mp):
            (folder / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(content)
    return folder


def write_full(model: Model, path: Path, seed: int = 0) -> Path:
    """One full checkpoint of random small values, in the format of the file's name."""
    write_random(model.specs(), path, seed)
    return path


def write_sparse(specs: dict[str, TensorSpec], path: Path) -> Frame:
    """The header alone, in the format of the file's name: what would be data is a hole in the file."""
    frame = format_named(path.suffix[1:]).frame(specs, {}, {})
    with path.open("wb") as file:
        file.truncate(frame.nbytes)
        for offset, piece in frame.pieces:
            file.seek(offset)
            file.write(piece)
    return frame


def write_random(specs: dict[str, TensorSpec], path: Path, seed: int = 0) -> None:
    frame = write_sparse(specs, path)
    rng = np.random.default_rng(seed)
    with path.open("r+b") as file:
        for name, extents in frame.holes.items():
            for extent in extents:
                file.seek(extent.offset)
                for at in range(0, extent.nbytes, _CHUNK):
                    nbytes = min(_CHUNK, extent.nbytes - at)
                    file.write(_values(rng, specs[name].dtype, nbytes))


def _values(rng: np.random.Generator, dtype: str, nbytes: int) -> bytes:
    """Between 1/128 and 1/32, of either sign: random bits but for the upper part of the exponent."""
    sign_and_fraction, exponent = (0x80FF, 0x3C00) if dtype == "bfloat16" else (0x80FFFFFF, 0x3C000000)
    bits = np.frombuffer(rng.bytes(nbytes), np.uint16 if dtype == "bfloat16" else np.uint32)
    return (bits & sign_and_fraction | exponent).tobytes()


def write_lora(model: Model, path: Path, rank: int = 16) -> Path:
    """An adapter of q, k, v and o of every layer."""
    specs = {}
    for i in range(model.layers):
        for w in ("wq", "wk", "wv", "wo"):
            base = f"model.layers.{i}.attention.{w}"
            specs[f"{base}.lora_A.weight"] = TensorSpec(model.dtype, (rank, model.hidden))
            specs[f"{base}.lora_B.weight"] = TensorSpec(model.dtype, (model.hidden, rank))
    write_random(specs, path, seed=1)
    return path
