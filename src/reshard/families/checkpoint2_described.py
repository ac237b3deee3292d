"""What the files of a Checkpoint 2.0 hold, by its metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod

from reshard.errors import CheckpointError, ReshardError, listed
from reshard.families.checkpoint2_folders import METADATA, is_trainers, weight_files
from reshard.families.checkpoint2_metadata import (
    Metadata,
    Parameter,
    SliceCopy,
    numbered,
    numbers_of,
    shape_of_slices,
    storage_key,
)
from reshard.families.family import Listing
from reshard.families.found import Found
from reshard.families.full import texts_and_notes, whole
from reshard.families.headers import index_files
from reshard.index import Stored, TensorSpec
from reshard.layout.stages import Strategy
from reshard.layout.tensor import MAX_DEVICES, Cell, Layout, Sharding
from reshard.planning.catalog import Catalog, Grid, Held, IndexedFile, Ranks, Tensor

_GRADIENTS = "accu_grads."
"""What metadata names though it was not saved."""
_SHOWN = 4


def described(folder: Listing, metadata: Metadata) -> Catalog:
    """Raises CheckpointError that lists every fault found."""
    ranks_of = _ranks_of_files(metadata, folder.at(METADATA))
    there = weight_files(folder)
    files = [(rank, folder.at(name)) for name, rank in ranks_of.items() if name in there]
    if not files:
        raise CheckpointError(f"none of the files that {METADATA} names is there", folder.path, "bring them")
    found = Found(folder.path, tuple(sorted(files)), distributed=True)
    joined = _Description(metadata, index_files(found))
    tensors = joined.tensors()
    if joined.faults:
        raise CheckpointError(f"the files do not fit {METADATA}:\n" + listed(joined.faults), folder.path)
    missing = [name for name in ranks_of if name not in there]
    others = sorted(name for name in there if name not in ranks_of and is_trainers(name))
    texts, notes, withheld = texts_and_notes(joined.files)
    lacking = (*(f"{folder.at(name)} is missing" for name in missing), *_shown(joined.lacking, "does not hold {names}"))
    warnings = [
        *lacking,
        *_shown(joined.otherwise, "{names}"),
        *([f"{METADATA} does not name {_named(others)}: left out"] if others else []),
        *(f"{file.path}: {warning}" for file in joined.files for warning in file.contents.warnings),
    ]
    ranks = _ranks(metadata, ranks_of.values(), folder.at(METADATA))
    return Catalog(
        tuple(joined.files),
        tensors,
        texts,
        notes,
        ranks,
        tuple(metadata.state_dict_metadata),
        warnings=tuple(warnings),
        withheld=withheld,
        lacking=lacking,
        own=_own(metadata, ranks),
    )


def _ranks_of_files(metadata: Metadata, path: str) -> dict[str, int]:
    """The files that hold something, and the ranks that wrote them. Raises CheckpointError for files elsewhere, or of
    two ranks.
    """
    found: dict[str, int] = {}
    for place in (place for places in metadata.storage_data.values() for place in places):
        rank = found.setdefault(place.file_name, place.storage_rank)
        if rank != place.storage_rank:
            raise CheckpointError(
                f"it says that {place.file_name} is of rank {rank:,} and {place.storage_rank:,}", path
            )
    outside = [name for name in found if "/" in name or "\0" in name or name in ("", ".", "..")]
    if outside:
        raise CheckpointError(f"it names {outside[0]!r}, which is no file beside it", path)
    return found


def _ranks(metadata: Metadata, writers: Iterable[int], where: str) -> Ranks:
    lists = {p.layout.rank_list for p in metadata.state_dict_metadata.values() if p.layout}
    named = {*writers, *(rank for ranks in lists for rank in ranks)}
    if strange := [rank for rank in named if not 0 <= rank < MAX_DEVICES]:
        raise CheckpointError(f"it names rank {strange[0]:,}; at most {MAX_DEVICES:,} are supported", where)
    world = 1 + max(named)
    devices = max(map(len, lists), default=world)
    stages = world // devices if world % devices == 0 else 1
    return Ranks(stages, world // stages, where)


def _own(metadata: Metadata, ranks: Ranks) -> Strategy | None:
    """How it is cut; None where the ranks of a stage do not follow each other, which no strategy says."""
    stages: list[dict[str, Sharding]] = [{} for _ in range(ranks.stages)]
    of_stage = [tuple(range(s * ranks.devices, (s + 1) * ranks.devices)) for s in range(ranks.stages)]
    for name, parameter in metadata.state_dict_metadata.items():
        if parameter.layout is None:
            continue
        layout, of = parameter.cut()
        if of not in of_stage:
            return None
        first = metadata.storage_data.get(storage_key(name, 0), ())
        tied = {place.storage_rank // ranks.devices for place in first}
        for stage in {of_stage.index(of), *tied}:
            stages[stage][name] = layout.sharding
    return Strategy(tuple(stages), ranks.devices, ranks.where)


def _shown(told: Mapping[str, Sequence[str]], words: str) -> Iterator[str]:
    for what, names in told.items():
        yield f"{what} {words.format(names=_named(names))}"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


class _Description:
    """Metadata and headers together.

    Attributes:
        faults: what contradicts itself.
        lacking: by file the tensors that it should hold and does not.
        otherwise: what metadata says of tensors that their files know better, and of which.
    """

    def __init__(self, metadata: Metadata, files: Sequence[IndexedFile]) -> None:
        self.files = files
        self.faults: list[str] = []
        self.lacking: dict[str, list[str]] = {}
        self.otherwise: dict[str, list[str]] = {}
        self._metadata = metadata
        self._numbers = {file.name: number for number, file in enumerate(files)}

    def tensors(self) -> dict[str, Tensor]:
        """What metadata describes, then what the files hold besides."""
        made = {}
        used = 0
        for name, parameter in self._metadata.state_dict_metadata.items():
            try:
                layout, ranks = parameter.cut()
                used += sum(storage_key(name, n) in self._metadata.storage_data for n in range(_count(layout)))
                tensor = self._tensor(name, parameter, layout, ranks)
                if tensor is not None:
                    made[name] = tensor
            except ReshardError as error:
                self.faults.append(f"{name}: {error.message}")
        if not self.faults and used < len(self._metadata.storage_data):
            self._refuse_unknown_slices()
        return made | self._undescribed()

    def _tensor(self, name: str, parameter: Parameter, layout: Layout, ranks: tuple[int, ...]) -> Tensor | None:
        """None for gradients that were not saved."""
        cells: dict[Cell, tuple[Held, ...]] = {}
        dtypes: dict[str, str] = {}
        for number, cell in enumerate(numbered(layout.sharding)):
            held = []
            for place in self._places(name, number, layout, ranks):
                file, stored = self._stored(name, place)
                if stored is None:
                    continue
                if stored.spec.shape != layout.shard_shape:
                    raise CheckpointError(
                        f"slice {number} is {list(stored.spec.shape)} in {place.file_name} of rank "
                        f"{place.storage_rank}, by the layout {list(layout.shard_shape)}"
                    )
                dtypes.setdefault(stored.spec.dtype, place.file_name)
                held.append(Held(file, stored.extents))
            if held:
                cells[cell] = tuple(held)
        if not cells and name.startswith(_GRADIENTS):
            return None
        if len(dtypes) > 1:
            raise CheckpointError("its slices differ: " + ", ".join(f"{d} in {file}" for d, file in dtypes.items()))
        said = parameter.properties.dtype.lower()
        dtype = next(iter(dtypes), said)
        self._compare(name, parameter, layout, dtype)
        expected = _expected(layout.sharding, ranks)
        return Tensor(name, TensorSpec(dtype, layout.shape), Grid(layout, cells, expected), known=bool(ranks))

    def _places(self, name: str, number: int, layout: Layout, ranks: tuple[int, ...]) -> list[SliceCopy]:
        """Where copies of a slice lie. Of a tied tensor the first stage counts, which the layout is of."""
        places = self._metadata.storage_data.get(storage_key(name, number), ())
        numbers = _numbers(layout.sharding, ranks)
        for place in places:
            other = numbers.get(place.storage_rank, number)
            if other != number:
                raise CheckpointError(
                    f"slice {number} in {place.file_name} is said to be of rank {place.storage_rank}, "
                    f"which holds slice {other} by the layout"
                )
        return [p for p in places if p.storage_rank in numbers] or list(places)

    def _stored(self, name: str, place: SliceCopy) -> tuple[int, Stored | None]:
        """The number of a file and what it holds; nothing where it lacks."""
        number = self._numbers.get(place.file_name)
        if number is None:
            return 0, None
        stored = self.files[number].contents.tensors.get(name)
        if stored is None and not name.startswith(_GRADIENTS):
            self.lacking.setdefault(self.files[number].path, []).append(name)
        return number, stored

    def _compare(self, name: str, parameter: Parameter, layout: Layout, dtype: str) -> None:
        """Note what metadata says twice, or of what the files hold, and says wrong."""
        said = parameter.properties.dtype.lower()
        if said != dtype:
            what = f"{METADATA} says {said}, and the files hold {dtype}, which counts:"
            self.otherwise.setdefault(what, []).append(name)
        chunks = {chunk.global_offset: chunk.local_shape for chunk in parameter.chunk}
        if chunks != {(number,): shape for number, shape in shape_of_slices(layout).items()}:
            what = f"{METADATA} lists other slices in chunk than its layouts give, which count:"
            self.otherwise.setdefault(what, []).append(name)

    def _refuse_unknown_slices(self) -> None:
        known = {
            storage_key(name, number)
            for name, parameter in self._metadata.state_dict_metadata.items()
            for number in range(_count(parameter.cut()[0]))
        }
        self.faults += [f"{key}: in storage_data, and no slice of a tensor that is described"
                        for key in self._metadata.storage_data if key not in known]  # fmt: skip

    def _undescribed(self) -> dict[str, Tensor]:
        """What files hold beside: scalars of the optimizer, which each rank has. Of one file among several nobody can
        know whether it is all of a tensor.
        """
        held: dict[str, dict[int, tuple[int, Stored]]] = {}
        for number, file in enumerate(self.files):
            for name, stored in file.contents.tensors.items():
                if name not in self._metadata.state_dict_metadata:
                    held.setdefault(name, {}).setdefault(file.rank, (number, stored))
        alone = len({file.rank for file in self.files}) == 1
        made = {}
        for name, by_rank in held.items():
            try:
                made[name] = whole(name, by_rank, compared=True)
            except CheckpointError as error:
                self.faults.append(f"{name}: {METADATA} does not describe it and {error.message}")
                continue
            if len(by_rank) == 1 and prod(made[name].spec.shape) > 1 and not alone:
                (number, _) = next(iter(by_rank.values()))
                self.faults.append(
                    f"{name}: only {self.files[number].name} holds it, and {METADATA} does not describe it"
                )
        return made


def _count(layout: Layout) -> int:
    return prod(layout.sharding.parts)


@lru_cache(maxsize=1024)
def _numbers(sharding: Sharding, ranks: tuple[int, ...]) -> Mapping[int, int]:
    """The slice of each rank."""
    return dict(zip(ranks, numbers_of(sharding), strict=True)) if ranks else {}


@lru_cache(maxsize=1024)
def _expected(sharding: Sharding, ranks: tuple[int, ...]) -> Mapping[Cell, tuple[int, ...]]:
    if not ranks:
        return {}
    return {cell: tuple(ranks[place] for place in places) for cell, places in sharding.holders().items()}
