"""Strategies: show, merge, compare by meaning."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path

from msgspec import Struct

from reshard.errors import UsageError, counted
from reshard.families.strategies import merge_stages, read_strategy
from reshard.layout.stages import AnySharding, Strategy
from reshard.layout.tensor import Sharding
from reshard.planning.names import compiled, no_match
from reshard.storage.disk import Disk
from reshard.strategy.folder import encode


class LayoutRow(Struct, frozen=True):
    """One tensor in one stage. ``parts``: into how many each dim is cut, optimizer shard included; ``replicas``:
    ranks that hold the same.
    """

    name: str
    stage: int
    device_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    opt_shard: int
    parts: tuple[int, ...]
    replicas: int

    def __str__(self) -> str:
        maps = [list(m) if len(m) > 1 else (m[0] if m else -1) for m in self.tensor_map]
        opt = f"  optimizer shard {self.opt_shard}" if self.opt_shard else ""
        cut = "×".join(map(str, self.parts)) if prod(self.parts) > 1 else "whole"
        replicas = f"{self.replicas} replica" + ("s" if self.replicas > 1 else "")
        return f"stage {self.stage}  {self.name}  {cut}  {replicas}  {list(self.device_matrix)} {maps}{opt}"


class Shown(Struct, frozen=True):
    stages: int
    devices: int
    made: bool
    rows: tuple[LayoutRow, ...]


def show(path: str, pattern: str = "") -> Shown:
    wanted = compiled(pattern)
    strategy = read_strategy(path)
    if pattern and (unmatched := no_match(pattern, strategy.names())):
        raise UsageError(unmatched, hint="without --tensor all names are listed")
    rows = tuple(
        _row(name, stage, entry if isinstance(entry, Sharding) else entry.sharding)
        for stage, entries in enumerate(strategy.stages)
        for name, entry in sorted(entries.items())
        if wanted.search(name)
    )
    return Shown(len(strategy.stages), strategy.devices, strategy.made, rows)


def _row(name: str, stage: int, sharding: Sharding) -> LayoutRow:
    replicas = sharding.devices // prod(sharding.parts)
    return LayoutRow(
        name, stage, sharding.device_matrix, sharding.tensor_map, sharding.opt_shard, sharding.parts, replicas
    )


def merge(folder: str, out: str, *, overwrite: bool = False) -> str:
    """Write the merged file of a folder's stages; says what was merged. Raises StrategyError, UsageError."""
    if os.path.isdir(out):
        raise UsageError("a folder, where a file should go", out, "name a file in it")
    if os.path.lexists(out) and not overwrite:
        raise UsageError("the file exists", out, "give --overwrite, or another name")
    merged = merge_stages(folder)
    if Path(out).suffix != "." + merged.kind:
        raise UsageError(f"the strategies are .{merged.kind}", out, f"name the merged file *.{merged.kind}")
    Disk().write_whole(str(Path(out)), encode(merged, current_stage=1), fsync=True)
    stages = {name.split("-", 1)[0] for name in merged.layouts}
    return f"{out}: {counted(len(merged.layouts), 'tensor')} of {counted(len(stages), 'stage')}"


def diff(a: str, b: str) -> list[str]:
    """Lines that say where two strategies mean something else: the box of a tensor on some rank, or its stage."""
    return list(_differences(read_strategy(a), read_strategy(b)))


def _differences(a: Strategy, b: Strategy) -> Iterator[str]:
    if (len(a.stages), a.devices) != (len(b.stages), b.devices):
        sizes = [f"{counted(len(s.stages), 'stage')} of {counted(s.devices, 'rank')}" for s in (a, b)]
        yield "{} in A, {} in B".format(*sizes)
        return
    for stage, (ours, theirs) in enumerate(zip(a.stages, b.stages, strict=True)):
        for name in sorted(ours.keys() | theirs.keys()):
            if name not in theirs or name not in ours:
                yield f"stage {stage}  {name}: only in {'A' if name in ours else 'B'}"
            elif _meaning(ours[name]) != _meaning(theirs[name]):
                yield f"stage {stage}  {name}: cut differently"


def _meaning(entry: AnySharding) -> tuple[object, ...]:
    """What decides every rank's box whatever the shape. A flattened JSON entry is compared as it is flattened."""
    sharding = entry if isinstance(entry, Sharding) else entry.sharding
    return (sharding.parts, sharding.cells())
