"""Inspect: what a checkpoint holds, from its headers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError, UsageError
from reshard.families.discover import Select, files_of
from reshard.families.full import catalog_of_full
from reshard.families.headers import index_files
from reshard.families.open_checkpoint import open_source
from reshard.families.ours import ByManifest, by_manifest, has_manifest, unfinished_target
from reshard.families.registry import FALLBACK, listing, recognised
from reshard.families.source import Source, source_at
from reshard.names.naming import convention_of
from reshard.names.wishes import MEGATRON
from reshard.planning.catalog import Catalog, IndexedFile
from reshard.planning.names import is_adapter, is_lora, no_match


class TensorRow(Struct, frozen=True):
    """One tensor. ``parts``: into how many it is cut in each dim; ``copies``: files that hold each shard, fewest
    first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[int, ...]
    copies: int
    missing: int


class Inspection(Struct, frozen=True):
    """What a checkpoint holds. The fingerprints are empty where they were not computed.

    ``family``: what kind of checkpoint it is and what wrote it, in words. ``args``: what that was told, where it kept
    it. ``names``: whose names its tensors have, "" where these do not tell.
    """

    family: str
    files: int
    nbytes: int
    ranks: int
    stages: int
    tensors: tuple[TensorRow, ...]
    texts: dict[str, str]
    warnings: tuple[str, ...]
    fingerprint: str = ""
    weights_fingerprint: str = ""
    args: Mapping[str, Any] = {}
    names: str = ""

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(prod(row.shape) for row in self.tensors)


def opened(
    path: str | Source, strategy: str = "", select: Select = "natural", suffix: str = "", rank: int | None = None
) -> Catalog:
    """Read headers. Without the strategy of rank folders, the tensors are one rank's shards.

    Args:
        path: of a checkpoint; or a ``Source``, which says all that is asked for.
        rank: only the shards that this rank's file holds.
    """
    source = source_at(path, strategy, select, suffix)
    there = listing(source.path)
    family = recognised(there, source.family).name
    if family not in ("ranks", FALLBACK) and rank is not None:
        raise UsageError(f"--on-rank is of rank folders, and this is {family}", there.path, "leave --on-rank out")
    if family != "ranks" or (source.strategy and rank is None):
        made = open_source(source)
        _refuse_absent(rank, made.files, source.path)
        if not is_adapter(made.tensors):
            return made
        return replace(made, family=f"an adapter ({'LoRA' if any(map(is_lora, made.tensors)) else 'PEFT'})")
    if rank is None and has_manifest(there.path):
        with suppress(CheckpointError):  # one that does not count: a rank's shards are shown, and why
            return open_source(source)
    found = files_of(there, source.select, source.suffix)
    files = index_files(found)
    ours = by_manifest(found, files) if rank is None else ByManifest()
    made = _of_rank(files, rank, source.path)
    empty = tuple(f"rank_{rank} holds no weight file" for rank in found.empty[:4])
    doubts = filter(None, [ours.untrusted, unfinished_target(source.path)])
    return replace(made, warnings=(*found.warnings, *doubts, *made.warnings, *empty))


def _of_rank(files: list[IndexedFile], rank: int | None, path: str) -> Catalog:
    warnings: tuple[str, ...] = ()
    family = "the file of rank {}"
    if rank is None:
        rank = files[0].rank
        if len(files) > 1:
            warnings = (f"no --strategy: shapes are those of the shards of rank {rank}",)
            family = "rank folders without their strategy, as rank {} holds them"
    _refuse_absent(rank, files, path)
    mine = [f for f in files if f.rank == rank]
    others = (f for f in files if f.rank != rank)
    return replace(catalog_of_full(mine), files=(*mine, *others), warnings=warnings, family=family.format(rank))


def _refuse_absent(rank: int | None, files: Sequence[IndexedFile], path: str) -> None:
    ranks = sorted({file.rank for file in files})
    if rank is not None and rank not in ranks:
        there = ", ".join(map(str, ranks[:16])) + (" …" if len(ranks) > 16 else "")
        raise CheckpointError(f"no file of rank {rank}", path, f"ranks {there} are there")


def inspect(
    path: str | Source, strategy: str = "", select: Select = "natural", suffix: str = "", rank: int | None = None
) -> Inspection:
    """Read headers and say what is there; arguments as of ``opened``."""
    return inspection(opened(path, strategy, select, suffix, rank))


def only(source: Catalog, pattern: re.Pattern[str]) -> Catalog:
    """The checkpoint without tensors whose names do not match. Raises UsageError where none matches."""
    if unmatched := no_match(pattern.pattern, source.tensors):
        raise UsageError(unmatched, hint="without --tensor all names are listed")
    return replace(source, tensors={name: t for name, t in source.tensors.items() if pattern.search(name)})


def inspection(source: Catalog) -> Inspection:
    """What a checkpoint holds, as a table."""
    rows = []
    for tensor in source.tensors.values():
        copies = min((len(shard.held) for shard in tensor.shards if shard.held), default=0)
        rows.append(
            TensorRow(
                tensor.name,
                tensor.spec.dtype,
                tensor.spec.shape,
                tensor.parts,
                copies,
                len(tensor.shards.missing()),
            )
        )
    return Inspection(
        source.family,
        len(source.files),
        sum(f.nbytes for f in source.files),
        len({f.rank for f in source.files}),
        source.ranks.stages,
        tuple(rows),
        {name: next(iter(by_rank.values())) for name, by_rank in source.texts.items()},
        source.warnings,
        args=source.args,
        names="" if is_adapter(source.tensors) or source.kind == MEGATRON else convention_of(source.tensors),
    )


def tensor_lines(found: Inspection) -> list[str]:
    """The tensors as an aligned table, and strings below it."""
    cells = [
        (
            row.name,
            row.dtype,
            "×".join(map(str, row.shape)) or "scalar",
            "×".join(map(str, row.parts)) if prod(row.parts) > 1 else "whole",
            f"{row.copies} copies" if row.copies != 1 else "1 copy",
            f"{row.missing} of {prod(row.parts)} shards MISSING" if row.missing else "",
        )
        for row in found.tensors
    ]
    widths = [max((len(c[i]) for c in cells), default=0) for i in range(6)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return lines + [f"{name} = {text!r}" for name, text in found.texts.items()]


def shown_args(found: Inspection) -> list[str]:
    """The arguments of the program that wrote it, in words."""
    from reshard.families.megatron_args import shown  # with all that reads pickles

    return shown(found.args)
