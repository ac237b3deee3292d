"""Experts that an adapter has as one parameter and the base one by one, as transformers keeps them and saves them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from reshard.index import MADE, Extent, TensorSpec
from reshard.layout.box import Box
from reshard.planning.catalog import Catalog, Held, Loose, Shard, Tensor, is_viewed

_PARTS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
"""By the parameter, what its rows are of each expert."""
_FORMERLY = (".mlp.", ".block_sparse_moe.")


class FusedExperts(Struct, frozen=True):
    """A parameter of all experts, and the names of what it is made of, in the order of its rows."""

    tensor: Tensor
    names: tuple[str, ...]


def saved_as(layer: str) -> str:
    """What a layer of transformers' may be called in the files, as Mixtral's."""
    return layer.replace(*_FORMERLY)


def fused_experts(tensors: Mapping[str, Tensor], layers: Iterable[str]) -> dict[str, FusedExperts]:
    """Parameters of those layers that ``tensors`` have one by one, by name."""
    found = {}
    for layer in layers:
        for there in dict.fromkeys((layer, saved_as(layer))):
            for name, sections in ((f"{layer}.{end}", sections) for end, ways in _PARTS.items() for sections in ways):
                names = _experts(tensors, there, sections)
                if names and name not in tensors:
                    found[name] = FusedExperts(_fused(name, [tensors[n] for n in names], len(sections)), names)
    return found


def _experts(tensors: Mapping[str, Tensor], layer: str, sections: tuple[str, ...]) -> tuple[str, ...]:
    """The names of all sections of all experts, where they are matrices alike; () elsewhere."""
    names: list[str] = []
    while f"{layer}.{len(names) // len(sections)}.{sections[0]}.weight" in tensors:
        names += [f"{layer}.{len(names) // len(sections)}.{section}.weight" for section in sections]
    parts = [tensors[name] for name in names if name in tensors]
    alike = len({(part.spec, part.cast_to) for part in parts}) == 1 and len(parts) == len(names)
    plain = alike and len(parts[0].spec.shape) == 2 and not any(part.scales or is_viewed(part) for part in parts)
    return tuple(names) if plain else ()


def _fused(name: str, parts: Sequence[Tensor], sections: int) -> Tensor:
    rows, columns = parts[0].spec.shape
    shards = []
    for number, part in enumerate(parts):
        expert, section = divmod(number, sections)
        for shard in part.shards:
            held = tuple(_lifted_held(each, expert, section * rows) for each in shard.held)
            shards.append(Shard(_lifted(shard.box, expert, section * rows), held, shard.expected))
    return Tensor(
        name,
        TensorSpec(parts[0].spec.dtype, (len(parts) // sections, sections * rows, columns)),
        Loose(tuple(sorted(shards, key=lambda shard: shard.box))),
        known=all(part.known for part in parts),
        compared=any(part.compared for part in parts),
        cast_to=parts[0].cast_to,
    )


def _lifted(box: Box, expert: int, row: int) -> Box:
    (top, left), (bottom, right) = box.start, box.stop
    return Box((expert, top + row, left), (expert + 1, bottom + row, right))


def _lifted_held(held: Held, expert: int, row: int) -> Held:
    outer = _lifted(held.outer, expert, row) if held.outer else None
    return replace(held, outer=outer, order=(0, *(dim + 1 for dim in held.order)) if held.order else ())


def one_by_one(source: Catalog, fused: Mapping[str, FusedExperts]) -> Catalog:
    """The catalog without those parameters; what was made of one is made of its experts."""
    made = dict(source.tensors)
    for name, experts in fused.items():
        whole = made.pop(name)
        if any(held.file <= MADE for shard in whole.shards for held in shard.held):  # or nothing was added to it
            made |= {part.name: part for part in _apart(whole, experts.names)}
    return replace(source, tensors=made)


def _apart(whole: Tensor, names: tuple[str, ...]) -> Iterator[Tensor]:
    """Equal parts of the bytes that make it, one after the other."""
    (shard,) = whole.shards
    experts, rows, columns = whole.spec.shape
    spec = TensorSpec(whole.spec.dtype, (experts * rows // len(names), columns))
    for number, name in enumerate(names):
        held = Held(shard.held[0].file, (Extent(number * spec.nbytes, spec.nbytes),))
        yield Tensor(name, spec, Loose((Shard(Box.whole(spec.shape), (held,)),)), whole.known)
