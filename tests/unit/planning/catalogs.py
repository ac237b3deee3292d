"""Catalogs made from nothing but names and shapes: no file is on any disk."""

from __future__ import annotations

from collections.abc import Mapping

from reshard.families.rank_folders import catalog
from reshard.index import Contents, Extent, Stored, TensorSpec
from reshard.layout.stages import AnySharding, Strategy
from reshard.layout.tensor import Sharding
from reshard.planning.catalog import Catalog, IndexedFile

ROWS = Sharding((2,), ((0,),))
"""A vector cut in two, on two ranks."""
WHOLE = Sharding((2,), ((),))

Shapes = Mapping[str, tuple[int, ...]]


def strategy(*stages: Mapping[str, AnySharding], devices: int = 2) -> Strategy:
    return Strategy(tuple(stages), devices, "strategy/")


def file(rank: int, shapes: Shapes, texts: Mapping[str, str] | None = None, dtype: str = "float32") -> IndexedFile:
    """The index of a file whose tensors lie one after the other."""
    at, tensors = 0, {}
    for name, shape in shapes.items():
        spec = TensorSpec(dtype, shape)
        tensors[name] = Stored(spec, (Extent(at, spec.nbytes),))
        at += spec.nbytes
    name = f"rank_{rank}/m.ckpt"
    return IndexedFile(name, name, at, 0, rank, "ckpt", Contents(tensors, texts or {}))


def full(shapes: Shapes) -> Catalog:
    """One full checkpoint."""
    return catalog([file(0, shapes)], None)


def ranks(strategy: Strategy, *shapes: Shapes) -> Catalog:
    """Rank r holds ``shapes[r]``."""
    return catalog([file(rank, held) for rank, held in enumerate(shapes)], strategy)
