"""What a checkpoint holds: every tensor, how it is cut, and which files hold each of its cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from reshard.errors import CheckpointError, ReshardError, counted, listed
from reshard.index import Contents, Stored, TensorSpec
from reshard.layout.tensor import Cell, Layout, Sharding
from reshard.planning.names import layer_pattern
from reshard.strategy.strategy import Strategy, layout_of_full, layout_of_shard


class IndexedFile(Struct, frozen=True):
    """A weight file of which the headers were read.

    Attributes:
        name: its path below the checkpoint's folder.
        rank: 0 for all files of a full checkpoint.
    """

    path: str
    name: str
    nbytes: int
    mtime_ns: int
    rank: int
    format: str
    contents: Contents


class Held(Struct, frozen=True):
    """A shard as one file holds it; ``file`` counts the checkpoint's files."""

    file: int
    stored: Stored


class Tensor(Struct, frozen=True):
    """A tensor of a checkpoint.

    Attributes:
        spec: dtype and full shape.
        layout: how it is cut; of one uncut part where no strategy says.
        cells: the files that hold each cell; a cell that none holds is absent.
        laid_out: whether the checkpoint's strategy knows it. One that a strategy does not know is held whole by
            each of its ranks.
        expected: global ranks that the strategy names for each cell, for messages.
    """

    name: str
    spec: TensorSpec
    layout: Layout
    cells: Mapping[Cell, tuple[Held, ...]]
    laid_out: bool = False
    expected: Mapping[Cell, tuple[int, ...]] = {}

    def missing(self) -> tuple[Cell, ...]:
        """Cells that no file holds."""
        return tuple(sorted(cell for cell in self.layout.sharding.holders() if cell not in self.cells))


class Catalog(Struct, frozen=True):
    """All of a checkpoint's tensors, in the order in which its files name them."""

    files: tuple[IndexedFile, ...]
    strategy: Strategy | None
    tensors: Mapping[str, Tensor]
    texts: Mapping[str, Mapping[int, str]]
    notes: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    def unlaid(self) -> tuple[Tensor, ...]:
        """Tensors on several ranks that the strategy does not know: whether they agree, only their bytes tell."""
        if self.strategy is None:
            return ()
        return tuple(t for t in self.tensors.values() if not t.laid_out)


def catalog(files: Sequence[IndexedFile], strategy: Strategy | None) -> Catalog:
    """Join file headers and strategy. Raises CheckpointError that lists every fault found."""
    if strategy is None:
        held = _held_once(files)
    else:
        _check_ranks(files, strategy)
        held = _held(files)
    faults: list[str] = []
    tensors: dict[str, Tensor] = {}
    for name, by_rank in held.items():
        stages = strategy.stages_of(name) if strategy else ()
        try:
            if strategy and stages:
                tensors[name] = _laid_out(name, by_rank, strategy, stages, files)
            else:
                tensors[name] = _whole(name, by_rank, files)
        except ReshardError as error:
            faults.append(f"{name}: {error.message}")
    if faults:
        raise CheckpointError(
            "the files do not fit their strategy:\n" + listed(faults) if strategy else listed(faults),
            hint="is this the strategy that the checkpoint was saved with?" if strategy else "",
        )
    texts: dict[str, dict[int, str]] = {}
    notes: dict[str, str] = {}
    for file in files:
        notes = {**file.contents.notes, **notes}
        for name, text in file.contents.texts.items():
            texts.setdefault(name, {})[file.rank] = text
    warnings = (*_stand_ins(files, strategy), *_redundancy(files, tensors, notes))
    return Catalog(tuple(files), strategy, tensors, texts, notes, warnings)


def _held(files: Sequence[IndexedFile]) -> dict[str, dict[int, Held]]:
    held: dict[str, dict[int, Held]] = {}
    for i, file in enumerate(files):
        for name, stored in file.contents.tensors.items():
            held.setdefault(name, {})[file.rank] = Held(i, stored)
    return held


def _held_once(files: Sequence[IndexedFile]) -> dict[str, dict[int, Held]]:
    """As _held, for the files of one full checkpoint, in which each tensor stands once."""
    held: dict[str, dict[int, Held]] = {}
    faults = []
    for i, file in enumerate(files):
        for name, stored in file.contents.tensors.items():
            if name in held:
                faults.append(f"{name}: in {files[held[name][0].file].path} and again in {file.path}")
            held[name] = {0: Held(i, stored)}
    if faults:
        raise CheckpointError(
            "tensors stand in two files of one checkpoint:\n" + listed(faults),
            hint="are these several checkpoints in one folder? name one file",
        )
    return held


