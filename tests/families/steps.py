"""Every way in which a target's tensor is made, each as a plan of one of 8 rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from making import array, counted, dtype_named, write_file
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.index import ZEROS, TensorSpec
from reshard.layout.box import Box
from reshard.names.wishes import Naming
from reshard.ops.adapters import AdapterAt
from reshard.ops.convert import plan, plan_from
from reshard.ops.lora import open_merge, plan_lora
from reshard.ops.options import Options
from reshard.ops.scaling import Fixed, LoraConfig
from reshard.planning.catalog import Catalog, Held, Loose, Shard, Tensor, tensor_of_shards
from reshard.planning.lora_made import as_made
from reshard.planning.plan import Plan

SPEC, WHOLE = TensorSpec("float32", (8, 6)), Box.whole((8, 6))
TWICE = LoraConfig(Fixed(2))
Keep = Callable[[Mapping[str, np.ndarray]], str]
"""Writes a file, on a disk or in a bucket, and says where."""


def kept_in(folder: Path) -> Keep:
    return lambda arrays: str(write_file(folder / "m.safetensors", arrays))


@dataclass(frozen=True)
class Step:
    """How a plan is made of a source, and the matrix that it makes."""

    source: Catalog
    plan: Callable[[str, Options], Plan]
    wanted: np.ndarray


def _of_held(keep: Keep, stored: np.ndarray, shards: Callable[[Held], Tensor], wanted: np.ndarray) -> Step:
    source = open_source(Source(keep({"w": stored})))
    (shard,) = source.tensors["w"].shards
    made: Catalog = replace(source, tensors={"w": shards(shard.held[0])})
    return Step(made, lambda dst, options: plan_from(made, dst, options), wanted)


def _ordered(keep: Keep) -> Step:
    stored = array((6, 8), seed=1)

    def turned(held: Held) -> Tensor:
        return Tensor("w", SPEC, Loose((Shard(WHOLE, (replace(held, order=(1, 0)),)),)))

    return _of_held(keep, stored, turned, stored.T.copy())


def _zeros(keep: Keep) -> Step:
    stored = array((5, 6), seed=2)
    boxes = Box((0, 0), (5, 6)), Box((5, 0), (8, 6))

    def padded(held: Held) -> Tensor:
        return tensor_of_shards("w", SPEC, [Shard(boxes[0], (held,)), Shard(boxes[1], (Held(ZEROS, ()),))])

    return _of_held(keep, stored, padded, np.concatenate([stored, np.zeros((3, 6), np.float32)]))


def _flat(keep: Keep) -> Step:
    """Its elements are some of a longer vector's."""
    stored = array((100,), seed=3)

    def some(held: Held) -> Tensor:
        (extent,) = held.extents
        mine = replace(extent, offset=extent.offset + 40, nbytes=192)
        return tensor_of_shards("w", SPEC, [Shard(WHOLE, (Held(held.file, (mine,)),))])

    return _of_held(keep, stored, some, stored[10:58].reshape(8, 6))


def _of_adapter(keep: Keep, arrays: Mapping[str, np.ndarray], wanted: np.ndarray, config: LoraConfig = TWICE) -> Step:
    """An adapter beside its base."""
    path = keep(arrays)
    source = open_merge(path, Options(), [AdapterAt("", config)]).joined.source
    return Step(source, lambda dst, options: plan_lora(path, dst, config, options), wanted)


def _lora(keep: Keep) -> Step:
    base, a, b = counted(8, 6), counted(2, 6), counted(8, 2)
    return _of_adapter(keep, {"l.weight": base, "l.lora_A.weight": a, "l.lora_B.weight": b}, base + 2 * (b @ a))


def _dora(keep: Keep) -> Step:
    """Of small whole numbers, whose sums are exact: what is rounded is the length."""
    base, a, b, magnitude = counted(8, 6), counted(2, 6), counted(8, 2), counted(8) + 1
    factors = {"l.lora_A.weight": a, "l.lora_B.weight": b, "l.lora_magnitude_vector": magnitude}
    total = (base + 2 * (b @ a)).astype(np.float64)
    wanted = total * (magnitude / np.sqrt((total * total).sum(axis=1)))[:, None]
    return _of_adapter(keep, {"l.weight": base, **factors}, wanted.astype(np.float32), replace(TWICE, dora=True))


def _embedding(keep: Keep) -> Step:
    base, a, b = counted(8, 6), counted(2, 8), counted(6, 2)
    return _of_adapter(keep, {"e.weight": base, "e.lora_embedding_A": a, "e.lora_embedding_B": b}, base + 2 * (b @ a).T)


