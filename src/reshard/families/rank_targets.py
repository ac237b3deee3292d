"""Targets of rank folders, each with the slices of its rank; and one full checkpoint, which is a rank alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import ClassVar

from msgspec import Struct

from reshard.errors import UsageError
from reshard.families.targets import PREFIX, AskedTarget, format_asked
from reshard.formats.base import Framed
from reshard.layout.stages import Strategy
from reshard.layout.tensor import Sharding
from reshard.planning.assembly import ANY_RANK
from reshard.planning.catalog import Catalog
from reshard.planning.decide import Kept
from reshard.planning.plan import PlannedFile
from reshard.planning.shares import Group, divided
from reshard.planning.target import Draft, Files, Kind


class RankTarget(Struct, frozen=True):
    """Files called ``rank_r/{prefix}{r}{suffix}``.

    ``drop_redundancy``: of equal shards one rank alone keeps its own.
    """

    strategy: Strategy
    format: Framed
    prefix: str = PREFIX
    drop_redundancy: bool = False

    name: ClassVar[str] = "ranks"

    def __post_init__(self) -> None:
        _check_prefix(self.prefix)

    def files(self, draft: Draft) -> Files:
        made = ByRank(draft, self.format, drop_redundancy=self.drop_redundancy)
        devices = self.strategy.devices
        planned = (
            PlannedFile(
                rank, _path(rank, self.prefix, self.format), rank, rank % devices, made.form(rank), rank // devices
            )
            for rank in made.ranks()
        )
        return Files(tuple(planned), self.strategy.world)


class FullTarget(Struct, frozen=True):
    """One file, called ``path`` or as a rank's alone."""

    format: Framed
    path: str = ""
    prefix: str = PREFIX

    name: ClassVar[str] = "full"
    strategy: ClassVar[None] = None

    def __post_init__(self) -> None:
        _check_prefix(self.prefix)

    def files(self, draft: Draft) -> Files:
        form = ByRank(draft, self.format).form(0)
        path = self.path or _path(0, self.prefix, self.format)
        return Files(draft.asked_for((PlannedFile(0, path, 0, 0, form, 0),)), 1)


def ranks_or_full(strategy: Strategy | None, format: Framed, *, drop_redundancy: bool = False) -> Kind:
    """The target of a job that has a strategy, or of one without."""
    if strategy is None:
        return FullTarget(format)
    return RankTarget(strategy, format, drop_redundancy=drop_redundancy)


def ranks_asked(asked: AskedTarget, source: Catalog) -> RankTarget:
    if asked.strategy is None:
        raise UsageError("rank folders, and no strategy that says what each holds", hint="give --dst-strategy")
    return RankTarget(asked.strategy, format_asked(asked, source), asked.prefix, asked.drop_redundancy)


def full_asked(asked: AskedTarget, source: Catalog) -> FullTarget:
    return FullTarget(format_asked(asked, source), asked.single, asked.prefix)


def _path(rank: int, prefix: str, format: Framed) -> str:
    return f"rank_{rank}/{prefix}{rank}{format.suffix}"


def _check_prefix(prefix: str) -> None:
    if "/" in prefix or "\0" in prefix:
        raise UsageError(f"prefix {prefix!r} would leave its folder")
    if prefix != prefix.encode("utf-8", "ignore").decode():
        raise UsageError(f"prefix {prefix!r} is not Unicode", hint="file names of a target are UTF-8")


class ByRank:
    """What each rank of the target's strategy holds, in files of one format; without a strategy there is one rank."""

    def __init__(self, draft: Draft, format: Framed, *, drop_redundancy: bool = False) -> None:
        self._draft = draft
        self._target = draft.target
        self._format = format
        self._notes = draft.notes(format, drop_redundancy=drop_redundancy)
        self._kept_in: dict[int, list[Kept]] = {}
        for kept in draft.kept:
            for stage in kept.layouts:
                self._kept_in.setdefault(stage, []).append(kept)
        self._varied = frozenset(stage for kept in draft.kept if kept.varied for stage in kept.layouts)
        self._keepers = self._all_keepers() if drop_redundancy else {}
        self._forms: dict[tuple[object, ...], int] = {}

    def ranks(self) -> Sequence[int]:
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

    def form(self, rank: int) -> int:
        """The form of a rank's file. Thousands of ranks have that of their stage: it is looked for among names only
        where they may differ.
        """
        stage, local = divmod(rank, self._target.devices)
        texts = self._draft.texts(rank)
        source_rank = self._draft.source_rank(rank) if stage in self._varied else ANY_RANK
        key = (stage, local if self._keepers else ANY_RANK, source_rank, texts)
        if key not in self._forms:
            cuts = tuple(
                self._draft.cut(kept, kept.layouts[stage], source_rank)
                for kept in self._kept_in.get(stage, ())
                if self._keeps(stage, local, kept.name)
            )
            self._forms[key] = self._draft.form(cuts, texts, self._format, self._notes)
        return self._forms[key]

    def _keeps(self, stage: int, local: int, name: str) -> bool:
        keepers = self._keepers.get((stage, name))
        return keepers is None or local in keepers


def keepers(shardings: Mapping[str, Sharding]) -> dict[str, frozenset[int]]:
    """Which ranks of a stage keep their shard of each tensor where replicas are dropped: one of every replica group.

    As MindSpore's training saves them (``remove_redundancy``): tensors with the same group of replicas, sorted by name,
    go to the members of the group in turn. Source: MindSpore 2.7.2, mindspore/train/_utils.py.

    >>> matrix = (2, 2)
    >>> kept = keepers({"n": Sharding(matrix, ((),)), "w1": Sharding(matrix, ((0,),)), "w2": Sharding(matrix, ((0,),))})
    >>> {name: sorted(ranks) for name, ranks in kept.items()}
    {'n': [0], 'w1': [0, 1], 'w2': [2, 3]}
    """
    turns: dict[tuple[int, ...], int] = {}
    kept = {}
    for name in sorted(shardings):
        ranks = []
        for group in shardings[name].holders().values():
            turn = turns.get(group, 0)
            turns[group] = turn + 1
            ranks.append(group[turn % len(group)])
        kept[name] = frozenset(ranks)
    return kept
