"""Llama-like checkpoints of any size, and strategies for them, to time conversions on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from msgspec.structs import replace

from reshard.formats.dcp_written import WrittenChunk, metadata_bytes
from reshard.formats.distcp import Distcp, items_of
from reshard.formats.pickle_objects import Global, Record
from reshard.formats.registry import format_of
from reshard.formats.torch_file import torch_frame
from reshard.formats.torch_values import TensorRef, whole
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


class Cut(Protocol):
    """A model whose tensors say how they are cut."""

    @property
    def layers(self) -> int: ...
    def tensors(self) -> dict[str, tuple[tuple[int, ...], tuple[tuple[int, ...], ...], int]]: ...


def write_strategy(model: Cut, folder: Path, dp: int, mp: int, pp: int) -> Path:
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


def write_config(model: Model, folder: Path) -> str:
    """Hugging Face's words for the model; gives their path."""
    said = {"hidden_size": model.hidden, "intermediate_size": model.ffn, "num_hidden_layers": model.layers}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": model.vocab}
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": "llama", "torch_dtype": model.dtype, **said, **heads}))
    return str(path)


def write_full(model: Model, path: Path, seed: int = 0) -> Path:
    """One full checkpoint of random small values, in the format of the file's name."""
    write_random(model.specs(), path, seed)
    return path


def write_sparse(specs: dict[str, TensorSpec], path: Path) -> Frame:
    """The header alone, in the format of the file's name: what would be data is a hole in the file."""
    form = format_of(path.name)
    assert form is not None
    frame = form.frame(specs, {}, {})
    _write_pieces(frame, path)
    return frame