def _experts(keep: Keep) -> Step:
    """Eight of them, [out, in] each; of A the expert is slowest, of B fastest."""
    base, a, b = counted(8, 3, 2), counted(16, 2), counted(3, 16)
    product = np.einsum("ore,eri->eoi", b.reshape(3, 2, 8), a.reshape(8, 2, 2))
    arrays = {"experts.up": base, "experts.lora_A.weight": a, "experts.lora_B.weight": b}
    return _of_adapter(keep, arrays, base + 2 * product, replace(TWICE, parameters=("experts.up",)))


def _joint(keep: Keep) -> Step:
    """Rows of a sum and rows that are as they were, by turns."""
    up, gate, a, b = counted(4, 6), array((4, 6), seed=9), counted(2, 6), counted(4, 2)
    wanted = np.stack([up + 2 * (b @ a), gate], 1).reshape(8, 6)

    def by_turns(source: Catalog) -> Tensor:
        held = [next(s.held for s in source.tensors[f"{name}.weight"].shards) for name in ("up", "gate")]
        shards = tuple(Shard(Box((0, n, 0), (4, n + 1, 6)), each) for n, each in enumerate(held))
        return Tensor("w", SPEC, Loose(shards), view=(4, 2, 6))

    return _of_merged(keep, {"up.weight": up, "gate.weight": gate}, {"up": (a, b)}, by_turns, wanted)


def _joint_turned(keep: Keep) -> Step:
    """Its last rows."""
    base, a, b = counted(12, 8), counted(2, 8), counted(12, 2)

    def turned(source: Catalog) -> Tensor:
        (shard,) = source.tensors["l.weight"].shards
        held = replace(shard.held[0], outer=Box((0, -6), (8, 6)), order=(1, 0))
        return Tensor("w", SPEC, Loose((Shard(WHOLE, (held,)),)))

    return _of_merged(keep, {"l.weight": base}, {"l": (a, b)}, turned, (base + 2 * (b @ a))[6:].T.copy())


def _of_merged(
    keep: Keep,
    base: Mapping[str, np.ndarray],
    factors: Mapping[str, tuple[np.ndarray, np.ndarray]],
    made: Callable[[Catalog], Tensor],
    wanted: np.ndarray,
) -> Step:
    """What is made of what is merged."""
    sides = {f"{n}.lora_{side}.weight": f for n, pair in factors.items() for side, f in zip("AB", pair, strict=True)}
    joined = open_merge(keep({**base, **sides}), Options(), [AdapterAt("", TWICE)]).joined
    source, merge = as_made(joined.source, joined.merge, "")
    source = replace(source, tensors={"w": made(source)})
    return Step(source, lambda dst, options: plan_from(source, dst, options, merge), wanted)


def _trained_whole(keep: Keep) -> Step:
    base, whole = counted(8, 6), array((8, 6), seed=7)
    return _of_adapter(keep, {"l.original_module.weight": base, "l.modules_to_save.default.weight": whole}, whole)


def _tokens(keep: Keep) -> Step:
    base, rows = counted(8, 6), array((3, 6), seed=8)
    wanted = base.copy()
    wanted[[6, 0, 3]] = rows
    arrays = {"e.weight": base, "e.token_adapter.trainable_tokens_delta": rows}
    return _of_adapter(keep, arrays, wanted, replace(TWICE, tokens={"e": (6, 0, 3)}))


def _scaled(keep: Keep) -> Step:
    """Codes, one scale to a row, and what they mean as single floats."""
    codes, scales = array((8, 6), "float8_e4m3fn", seed=4), array((8, 1), seed=5)
    path = keep({"l.weight": codes, "l.weight_scale": scales})
    wanted = (codes.astype(np.float32) * scales).astype(dtype_named("bfloat16"))

    def planned(dst: str, options: Options) -> Plan:
        return plan(path, dst, replace(options, naming=Naming(dequantize=True)))

    return Step(open_source(Source(path)), planned, wanted)


STEPS: Mapping[str, Callable[[Keep], Step]] = {
    "order": _ordered,
    "zeros": _zeros,
    "flat": _flat,
    "LoRA": _lora,
    "DoRA": _dora,
    "embedding": _embedding,
    "experts": _experts,
    "trained whole": _trained_whole,
    "tokens": _tokens,
    "scaled": _scaled,
    "joint": _joint,
    "joint, turned": _joint_turned,
}
