"""PyTorch's distributed checkpoints (DCP): ``.metadata`` and ``.distcp`` files; and those in Hugging Face's form.

Facts and names: torch 2.0 to 2.14. What ``.metadata`` names counts, whatever else lies in the folder: files of an
earlier save stay there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError, UsageError, counted, listed, located, some
from reshard.families.dcp_chunks import ReadChunks, WantedChunk, rank_of, read_chunks
from reshard.families.dcp_objects import tensors_of_objects
from reshard.families.family import Listing
from reshard.families.hf_shards import catalog_of_shards, is_shard
from reshard.families.megatron_folders import is_save
from reshard.families.rank_listing import natural
from reshard.families.registry import listing_below
from reshard.families.source import Source, refuse_iteration
from reshard.families.torch_names import full_names
from reshard.formats.dcp_metadata import DcpMetadata, DcpStretch, DcpTensor, read_dcp_metadata
from reshard.index import TensorSpec
from reshard.planning.catalog import Catalog, Ranks, Shard, Tensor, tensor_of_shards
from reshard.planning.identity import hash_of_file
from reshard.storage.storages import content_of

_METADATA = ".metadata"
_OF_RANK = re.compile(r"__(\d+)\.metadata|\.rank(\d+)_metadata")
_DATA = re.compile(r".+\.distcp")
_STEP = re.compile(r"step-(\d+)")
_MODEL, _OPTIMIZER = re.compile(r"pytorch_model_fsdp_\d+"), re.compile(r"optimizer_\d+")


class Dcp(Struct, frozen=True):
    name: str = "dcp"
    takes: frozenset[str] = frozenset({"iteration"})

    def recognises(self, there: Listing) -> bool:
        return there.folder and (_is_one(there) or bool(_below(there))) and not is_save(there)

    def read(self, there: Listing, source: Source) -> Catalog:
        folder = _chosen(there, source)
        shards = sorted(entry.name for entry in folder.entries if is_shard(entry.name))
        if shards and not _is_saved_by_files(folder):
            return catalog_of_shards(folder, shards)
        found = catalog_by(folder, metadata_of(folder), opened=True)
        asked = source.iteration is not None
        return replace(
            found, warnings=(*found.warnings, *_not_read(there, folder), *_of_steps(there, folder, asked=asked))
        )


def _not_read(there: Listing, folder: Listing) -> Iterator[str]:
    """What accelerate keeps of the optimizer is a checkpoint of its own, beside that of the model."""
    for entry in there.entries:
        if folder.path != there.path and entry.folder and _OPTIMIZER.fullmatch(entry.name):
            yield f"{there.at(entry.name)} is left out: it is a checkpoint of its own; name it to read it"


def _of_steps(there: Listing, folder: Listing, *, asked: bool) -> Iterator[str]:
    """Which of several saves is read, where nobody named it."""
    steps = sum(1 for entry in there.entries if entry.folder and _STEP.fullmatch(entry.name))
    if not asked and folder.path != there.path and steps > 1:
        yield f"{folder.there.name} is read, the last whole one of {counted(steps, 'step')}; --iteration takes another"


def _is_one(there: Listing) -> bool:
    return _is_saved_by_files(there) or any(is_shard(entry.name) for entry in there.entries)


def _is_saved_by_files(there: Listing) -> bool:
    marks = (_METADATA, f"{_METADATA}.tmp")
    return any(e.name in marks or _OF_RANK.fullmatch(e.name) or _DATA.fullmatch(e.name) for e in there.entries)


def _below(there: Listing) -> dict[str, Listing]:
    """The checkpoints in folders of the names that torchtitan and accelerate give them; none where weights lie beside
    these, for then the folder itself is meant.
    """
    if full_names(entry.name for entry in there.entries):
        return {}
    named = (e for e in there.entries if e.folder and (_STEP.fullmatch(e.name) or _MODEL.fullmatch(e.name)))
    below = (listing_below(there, entry) for entry in named)
    return {listing.there.name: listing for listing in below if _is_one(listing)}


def _chosen(there: Listing, source: Source) -> Listing:
    """The folder that is meant: the one given, or the last step in it. Raises UsageError where several may be."""
    if _is_one(there):
        refuse_iteration(source, there.path)
        return there
    below = _below(there)
    if not below:
        raise UsageError("nothing of PyTorch DCP's: there is no .metadata", there.path, "leave --from out")
    steps = {int(match[1]): name for name in below if (match := _STEP.fullmatch(name))}
    shown = ", ".join(sorted(below, key=natural))
    if source.iteration is not None:
        if source.iteration not in steps:
            raise CheckpointError(f"step-{source.iteration} is asked for; there are: {shown}", there.path)
        return below[steps[source.iteration]]
    if len(below) == 1:
        return next(iter(below.values()))
    finished = [step for step, name in steps.items() if below[name].entry(_METADATA) is not None]
    if not finished or len(steps) < len(below):
        raise UsageError(f"{len(below)} checkpoints lie here: {shown}", there.path, "name the folder that is meant")
    return below[steps[max(finished)]]


# ---- by .metadata


class Described(Struct, frozen=True):
    """What a folder's small files say: each file by its name, their hashes, and what to warn of."""

    told: Mapping[str, DcpMetadata]
    hashes: Mapping[str, str]
    warnings: tuple[str, ...]


