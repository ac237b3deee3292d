"""Full checkpoints: each tensor whole, in one file or in several parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from reshard.errors import CheckpointError, listed
from reshard.index import Stored, TensorSpec
from reshard.layout.stages import layout_of_full
from reshard.layout.tensor import Cell, Layout, Sharding
from reshard.planning.catalog import Catalog, Grid, Held, IndexedFile, Ranks, Tensor


def catalog_of_full(files: Sequence[IndexedFile]) -> Catalog:
    """Join the headers of files in which each tensor stands once. Raises CheckpointError for one that stands twice."""
    tensors: dict[str, Tensor] = {}
    places: dict[str, int] = {}
    faults = []
    for i, file in enumerate(files):
        for name, stored in file.contents.tensors.items():
            if name in places:
                faults.append(f"{name}: in {files[places[name]].path} and again in {file.path}")
            places[name] = i
            tensors[name] = _held_whole(name, stored.spec, ((i, stored),))
    if faults:
        raise CheckpointError(
            "tensors stand in two files of one checkpoint:\n" + listed(faults),
            hint="are these several checkpoints in one folder? name one file",
        )
    texts, notes, withheld = texts_and_notes(files)
    return Catalog(tuple(files), tensors, texts, notes, family="a full checkpoint", withheld=withheld)


def whole(name: str, by_rank: Mapping[int, tuple[int, Stored]], *, compared: bool = False) -> Tensor:
    """A tensor that each of some ranks holds whole: the number of its file, and what that holds."""
    holders = [by_rank[rank] for rank in sorted(by_rank)]
    return _held_whole(name, agreed_spec(by_rank), holders, compared=compared)


def _held_whole(
    name: str, spec: TensorSpec, holders: Iterable[tuple[int, Stored]], *, compared: bool = False
) -> Tensor:
    layout, cell = _uncut(spec.shape)
    held = tuple([Held(file, stored.extents, order=stored.order) for file, stored in holders])
    return Tensor(name, spec, Grid(layout, {cell: held}), compared=compared)


@lru_cache(maxsize=4096)
def _uncut(shape: tuple[int, ...]) -> tuple[Layout, Cell]:
    """One object for all tensors of a shape: there may be very many."""
    layout = layout_of_full(Sharding.whole(1, len(shape)), shape)
    return layout, layout.sharding.cells()[0]


def agreed_spec(by_rank: Mapping[int, tuple[int, Stored]]) -> TensorSpec:
    """The dtype and shape that all ranks have. Raises CheckpointError where they differ."""
    first = next(iter(by_rank.values()))[1].spec
    if all(stored.spec is first for _, stored in by_rank.values()):
        return first
    specs: dict[TensorSpec, int] = {}
    for rank in sorted(by_rank):
        specs.setdefault(by_rank[rank][1].spec, rank)
    if len(specs) > 1:
        shown = ", ".join(f"{spec} on rank {rank}" for spec, rank in list(specs.items())[:4])
        raise CheckpointError(f"its shards differ: {shown}")
    return next(iter(specs))


def texts_and_notes(
    files: Sequence[IndexedFile],
) -> tuple[dict[str, dict[int, str]], dict[str, str], dict[str, str]]:
    """Strings stored beside tensors, by rank; the formats' own flags, of which the first counts; and which strings are
    withheld, as files of one rank say different things, with that reason.
    """
    texts: dict[str, dict[int, str]] = {}
    notes: dict[str, str] = {}
    for file in files:
        notes = {**file.contents.notes, **notes}
        for name, text in file.contents.texts.items():
            texts.setdefault(name, {})[file.rank] = text
    withheld = _contradicted(files)
    for name in withheld:
        del texts[name]
    return texts, notes, withheld


def _contradicted(files: Sequence[IndexedFile]) -> dict[str, str]:
    first: dict[tuple[str, int], IndexedFile] = {}
    found: dict[str, str] = {}
    for file in files:
        for name, text in file.contents.texts.items():
            other = first.setdefault((name, file.rank), file)
            if other.contents.texts[name] != text:
                found.setdefault(name, f"a string that is another in {file.name} than in {other.name}")
    return found


def stand_ins(files: Sequence[IndexedFile], ranks: Ranks) -> tuple[str, ...]:
    """A warning where ranks have no file: their replicas stand in, and what none holds the plan refuses."""
    absent = sorted(set(range(ranks.world)) - {f.rank for f in files})
    if not absent:
        return ()
    shown = ", ".join(f"rank_{r}" for r in absent[:8]) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
    return (f"no file of {shown}: shards are taken from replicas on other ranks, where there are any",)