def _write_pieces(frame: Frame, path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(frame.nbytes)
        for offset, piece in frame.pieces:
            file.seek(offset)
            file.write(piece)


def write_random(specs: dict[str, TensorSpec], path: Path, seed: int = 0) -> None:
    frame = write_sparse(specs, path)
    _fill(frame, path, {name: spec.dtype for name, spec in specs.items()}, seed)


def _fill(frame: Frame, path: Path, dtypes: dict[str, str], seed: int) -> None:
    """Random values in the holes of a file."""
    rng = np.random.default_rng(seed)
    with path.open("r+b") as file:
        for name, extents in frame.holes.items():
            for extent in extents:
                file.seek(extent.offset)
                for at in range(0, extent.nbytes, _CHUNK):
                    nbytes = min(_CHUNK, extent.nbytes - at)
                    file.write(random_values(rng, dtypes[name], nbytes))


def random_values(rng: np.random.Generator, dtype: str, nbytes: int) -> bytes:
    """Between 1/128 and 1/32, of either sign: random bits but for the upper part of the exponent. Of a byte all
    that are small: the largest are NaN.
    """
    if dtype.startswith(("float8", "int8")):
        return (np.frombuffer(rng.bytes(nbytes), np.uint8) & 0xBF).tobytes()
    sign_and_fraction, exponent = (0x80FF, 0x3C00) if dtype == "bfloat16" else (0x80FFFFFF, 0x3C000000)
    bits = np.frombuffer(rng.bytes(nbytes), np.uint16 if dtype == "bfloat16" else np.uint32)
    return (bits & sign_and_fraction | exponent).tobytes()


def write_turned(path: Path, shapes: tuple[tuple[int, int], ...]) -> Path:
    """A torch file of bf16 matrices that were transposed when they were saved: column by column."""
    specs = {f"{number}.weight": TensorSpec("bfloat16", shape) for number, shape in enumerate(shapes)}
    held = {n: replace(whole(n.split(".")[0], spec), strides=(1, spec.shape[0])) for n, spec in specs.items()}
    frame = torch_frame(held, {n.split(".")[0]: spec.nbytes for n, spec in specs.items()})
    _write_pieces(frame, path)
    _fill(frame, path, dict.fromkeys(frame.holes, "bfloat16"), 0)
    return path


def write_lora(model: Model, path: Path, rank: int, dtype: str, *, everywhere: bool) -> Path:
    """An adapter of q, k, v and o of every layer, or of all its matrices."""
    specs = {}
    for name, (shape, _, layer) in model.tensors().items():
        if len(shape) == 2 and 0 <= layer < model.layers and (everywhere or ".attention." in name):
            base = name.removesuffix(".weight")
            specs[f"{base}.lora_A.weight"] = TensorSpec(dtype, (rank, shape[1]))
            specs[f"{base}.lora_B.weight"] = TensorSpec(dtype, (shape[0], rank))
    write_random(specs, path, seed=1)
    return path


def _rows(shape: tuple[int, ...], rank: int, world: int) -> tuple[int, tuple[int, ...]]:
    """Where a rank's rows of a tensor begin, and their shape, as FSDP2 cuts it."""
    part = -(-shape[0] // world)
    first = min(rank * part, shape[0])
    return first, (min(first + part, shape[0]) - first, *shape[1:])


def write_fsdp(model: Model, folder: Path, world: int) -> Path:
    """The files that FSDP2's ranks save, as verl's trainer calls them: DTensors cut by rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(world):
        parts = {name: spec.of_shape(_rows(spec.shape, rank, world)[1]) for name, spec in model.specs().items()}
        keys = {name: str(number) for number, name in enumerate(parts)}
        held = {n: _dtensor(whole(keys[n], parts[n]), spec, rank, world) for n, spec in model.specs().items()}
        frame = torch_frame(held, {keys[name]: part.nbytes for name, part in parts.items()})
        path = folder / f"model_world_size_{world}_rank_{rank}.pt"
        _write_pieces(frame, path)
        _fill(frame, path, dict.fromkeys(frame.holes, model.dtype), rank)
    return folder


def _dtensor(local: TensorRef, spec: TensorSpec, rank: int, world: int) -> Record:
    kind = Global("torch.distributed.tensor", "DTensor")
    axis = Record(Global("torch.distributed._mesh_layout", "_FlatLayout"), (), {"shape": (world,), "stride": (1,)})
    layout = Record(Global("torch.distributed._mesh_layout", "_MeshLayout"), (), {"axes": (axis,)})
    mesh = Record(
        Global("torch.distributed.device_mesh", "DeviceMesh"),
        (),
        {"_layout": layout, "_rank": rank, "_coordinate_on_dim": (rank,)},
    )
    rows = Record(Global("torch.distributed.tensor.placement_types", "Shard"), (), {"dim": 0})
    told = Record(
        Global("torch.distributed.tensor._dtensor_spec", "DTensorSpec"), (), {"mesh": mesh, "placements": (rows,)}
    )
    wrapper = Global("torch._utils", "_rebuild_wrapper_subclass")
    given = (kind, Global("torch", spec.dtype), spec.shape)
    state = {"_local_tensor": local, "_spec": told}
    return Record(Global("torch._tensor", "_rebuild_from_type_v2"), (wrapper, kind, given, state))


def write_dcp(model: Model, folder: Path, world: int) -> Path:
    """A folder as FSDP2's ranks save it with ``dcp.save``: a chunk of rows a rank."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks: dict[str, tuple[TensorSpec, list[WrittenChunk]]] = {n: (spec, []) for n, spec in model.specs().items()}
    for rank in range(world):
        parts = {name: spec.of_shape(_rows(spec.shape, rank, world)[1]) for name, spec in model.specs().items()}
        path = folder / f"__{rank}_0.distcp"
        frame, items = Distcp().frame(parts, {}, {}), items_of(parts, {}, ())
        _write_pieces(frame, path)
        _fill(frame, path, dict.fromkeys(parts, model.dtype), rank)
        for name, (spec, of_name) in chunks.items():
            first, shape = _rows(spec.shape, rank, world)
            of_name.append(WrittenChunk((first, *(0,) * (len(shape) - 1)), shape, path.name, items[name]))
    (folder / ".metadata").write_bytes(metadata_bytes(chunks, {}))
    return folder
