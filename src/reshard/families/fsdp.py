"""Files of single ranks that FSDP trainers write: ``model_world_size_W_rank_R.pt`` and their optimizer's.

As verl, and trainers after it, save them: FSDP1 and FSDP2, DTensors and ShardedTensors. Facts: torch 2.13 and verl.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from reshard.digits import number_in
from reshard.errors import CheckpointError, UsageError, counted, listed
from reshard.families.family import Listing
from reshard.families.fsdp_files import FsdpFile, Mine, model_file, optimizer_file
from reshard.families.fsdp_states import States, states_of
from reshard.families.rank_listing import natural
from reshard.families.registry import listing_below
from reshard.families.source import Source, refuse_iteration
from reshard.families.torch_names import full_names
from reshard.families.torch_parts import made_of_parts
from reshard.planning.catalog import Catalog, IndexedFile, Ranks, Tensor, tensor_of_shards
from reshard.planning.identity import hash_of_file
from reshard.planning.names import compiled
from reshard.storage.storages import content_of, text_of

_FILE = re.compile(r"(model|optim|extra_state)_world_size_(\d+)_rank_(\d+)\.pt")
_CONFIG = "fsdp_config.json"
_STEP = re.compile(r"global_step_(\d+)")
_LATEST = "latest_checkpointed_iteration.txt"
_OF_FILE_SYSTEM = "lost+found"  # on the root of a disk; only root may look into it
_FilesByKind = Mapping[str, Mapping[int, Mapping[int, str]]]
"""By kind, world and rank, the names of files."""


class Fsdp(Struct, frozen=True):
    name: str = "fsdp"
    takes: frozenset[str] = frozenset({"iteration", "frozen"})

    def recognises(self, there: Listing) -> bool:
        return there.folder and (_is_one(there) or bool(_below(there)))

    def read(self, there: Listing, source: Source) -> Catalog:
        folder = _chosen(there, source)
        files = _files(folder)
        world, told_by = _world(folder, files)
        models = _ranked(folder, files["model"].get(world, {}), world)
        ranked = [(rank, folder.at(name)) for rank, name in enumerate(models)]
        opened = made_of_parts(folder.path, ranked, partial(model_file, world=world))
        tensors = _tensors(opened)
        frozen = compiled(source.frozen) if source.frozen else None
        optimizers, states = _states(folder, files["optim"].get(world, {}), opened, frozen)
        return Catalog(
            (*(one.file for one in opened), *optimizers),
            {**tensors, **states.tensors},
            {},
            {},
            Ranks(1, world, folder.path),
            withheld=states.withheld,
            lacking=(*states.lacking, *_schedulers_lacking(folder, files, world)),
            told_by={**told_by, **({"--frozen": source.frozen} if source.frozen else {})},
            warnings=(
                *_left_out(files, world, opened),
                *(told for one in opened for told in one.warnings),
                *states.warnings,
            ),
            family=f"FSDP files of {counted(world, 'rank')}",
        )


def _is_one(there: Listing) -> bool:
    return any(_FILE.fullmatch(entry.name) for entry in there.entries)


def _listed(there: Listing) -> dict[str, Listing]:
    folders = (entry for entry in there.entries if entry.folder and entry.name != _OF_FILE_SYSTEM)
    return {entry.name: listing_below(there, entry) for entry in folders}


def _below(there: Listing) -> dict[str, Listing]:
    """The folders of roles (actor, critic) in a step's, or of all steps; none where weights lie beside these."""
    if full_names(entry.name for entry in there.entries):
        return {}
    found = {}
    for name, folder in _listed(there).items():
        if _is_one(folder):
            found[name] = folder
        elif _STEP.fullmatch(name):
            found |= {f"{name}/{role}": below for role, below in _listed(folder).items() if _is_one(below)}
    return found


def _chosen(there: Listing, source: Source) -> Listing:
    """The folder that is meant. Raises UsageError where several may be."""
    if _is_one(there):
        refuse_iteration(source, there.path)
        return there
    below = _below(there)
    step = source.iteration
    if step is None and there.entry(_LATEST) is not None:
        step = number_in(text_of(there.at(_LATEST)))
    if step is not None:
        below, all_of_them = {n: f for n, f in below.items() if n.startswith(f"global_step_{step}/")}, below
        if not below:
            shown = ", ".join(sorted(all_of_them, key=natural))
            raise CheckpointError(f"global_step_{step} is what is meant; there are: {shown}", there.path)
    if not below:
        raise UsageError("nothing of FSDP's: there is no model_world_size_W_rank_R.pt", there.path, "leave --from out")
    if len(below) > 1:
        shown = ", ".join(sorted(below, key=natural))
        raise UsageError(f"{len(below)} checkpoints lie here: {shown}", there.path, "name the folder that is meant")
    return next(iter(below.values()))


# ---- which files


def _files(folder: Listing) -> _FilesByKind:
    found: dict[str, dict[int, dict[int, str]]] = {"model": {}, "optim": {}, "extra_state": {}}
    for entry in folder.entries:
        if match := _FILE.fullmatch(entry.name):
            found[match[1]].setdefault(int(match[2]), {})[int(match[3])] = entry.name
    return found


