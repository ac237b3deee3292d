"""Checkpoints as MindSpore's arguments name them: files by rank, names changed by a map."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from reshard.families.discover import Found
from reshard.families.headers import index_files
from reshard.families.rank_folders import catalog
from reshard.families.strategies import read_strategy
from reshard.layout.stages import Strategy
from reshard.planning.catalog import Catalog, Tensor


def of_files(files: Mapping[int, str], strategy: str | Strategy = "") -> Catalog:
    """The checkpoint of these files; without a strategy they are one full one."""
    found = Found(
        "", tuple((rank if strategy else 0, str(path)) for rank, path in sorted(files.items())), bool(strategy)
    )
    return catalog(index_files(found), read_strategy(strategy) if strategy else None)


def chosen(source: Catalog, choose: Callable[[Tensor], str | None]) -> Catalog:
    """The same checkpoint with tensors called as ``choose`` says; None leaves one out. Raises ValueError for a name
    that two would get.
    """
    tensors: dict[str, Tensor] = {}
    for tensor in source.tensors.values():
        name = choose(tensor)
        if name is None:
            continue
        if name in tensors:
            raise ValueError(f"two parameters would be called {name}: the second is {tensor.name}")
        tensors[name] = replace(tensor, name=name)
    return replace(source, tensors=tensors)
