"""Megatron's rank folders: a torch file for each tensor-, pipeline- and expert-parallel rank, names as on that rank.

Layer numbers begin at 0 on every pipeline stage and in each of its virtual chunks. Tensors get the names and the
stacked shapes of Megatron's distributed form, ``torch_dist``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from reshard.errors import CheckpointError, counted, listed
from reshard.families.family import Listing
from reshard.families.megatron_args import args_of, count
from reshard.families.megatron_cut import RankCounts, embeds_again
from reshard.families.megatron_folders import MODEL_FILES, RANK, rank_name
from reshard.families.megatron_whole import RankFile, whole_tensors
from reshard.families.probe import agreements
from reshard.families.rank_listing import natural
from reshard.families.torch_parts import TorchPart, open_parts
from reshard.planning.catalog import Catalog, IndexedFile, Ranks, tensor_of_shards
from reshard.storage.storages import storage_of

_CHUNK = re.compile(r"model(\d*)")
_OPTIMIZER = ("distrib_optim.pt", "optim.pt")
_WRAPPER = re.compile(r"^(?:module\.)+")
_EXTRA = "_extra_state"
_EMBEDDING, _HEAD = "embedding.word_embeddings.weight", "output_layer.weight"


def read_ranks(folder: Listing) -> Catalog:
    """What the folder holds. Raises CheckpointError with what is missing or contradictory."""
    named = _files(folder)
    opened = open_parts(folder.path, [(0, path) for _, path in named])
    args = args_of(opened[0].value)
    places, sizes = _ranks([match for match, _ in named], args, folder.path)
    files = [_rank_file(part, at) for part, at in zip(opened, places, strict=True)]
    _refuse_mixed(files)
    _refuse_others(files, sizes)
    if not args:
        _refuse_beginnings(files)
    warnings = [*_left_out(files), *(told for part in opened for told in part.warnings())]
    made = Catalog(
        tuple(_numbered(part.file, at, sizes) for part, at in zip(opened, places, strict=True)),
        whole_tensors(files, sizes, args),
        {},
        {},
        Ranks(sizes.stages, sizes.tensor * sizes.experts, folder.path),
        warnings=tuple(warnings),
        family=_words(sizes, files),
        args=args,
    )
    return _without_copy(made)


def _without_copy(made: Catalog) -> Catalog:
    """Without the output layer where it is the embedding: the last stage holds a copy of it under that name.

    Raises CheckpointError where the arguments say that they are one and the bytes differ.
    """
    untied = made.args.get("untie_embeddings_and_output_weights")
    embedding, head = made.tensors.get(_EMBEDDING), made.tensors.get(_HEAD)
    if made.ranks.stages == 1 or untied or embedding is None or head is None:
        return made
    same = embedding.spec == head.spec
    if same:
        both = tensor_of_shards(_HEAD, head.spec, (*embedding.shards, *head.shards))
        same = agreements(made, (both,))[_HEAD]
    if not same and untied is None:
        return made
    if not same:
        raise CheckpointError(f"{_EMBEDDING} and {_HEAD} differ, and the arguments say that they are tied")
    return replace(
        made,
        tensors={name: tensor for name, tensor in made.tensors.items() if name != _HEAD},
        warnings=(*made.warnings, f"{_HEAD} is the last stage's copy of {_EMBEDDING}: it is taken once"),
    )


def _numbered(file: IndexedFile, at: RankCounts, sizes: RankCounts) -> IndexedFile:
    return replace(file, rank=(at.stages * sizes.experts + at.experts) * sizes.tensor + at.tensor)


def _words(sizes: RankCounts, files: Sequence[RankFile]) -> str:
    chunks = len(files[0].chunks)
    cut = [f"tp {sizes.tensor}", f"pp {sizes.stages}"]
    cut += [f"{chunks} virtual stages"] * (chunks > 1) + [f"ep {sizes.experts}"] * (sizes.experts > 1)
    return f"Megatron rank folders, {', '.join(cut)}"


# ---- which files there are


def _files(folder: Listing) -> list[tuple[re.Match[str], str]]:
    """The folders of ranks and the model's file in each, in order."""
    found, lacking = [], []
    for entry in sorted((e for e in folder.entries if e.folder), key=lambda e: natural(e.name)):
        match = RANK.fullmatch(entry.name)
        if match is None:
            continue
        path = folder.at(entry.name)
        names = {each.name for each in storage_of(path).entries(path)}
        name = next((name for name in MODEL_FILES if name in names), None)
        if name is None:
            lacking.append(f"{entry.name}/{MODEL_FILES[0]}")
        else:
            found.append((match, f"{path}/{name}"))
    if lacking or not found:
        raise CheckpointError(
            "files of ranks are missing:\n" + listed(lacking or [MODEL_FILES[0]]), folder.path, _BRING
        )
    return found


_BRING = "bring them: each holds a part of the model"