def _check_ranks(files: Sequence[IndexedFile], strategy: Strategy) -> None:
    beyond = sorted({f.rank for f in files if f.rank >= strategy.world})
    if beyond:
        raise CheckpointError(
            f"rank_{beyond[0]} to rank_{beyond[-1]} are beyond the {counted(strategy.world, 'rank')} of the strategy "
            f"(stages: {len(strategy.stages)}, ranks in each: {strategy.devices})",
            where=strategy.where,
            hint="the strategy is of another job, or of one pipeline stage: give the folder of all stages",
        )


def _stand_ins(files: Sequence[IndexedFile], strategy: Strategy | None) -> tuple[str, ...]:
    """A warning where ranks have no file: their replicas stand in, and what none holds the plan refuses."""
    if strategy is None:
        return ()
    absent = sorted(set(range(strategy.world)) - {f.rank for f in files})
    if not absent:
        return ()
    ranks = ", ".join(f"rank_{r}" for r in absent[:8]) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
    return (f"no file of {ranks}: shards are taken from replicas on other ranks, where there are any",)


def _redundancy(
    files: Sequence[IndexedFile], tensors: Mapping[str, Tensor], notes: Mapping[str, str]
) -> tuple[str, ...]:
    """A warning where the files' own flag and what they hold disagree: what they hold is what counts."""
    flag = notes.get("remove_redundancy")
    if flag is None:
        return ()
    present = {f.rank for f in files}
    thinned = sum(
        any(len(held) < len(present.intersection(t.expected.get(cell, ()))) for cell, held in t.cells.items())
        for t in tensors.values()
    )
    replicated = any(len(ranks) > 1 for t in tensors.values() for ranks in t.expected.values())
    if flag == "True" and not thinned and replicated:
        return ("the files say that redundancy was removed, and every replica is there: all are read as they are",)
    if flag != "True" and thinned:
        return (
            f"the files say that every rank has its shards, and {counted(thinned, 'tensor')} lie on some ranks only",
        )
    return ()


def _laid_out(
    name: str,
    by_rank: Mapping[int, Held],
    strategy: Strategy,
    stages: Iterable[int],
    files: Sequence[IndexedFile],
) -> Tensor:
    """A tied tensor may lie in several stages: the first stage that holds it whole is taken."""
    _check_stages(name, by_rank, strategy)
    found: list[Tensor] = []
    for stage in stages:
        first = stage * strategy.devices
        ranks = [r for r in by_rank if first <= r < first + strategy.devices]
        if not ranks:
            continue
        spec = _agreed_spec({r: by_rank[r] for r in ranks}, files)
        layout = layout_of_shard(strategy.stages[stage][name], spec.shape)
        cells: dict[Cell, list[Held]] = {}
        of_rank = layout.sharding.cells()
        for rank in sorted(ranks):
            cells.setdefault(of_rank[rank - first], []).append(by_rank[rank])
        expected = {cell: tuple(first + r for r in local) for cell, local in layout.sharding.holders().items()}
        full = TensorSpec(spec.dtype, layout.shape)
        found.append(Tensor(name, full, layout, {c: tuple(h) for c, h in cells.items()}, True, expected))
    if not found:
        ranks = sorted(by_rank)
        raise CheckpointError(f"held by rank {ranks[0]} in a stage whose strategy does not have it")
    if len({t.spec for t in found}) > 1:
        raise CheckpointError(f"its stages disagree: {' and '.join(str(t.spec) for t in found)}")
    return next((t for t in found if not t.missing()), found[0])


def _check_stages(name: str, by_rank: Mapping[int, Held], strategy: Strategy) -> None:
    """A layer's tensor lies in the stages that list it; one without a layer number may be tied and lie in more."""
    if layer_pattern(name) == name:
        return
    for rank in by_rank:
        stage = rank // strategy.devices
        if name not in strategy.stages[stage]:
            raise CheckpointError(f"held by rank {rank}, in stage {stage} whose strategy does not have it")


def _whole(name: str, by_rank: Mapping[int, Held], files: Sequence[IndexedFile]) -> Tensor:
    try:
        spec = _agreed_spec(by_rank, files)
    except CheckpointError as error:
        raise CheckpointError(f"no strategy knows it and {error.message}", hint="leave it out with --exclude") from None
    layout = layout_of_full(Sharding.whole(1, len(spec.shape)), spec.shape)
    cell = (0,) * len(spec.shape)
    return Tensor(name, spec, layout, {cell: tuple(by_rank[r] for r in sorted(by_rank))})


def _agreed_spec(by_rank: Mapping[int, Held], files: Sequence[IndexedFile]) -> TensorSpec:
    specs: dict[TensorSpec, int] = {}
    for rank in sorted(by_rank):
        specs.setdefault(by_rank[rank].stored.spec, rank)
    if len(specs) > 1:
        shown = ", ".join(f"{spec} on rank {rank}" for spec, rank in list(specs.items())[:4])
        raise CheckpointError(f"its shards differ: {shown}")
    return next(iter(specs))