def catalog_by(folder: Listing, described: Described, *, opened: bool = False) -> Catalog:
    """What its files hold of what they are said to. Raises CheckpointError.

    Args:
        opened: look for tensors within entries that are none.
    """
    told = described.told
    shapes: dict[str, DcpTensor] = {}
    wanted: dict[str, list[WantedChunk]] = {}
    homeless: list[str] = []
    for one in told.values():
        for name, tensor in one.tensors.items():
            _refuse_two_kinds(name, shapes.setdefault(name, tensor), tensor)
            homeless += _placed(name, tensor, one.places.get(name, {}), wanted)
        for places in one.places.values():
            for place in places.values():
                wanted.setdefault(place.path, [])
    if homeless:
        raise CheckpointError(
            "chunks that it lists and has no place for:\n" + listed(homeless), folder.at(_METADATA), "save it again"
        )
    read = read_chunks(folder, wanted)
    tensors = _tensors(shapes, read)
    files = tuple(one.file for one in read)
    within = tensors_of_objects(told, files) if opened else {}
    for made in chain.from_iterable(within.values()):
        if tensors.setdefault(made.name, made) is not made:
            raise CheckpointError(f"two tensors are called {made.name!r}, one of them within an object", folder.path)
    others = sorted({name for one in told.values() for name in one.others} - within.keys())
    world = 1 + max((one.file.rank for one in read), default=0)
    return Catalog(
        files,
        tensors,
        {},
        {},
        Ranks(1, world, folder.path),
        told_by=described.hashes,
        warnings=(*described.warnings, *_left_out(others), *_unknown(told)),
        family=f"PyTorch DCP, {counted(world, 'rank')}",
    )


def metadata_of(folder: Listing) -> Described:
    """What the folder says of itself. Raises CheckpointError where nothing says it."""
    names = {entry.name for entry in folder.entries}
    of_ranks = {int(match[1] or match[2]): name for name in names if (match := _OF_RANK.fullmatch(name))}
    if _METADATA in names:
        chosen = [_METADATA]
    else:
        chosen = [of_ranks[rank] for rank in sorted(of_ranks)]
        data = {rank_of(name) for name in names if _DATA.fullmatch(name)}
        absent = sorted((data | set(range(max(of_ranks, default=0) + 1))) - of_ranks.keys())
        if not chosen:
            raise _unfinished(folder, names)
        if absent:
            raise CheckpointError(
                f"{', '.join(f'__{rank}.metadata' for rank in absent)} missing: each rank wrote its own", folder.path
            )
    beside = f"{_METADATA} counts, and {len(of_ranks)} files of single ranks beside it do not"
    told, hashes = {}, {}
    for name in chosen:
        content = content_of(folder.at(name))
        hashes[name] = hash_of_file(content)
        with located(folder.at(name)):
            told[name] = read_dcp_metadata(content)
            _refuse_untold(told[name])
    return Described(told, hashes, (beside,) if _METADATA in names and of_ranks else ())


def _refuse_untold(told: DcpMetadata) -> None:
    """Raises CheckpointError for chunks that have a place, and of whose tensors nothing is said."""
    of_chunks = (name for name, places in told.places.items() if places.keys() != {None})
    untold = [name for name in of_chunks if name not in told.tensors and name not in told.others]
    if untold:
        raise CheckpointError(
            "chunks lie in files, and of what tensors nothing says:\n" + listed(untold), hint="save it again"
        )


def _unfinished(folder: Listing, names: set[str]) -> CheckpointError:
    if f"{_METADATA}.tmp" in names:
        return CheckpointError(
            f"{_METADATA}.tmp and no {_METADATA}: the save is unfinished, it did not come to its end", folder.path
        )
    return CheckpointError(
        f"no {_METADATA}: the save did not finish, or what copied the folder leaves out names that begin with a dot",
        folder.path,
        f"bring {_METADATA}: without it nobody knows what the files hold",
    )


def _refuse_two_kinds(name: str, one: DcpTensor, other: DcpTensor) -> None:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        raise CheckpointError(
            f"{name}: {one.dtype}{list(one.shape)} by one rank, {other.dtype}{list(other.shape)} by another"
        )


def _placed(
    name: str,
    tensor: DcpTensor,
    places: Mapping[tuple[int, ...] | None, DcpStretch],
    wanted: dict[str, list[WantedChunk]],
) -> list[str]:
    """Sort a tensor's chunks by the files that they lie in; gives those that lie nowhere, in words."""
    homeless = []
    for chunk in tensor.chunks:
        place = places.get(chunk.offsets)
        if place is not None:
            wanted.setdefault(place.path, []).append(WantedChunk(name, tensor.dtype, chunk, place))
        elif 0 not in chunk.sizes:
            homeless.append(f"{name} at {list(chunk.offsets)}")
    return homeless


def _tensors(shapes: Mapping[str, DcpTensor], read: Sequence[ReadChunks]) -> dict[str, Tensor]:
    shards: dict[str, list[Shard]] = {name: [] for name in shapes}
    dtypes = {name: tensor.dtype for name, tensor in shapes.items()}
    for one in read:
        for found in one.found:
            shards[found.name].append(found.shard)
            if (dtypes[found.name] or found.dtype) != found.dtype:
                raise CheckpointError(
                    f"{found.name}: {found.dtype} here, {dtypes[found.name]} elsewhere", one.file.path
                )
            dtypes[found.name] = found.dtype
    tensors = {}
    for name, tensor in shapes.items():
        tensors[name] = tensor_of_shards(name, TensorSpec(dtypes[name], tensor.shape), shards.pop(name))
    return tensors


def _left_out(others: Sequence[str]) -> Iterator[str]:
    if others:
        yield f"what is no tensor is left out: {counted(len(others), 'entry')} ({some(others)})"


def _unknown(told: Mapping[str, DcpMetadata]) -> Iterator[str]:
    names = sorted({name for one in told.values() for name in one.unknown})
    if names:
        yield f"{_METADATA} names classes that are not known, and were not built: {', '.join(names)}"