def _ranks(named: Sequence[re.Match[str]], args: Mapping[str, Any], folder: str) -> tuple[list[RankCounts], RankCounts]:
    """The numbers of each rank, and how many there are of each kind. Raises CheckpointError for missing ones."""
    by_args = RankCounts(*(max(count(args, f"{name}_model_parallel_size") or 1, 1) for name in _KINDS))
    two = all(match[2] and not match[3] for match in named)
    only_experts = two and by_args.stages == 1 and by_args.experts > 1
    places = []
    for match in named:
        tensor, second, third = int(match[1]), int(match[2] or 0), int(match[3] or 0)
        places.append(RankCounts(tensor, 0, second) if only_experts else RankCounts(tensor, second, third))
    seen = RankCounts(*(1 + max(getattr(at, field) for at in places) for field in RankCounts.__struct_fields__))
    sizes = by_args if args else seen
    etp = count(args, "expert_tensor_parallel_size")
    if etp not in (None, sizes.tensor) and count(args, "num_experts"):
        raise CheckpointError(
            f"experts are cut {etp} ways and all else {sizes.tensor} ways, which rank folders cannot be read with",
            folder,
            "save it as torch_dist",
        )
    beyond = [m[0] for m, at in zip(named, places, strict=True) if _is_beyond(at, sizes)]
    if beyond:
        told = f"tp {sizes.tensor}, pp {sizes.stages}, ep {sizes.experts}"
        raise CheckpointError(
            f"{', '.join(beyond[:4])}: the arguments tell of {told}", folder, "the files of two saves lie here"
        )
    absent = [
        rank_name(RankCounts(t, p, e), sizes)
        for p in range(sizes.stages)
        for e in range(sizes.experts)
        for t in range(sizes.tensor)
        if RankCounts(t, p, e) not in places
    ]
    if absent:
        raise CheckpointError("folders of ranks are missing:\n" + listed(absent), folder, _BRING)
    if len(set(places)) < len(places):
        raise CheckpointError(f"two folders are of one rank: {', '.join(m[0] for m in named)}", folder)
    return places, sizes


_KINDS = ("tensor", "pipeline", "expert")


def _is_beyond(at: RankCounts, sizes: RankCounts) -> bool:
    return any(getattr(at, field) >= getattr(sizes, field) for field in RankCounts.__struct_fields__)


# ---- what each holds


def _rank_file(part: TorchPart, at: RankCounts) -> RankFile:
    value = part.value
    named = value if isinstance(value, dict) else {}
    keys = {int(m[1] or 0): key for key in named if isinstance(key, str) and (m := _CHUNK.fullmatch(key))}
    if not keys or set(keys) != set(range(len(keys))):
        raise CheckpointError("it holds no model of Megatron's", part.path, "bring the file again")
    version = value.get("checkpoint_version", 0)
    chunks = []
    for number in sorted(keys):
        chunk = value[keys[number]]
        if not isinstance(chunk, dict) or any(isinstance(each, dict) and each for each in chunk.values()):
            raise CheckpointError(
                f"checkpoint_version {version}, of Megatron before its core: its names and its order of queries are "
                "others",
                part.path,
                "convert it with tools/checkpoint/convert.py of Megatron-LM",
            )
        found = ((_WRAPPER.sub("", str(name)), each) for name, each in chunk.items())
        chunks.append(part.plain((name, each) for name, each in found if not name.endswith(_EXTRA)))
    return RankFile(part, at, tuple(chunks))


def _refuse_mixed(files: Sequence[RankFile]) -> None:
    """Raises CheckpointError where files are of several saves."""
    for what, of in (("iteration", _iteration), ("chunks of the model", lambda file: len(file.chunks))):
        seen: dict[Any, RankFile] = {}
        for file in files:
            seen.setdefault(of(file), file)
        if len(seen) > 1:
            told = ", ".join(f"{value} in {file.part.file.name}" for value, file in list(seen.items())[:4])
            raise CheckpointError(f"the files are of several saves; {what}: {told}", hint="bring the files of one save")


def _refuse_others(files: Sequence[RankFile], sizes: RankCounts) -> None:
    """Raises CheckpointError where files lie in the folders of other ranks than those that saved them. What one program
    has converted is of one rank, and says nothing.
    """
    told = [args_of(file.part.value) for file in files]
    ranks = [rank for args in told if (rank := count(args, "rank")) is not None]
    if len(set(ranks)) < len(files):
        return
    faults = [
        f"{file.part.file.name} was saved by rank {args['rank']} of {args.get('world_size')}"
        for file, args in zip(files, told, strict=True)
        if not _may_be(file.at, sizes, args)
    ]
    if faults:
        raise CheckpointError(
            "files lie in the folders of other ranks:\n" + listed(faults), files[0].part.path, "copy them again"
        )


def _may_be(at: RankCounts, sizes: RankCounts, args: Mapping[str, Any]) -> bool:
    """Whether a process may have these numbers: tensor-parallel ranks are counted first, stages last."""
    rank, world = args["rank"], count(args, "world_size") or 0
    if rank % sizes.tensor != at.tensor:
        return False
    if args.get("use_tp_pp_dp_mapping") or not world or world % sizes.stages:
        return True
    return bool(rank // (world // sizes.stages) == at.stages)


def _refuse_beginnings(files: Sequence[RankFile]) -> None:
    """Raises CheckpointError where a later stage begins as the first one does: its rank may be one of experts."""
    for file in files:
        names = {name for chunk in file.chunks for name in chunk}
        if file.at.stages and _EMBEDDING in names and not embeds_again(names):
            raise CheckpointError(
                f"it holds {_EMBEDDING}, as the first stage does, and no arguments say whether its rank is one of a "
                "pipeline or of experts",
                file.part.path,
                "bring the files as Megatron saved them, with args",
            )


def _iteration(file: RankFile) -> Any:
    found = file.part.value.get("iteration")
    return found if isinstance(found, int | str) else None


def _left_out(files: Sequence[RankFile]) -> Iterator[str]:
    """What ranks hold besides the model, in words."""
    with_optimizer = sum(file.part.value.get("optimizer") is not None for file in files)
    if with_optimizer:
        yield (
            f"states of the optimizer are left out ({counted(with_optimizer, 'file')}): "
            "rank folders do not say which parameter has which"
        )
    paths = (file.part.path.rpartition("/")[0] for file in files)
    beside = sum(any(e.name in _OPTIMIZER for e in storage_of(path).entries(path)) for path in paths)
    if beside:
        yield (
            f"states of the distributed optimizer are left out ({counted(beside, 'file')}): "
            "they lie in buffers, and nothing says which parameter lies where"
        )
