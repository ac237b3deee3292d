"""Checkpoints of any size that take no room: headers, and holes where the values would be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

from making import Stages
from reshard.layout.tensor import Sharding

Shapes = Mapping[str, tuple[int, ...]]
_BF16_NBYTES = 2


def write_sparse(path: Path, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> Path:
    """A safetensors file of bfloat16 zeros; on a file system with holes only its header takes room."""
    header: dict[str, object] = {"__metadata__": {"format": "ms"}}
    end = 0
    for name, shape in shapes:
        start, end = end, end + prod(shape) * _BF16_NBYTES
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def write_sparse_ranks(folder: Path, shapes: Shapes, stages: Stages) -> Path:
    """``rank_r/model_r.safetensors`` of every rank, as the strategy cuts the shapes."""
    devices = next(iter(stages[0].values())).devices
    for rank in range(devices * len(stages)):
        cuts = stages[rank // devices]
        shards = ((n, tuple(a // b for a, b in zip(shapes[n], s.parts, strict=True))) for n, s in cuts.items())
        write_sparse(folder / f"rank_{rank}" / f"model_{rank}.safetensors", shards)
    return folder


def llama(layers: int, hidden: int, inner: int, words: int, kv: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a dense model; how each is cut goes by its name (see ``cut``)."""
    shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.embedding_weight": (words, hidden)}
    for i in range(layers):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.attention.wq.weight": (hidden, hidden), f"{at}.attention.wo.weight": (hidden, hidden)}
        shapes |= {f"{at}.attention.wk.weight": (kv, hidden), f"{at}.attention.wv.weight": (kv, hidden)}
        shapes |= {f"{at}.feed_forward.w1.weight": (inner, hidden), f"{at}.feed_forward.w3.weight": (inner, hidden)}
        shapes |= {f"{at}.feed_forward.w2.weight": (hidden, inner), f"{at}.attention_norm.weight": (hidden,)}
        shapes[f"{at}.ffn_norm.weight"] = (hidden,)
    return shapes | {"model.norm_out.weight": (hidden,), "lm_head.weight": (words, hidden)}


def experts(layers: int, count: int, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    """A mixture of experts whose every expert is a tensor of its own: three for each."""
    return {
        f"model.layers.{i}.feed_forward.experts.{e}.w{w}.weight": (hidden, inner) if w == 2 else (inner, hidden)
        for i in range(layers) for e in range(count) for w in (1, 2, 3)
    }  # fmt: skip


def stages_of(shapes: Shapes, dp: int, mp: int, pp: int, *, opt_shard: bool = False) -> Stages:
    """Layers shared out evenly over ``pp`` stages of ``dp`` × ``mp`` ranks."""
    layers = 1 + max((int(n.split(".")[2]) for n in shapes if n.startswith("model.layers.")), default=0)
    stages: Stages = [{} for _ in range(pp)]
    for name, shape in shapes.items():
        first = name.startswith("model.tok")
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else 0 if first else layers - 1
        stages[layer * pp // layers][name] = cut(name, shape, dp, mp, opt_shard=opt_shard)
    return stages


def cut(name: str, shape: tuple[int, ...], dp: int, mp: int, *, opt_shard: bool) -> Sharding:
    """Rows or columns by model parallel ranks, norms not at all; axis 0 is the model parallel one."""
    rows = not name.endswith(("wo.weight", "w2.weight"))
    if len(shape) == 1:
        return Sharding((dp, mp), ((),))
    return Sharding((dp, mp), ((0,), ()) if rows else ((), (0,)), -1 if opt_shard else 0)