def _world(folder: Listing, files: _FilesByKind) -> tuple[int, dict[str, str]]:
    """Of how many ranks the save is, and hashes of what told it. Raises CheckpointError where several may be meant."""
    worlds = sorted(files["model"])
    shown = " and ".join(f"{world} ({counted(len(files['model'][world]), 'file')})" for world in worlds) or "none"
    if folder.entry(_CONFIG) is None:
        if len(worlds) != 1:
            raise CheckpointError(
                f"model files of {len(worlds)} saves, of world size {shown}, and no {_CONFIG} that says which counts",
                folder.path,
                "keep those of one save (model_world_size_…_rank_0.pt on)",
            )
        return worlds[0], {}
    content = content_of(folder.at(_CONFIG))
    try:
        told = json.loads(content)
        world = told["world_size"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CheckpointError(
            "it does not say a world_size", folder.at(_CONFIG), "bring it again, or remove it"
        ) from None
    if world not in worlds:
        raise CheckpointError(
            f"its world_size is {world}, and the model files are of world size {shown}",
            folder.at(_CONFIG),
            "bring the files of the save that it is of",
        )
    return world, {_CONFIG: hash_of_file(content)}


def _ranked(folder: Listing, names: Mapping[int, str], world: int) -> list[str]:
    """The model file of every rank. Raises CheckpointError naming those that are missing."""
    if absent := _absent(names, world, "model"):
        there = ", ".join(names[rank] for rank in sorted(names)[:4])
        raise CheckpointError(
            "files of ranks are missing:\n" + listed(absent),
            folder.path,
            f"bring them: each rank holds a part; there are {there}{' …' if len(names) > 4 else ''}",
        )
    return [names[rank] for rank in range(world)]


def _absent(names: Mapping[int, str], world: int, kind: str) -> list[str]:
    return [f"{kind}_world_size_{world}_rank_{rank}.pt" for rank in range(world) if rank not in names]


# ---- what they hold


def _tensors(files: Sequence[FsdpFile]) -> dict[str, Tensor]:
    """Raises CheckpointError where ranks hold other names, dtypes or shapes."""
    every = dict.fromkeys(name for one in files for name in one.held)
    lacking = [f"{name}: not in {one.file.name}" for name in every for one in files if name not in one.held]
    if lacking:
        raise CheckpointError(
            "ranks do not hold the same names:\n" + listed(lacking),
            files[0].file.path.rpartition("/")[0],
            "bring the files of one save",
        )
    return {name: _tensor(name, [(one, one.held[name]) for one in files]) for name in every}


def _tensor(name: str, held: Sequence[tuple[FsdpFile, Mine]]) -> Tensor:
    (first, mine), *others = held
    for file, other in others:
        if (other.spec, other.plain) != (mine.spec, mine.plain):
            raise CheckpointError(f"{name}: {other.spec}, and {mine.spec} in {first.file.name}", file.file.path)
    tensor = tensor_of_shards(name, mine.spec, (shard for _, one in held for shard in one.shards), known=not mine.plain)
    return replace(tensor, compared=mine.plain and len(held) > 1, weight=True)


def _states(
    folder: Listing, names: Mapping[int, str], models: Sequence[FsdpFile], frozen: re.Pattern[str] | None
) -> tuple[list[IndexedFile], States]:
    """The files of the optimizer, numbered after those of the model, and what they hold."""
    world = len(models)
    if not names:
        return [], States({}, {})
    if absent := _absent(names, world, "optim"):
        lacking = tuple(f"{folder.at(name)} is missing" for name in absent)
        return [], States({}, {"optimizer.<all states>": f"{', '.join(absent[:4])} missing"}, lacking=lacking)
    ranked = [(rank, folder.at(names[rank])) for rank in range(world)]
    opened = made_of_parts(folder.path, ranked, partial(optimizer_file, world=world), first=world)
    found = states_of(models, opened, frozen)
    warnings = (*found.warnings, *(told for one in opened for told in one.warnings))
    return [one.file for one in opened], replace(found, warnings=warnings)


def _schedulers_lacking(folder: Listing, files: _FilesByKind, world: int) -> tuple[str, ...]:
    """No weights are in them, and the training that goes on has none without."""
    there = files["extra_state"].get(world, {})
    absent = _absent(there, world, "extra_state") if there else []
    return tuple(f"{folder.at(name)} is missing" for name in absent)


def _left_out(files: _FilesByKind, world: int, opened: Sequence[FsdpFile]) -> list[str]:
    told = []
    for kind in ("model", "optim"):
        other = sum(len(of_world) for size, of_world in files[kind].items() if size != world)
        beyond = [name for rank, name in files[kind].get(world, {}).items() if rank >= world]
        if other:
            told.append(f"{counted(other, f'{kind} file')} of another world size: left out")
        if beyond:
            told.append(f"{', '.join(beyond[:4])}: of no rank of {world}, left out")
    if count := sum(opened[0].others.values()):
        told.append(f"what is no tensor is left out: {count} of {', '.join(opened[0].others)}")
    if extra := len(files["extra_state"].get(world, {})):
        told.append(f"schedulers and random states are left out ({counted(extra, 'extra_state file')})")
    return told
