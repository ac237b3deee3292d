"""Rank folders: ``rank_x`` with one file each, and a strategy that says how their tensors are cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from reshard.errors import CheckpointError, ReshardError, counted, listed
from reshard.families.full import agreed_spec, catalog_of_full, stand_ins, texts_and_notes, whole
from reshard.index import Stored, TensorSpec
from reshard.layout.stages import Strategy, layout_of_shard
from reshard.layout.tensor import Cell, Sharding
from reshard.planning.catalog import STRATEGY, Catalog, Grid, Held, IndexedFile, Ranks, Tensor
from reshard.planning.identity import hash_of_strategy
from reshard.planning.names import layer_pattern

HeldByRank = Mapping[int, tuple[int, Stored]]
"""For each rank that holds a tensor the number of its file, and what that holds."""


def catalog(files: Sequence[IndexedFile], strategy: Strategy | None) -> Catalog:
    """Of rank folders by their strategy; without one, of a full checkpoint. Raises CheckpointError."""
    return catalog_of_ranks(files, strategy) if strategy else catalog_of_full(files)


def catalog_of_ranks(files: Sequence[IndexedFile], strategy: Strategy) -> Catalog:
    """Join file headers and strategy. Raises CheckpointError that lists every fault found."""
    _check_ranks(files, strategy)
    held: dict[str, dict[int, tuple[int, Stored]]] = {}
    for i, file in enumerate(files):
        for name, stored in file.contents.tensors.items():
            held.setdefault(name, {})[file.rank] = (i, stored)
    faults: list[str] = []
    tensors: dict[str, Tensor] = {}
    for name, by_rank in held.items():
        stages = strategy.stages_of(name)
        try:
            tensors[name] = _cut(name, by_rank, strategy, stages) if stages else _of_no_strategy(name, by_rank)
        except ReshardError as error:
            faults.append(f"{name}: {error.message}")
    if faults:
        raise CheckpointError(
            "the files do not fit their strategy:\n" + listed(faults),
            hint="is this the strategy that the checkpoint was saved with?",
        )
    texts, notes, withheld = texts_and_notes(files)
    ranks = Ranks(len(strategy.stages), strategy.devices, strategy.where)
    return Catalog(
        tuple(files),
        tensors,
        texts,
        notes,
        ranks,
        tuple(dict.fromkeys(name for stage in strategy.stages for name in stage)),
        {STRATEGY: hash_of_strategy(strategy)},
        (*stand_ins(files, ranks), *_redundancy(files, tensors, notes)),
        "rank folders",
        withheld=withheld,
        own=strategy,
    )


def _check_ranks(files: Sequence[IndexedFile], strategy: Strategy) -> None:
    beyond = sorted({f.rank for f in files if f.rank >= strategy.world})
    if beyond:
        raise CheckpointError(
            f"rank_{beyond[0]} to rank_{beyond[-1]} are beyond the {counted(strategy.world, 'rank')} of the strategy "
            f"(stages: {len(strategy.stages)}, ranks in each: {strategy.devices})",
            where=strategy.where,
            hint="the strategy is of another job, or of one pipeline stage: give the folder of all stages",
        )


def _redundancy(
    files: Sequence[IndexedFile], tensors: Mapping[str, Tensor], notes: Mapping[str, str]
) -> tuple[str, ...]:
    """A warning where the files' own flag and what they hold disagree: what they hold is what counts."""
    flag = notes.get("remove_redundancy")
    if flag is None:
        return ()
    present = {f.rank for f in files}
    grids = [t.shards for t in tensors.values() if isinstance(t.shards, Grid)]
    thinned = sum(
        any(len(held) < len(present.intersection(grid.expected.get(cell, ()))) for cell, held in grid.cells.items())
        for grid in grids
    )
    replicated = any(len(ranks) > 1 for grid in grids for ranks in grid.expected.values())
    if flag == "True" and not thinned and replicated:
        return ("the files say that redundancy was removed, and every replica is there: all are read as they are",)
    if flag != "True" and thinned:
        return (
            f"the files say that every rank has its shards, and {counted(thinned, 'tensor')} lie on some ranks only",
        )
    return ()


def _cut(name: str, by_rank: HeldByRank, strategy: Strategy, stages: Iterable[int]) -> Tensor:
    """A tied tensor may lie in several stages: the first stage that holds it whole is taken."""
    _check_stages(name, by_rank, strategy)
    found: list[Tensor] = []
    for stage in stages:
        first = stage * strategy.devices
        ranks = [r for r in by_rank if first <= r < first + strategy.devices]
        if not ranks:
            continue
        spec = agreed_spec({r: by_rank[r] for r in ranks})
        layout = layout_of_shard(strategy.stages[stage][name], spec.shape)
        cells: dict[Cell, list[Held]] = {}
        of_rank = layout.sharding.cells()
        for rank in sorted(ranks):
            file, stored = by_rank[rank]
            cells.setdefault(of_rank[rank - first], []).append(Held(file, stored.extents, order=stored.order))
        grid = Grid(layout, {c: tuple(h) for c, h in cells.items()}, _expected(layout.sharding, first))
        found.append(Tensor(name, TensorSpec(spec.dtype, layout.shape), grid, known=True))
    if not found:
        ranks = sorted(by_rank)
        raise CheckpointError(f"held by rank {ranks[0]} in a stage whose strategy does not have it")
    if len({t.spec for t in found}) > 1:
        raise CheckpointError(f"its stages disagree: {' and '.join(str(t.spec) for t in found)}")
    return next((t for t in found if not t.shards.missing()), found[0])


@lru_cache(maxsize=1024)
def _expected(sharding: Sharding, first: int) -> Mapping[Cell, tuple[int, ...]]:
    """The ranks that should hold each cell, in a stage that begins with this rank; of equal cuts the same object."""
    return {cell: tuple(first + r for r in local) for cell, local in sharding.holders().items()}


def _check_stages(name: str, by_rank: HeldByRank, strategy: Strategy) -> None:
    """A layer's tensor lies in the stages that list it; one without a layer number may be tied and lie in more."""
    if layer_pattern(name) == name:
        return
    for rank in by_rank:
        stage = rank // strategy.devices
        if name not in strategy.stages[stage]:
            raise CheckpointError(f"held by rank {rank}, in stage {stage} whose strategy does not have it")


def _of_no_strategy(name: str, by_rank: HeldByRank) -> Tensor:
    """One that each rank holds whole, as far as anybody can know."""
    try:
        return whole(name, by_rank, compared=True)
    except CheckpointError as error:
        raise CheckpointError(f"no strategy knows it and {error.message}", hint="leave it out with --exclude") from None
