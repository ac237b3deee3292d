"""Rank folders: ``rank_x`` with one file each, and a strategy that says how their tensors are cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from reshard.errors import CheckpointError, ReshardError, counted, listed
from reshard.families.draft import Draft
from reshard.families.full import agreed_spec, catalog_of_full, stand_ins, texts_and_notes, whole
from reshard.index import Stored, TensorSpec
from reshard.layout.stages import Strategy, layout_of_shard
from reshard.layout.tensor import Cell, Sharding
from reshard.planning.assembly import ANY_RANK
from reshard.planning.catalog import Catalog, Grid, Held, IndexedFile, Ranks, Tensor
from reshard.planning.decide import Kept
from reshard.planning.identity import STRATEGY, hash_of_strategy
from reshard.planning.names import layer_pattern
from reshard.planning.plan import PlannedFile
from reshard.planning.redundancy import keepers
from reshard.planning.shares import Group, divided

ByRank = Mapping[int, tuple[int, Stored]]
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
    texts, notes = texts_and_notes(files)
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


def _cut(name: str, by_rank: ByRank, strategy: Strategy, stages: Iterable[int]) -> Tensor:
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
            cells.setdefault(of_rank[rank - first], []).append(Held(file, stored.extents))
        expected = {cell: tuple(first + r for r in local) for cell, local in layout.sharding.holders().items()}
        grid = Grid(layout, {c: tuple(h) for c, h in cells.items()}, expected)
        found.append(Tensor(name, TensorSpec(spec.dtype, layout.shape), grid, known=True))
    if not found:
        ranks = sorted(by_rank)
        raise CheckpointError(f"held by rank {ranks[0]} in a stage whose strategy does not have it")
    if len({t.spec for t in found}) > 1:
        raise CheckpointError(f"its stages disagree: {' and '.join(str(t.spec) for t in found)}")
    return next((t for t in found if not t.shards.missing()), found[0])


def _check_stages(name: str, by_rank: ByRank, strategy: Strategy) -> None:
    """A layer's tensor lies in the stages that list it; one without a layer number may be tied and lie in more."""
    if layer_pattern(name) == name:
        return
    for rank in by_rank:
        stage = rank // strategy.devices
        if name not in strategy.stages[stage]:
            raise CheckpointError(f"held by rank {rank}, in stage {stage} whose strategy does not have it")


def _of_no_strategy(name: str, by_rank: ByRank) -> Tensor:
    """One that each rank holds whole, as far as anybody can know."""
    try:
        return whole(name, by_rank, compared=True)
    except CheckpointError as error:
        raise CheckpointError(f"no strategy knows it and {error.message}", hint="leave it out with --exclude") from None


def rank_files(draft: Draft) -> list[PlannedFile]:
    """The files of the target's ranks that are asked for."""
    return _RankFiles(draft).files()


class _RankFiles:
    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._target = draft.target
        self._kept_in: dict[int, list[Kept]] = {}
        for kept in draft.kept:
            for stage in kept.layouts:
                self._kept_in.setdefault(stage, []).append(kept)
        self._varied = frozenset(stage for kept in draft.kept if kept.varied for stage in kept.layouts)
        self._keepers = self._all_keepers() if draft.target.drop_redundancy else {}
        self._forms: dict[tuple[object, ...], int] = {}

    def files(self) -> list[PlannedFile]:
        return [self._file(rank) for rank in self._ranks()]

    def _ranks(self) -> Sequence[int]:
        """The target ranks to make."""
        target = self._target
        if target.ranks is not None:
            return sorted(target.ranks)
        if target.share is None:
            return range(target.world)
        stages = [self._group(stage) for stage in range(target.stages)]
        mine = divided([group for _, group in stages], target.share.count)[target.share.index]
        return sorted(stage * target.devices + stages[stage][0][place] for stage, place in mine)

    def _group(self, stage: int) -> tuple[list[int], Group]:
        """The ranks of a stage, those next to each other that hold the same of most of its bytes; what they write
        and read, from the sizes of shards.
        """
        alike = Counter(
            (kept.layouts[stage], kept.tensor.spec.nbytes, self._keepers.get((stage, kept.name)))
            for kept in self._kept_in.get(stage, ())
        )
        everywhere = 0
        written = [0] * self._target.devices
        weights: Counter[Sharding] = Counter()
        for (layout, full_nbytes, keeping), count in alike.items():
            nbytes = count * full_nbytes // prod(layout.sharding.parts)
            weights[layout.sharding] += nbytes
            everywhere += nbytes if keeping is None else 0
            for rank in keeping or ():
                written[rank] += nbytes
        read = sum(full_nbytes * count for (_, full_nbytes, _), count in alike.items())
        ranks = list(range(self._target.devices))
        if weights:
            cells = weights.most_common(1)[0][0].cells()
            ranks.sort(key=lambda rank: (cells[rank], rank))
        return ranks, Group(tuple(everywhere + written[rank] for rank in ranks), read)

    def _all_keepers(self) -> dict[tuple[int, str], frozenset[int]]:
        """For each stage and tensor of the target's strategy, the local ranks that keep it."""
        kept = {}
        for stage, entries in enumerate(self._target.strategy.stages if self._target.strategy else ()):
            shardings = {k.name: k.layouts[stage].sharding for k in self._kept_in.get(stage, ()) if k.name in entries}
            kept.update({(stage, name): ranks for name, ranks in keepers(shardings).items()})
        return kept

    def _file(self, rank: int) -> PlannedFile:
        target = self._target
        stage, local = divmod(rank, target.devices)
        path = target.single or f"rank_{rank}/{target.prefix}{rank}{target.format.suffix}"
        return PlannedFile(rank, path, rank, local, self._form(stage, local), stage)

    def _form(self, stage: int, local: int) -> int:
        """Thousands of ranks have the form of their stage: it is looked for among names only where they may differ."""
        rank = stage * self._target.devices + local
        texts = self._draft.texts(rank)
        source_rank = self._draft.source_rank(rank) if stage in self._varied else ANY_RANK
        key = (stage, local if self._keepers else ANY_RANK, source_rank, texts)
        if key not in self._forms:
            cuts = tuple(
                self._draft.cut(kept, kept.layouts[stage], source_rank)
                for kept in self._kept_in.get(stage, ())
                if self._keeps(stage, local, kept.name)
            )
            self._forms[key] = self._draft.forms.form(cuts, texts)
        return self._forms[key]

    def _keeps(self, stage: int, local: int, name: str) -> bool:
        keepers = self._keepers.get((stage, name))
        return keepers is None or local in keepers
