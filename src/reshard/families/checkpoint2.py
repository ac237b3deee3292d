"""Checkpoint 2.0 of MindFormers: folders that say themselves how their tensors are cut, and in which files they lie.

Facts: MindFormers r1.7 to master of 2026-07. Nothing is told by the names of weight files: ``metadata.json`` names
them, and what it does not name is left over from another save.
"""

from __future__ import annotations

import re

from msgspec import UNSET, Struct
from msgspec.structs import asdict, replace

from reshard.errors import CheckpointError, counted, listed
from reshard.families.checkpoint2_described import described
from reshard.families.checkpoint2_folders import (
    COMMON,
    METADATA,
    devices_told,
    folder_above,
    is_iteration,
    is_root,
    iteration_folder,
    number_of,
    weight_files,
)
from reshard.families.checkpoint2_metadata import Common, read_common, read_metadata
from reshard.families.family import Listing
from reshard.families.found import Found
from reshard.families.full import catalog_of_full
from reshard.families.headers import index_files
from reshard.families.ours import refuse_unfinished_target
from reshard.families.source import Source
from reshard.planning.catalog import Catalog
from reshard.planning.identity import hash_of_file
from reshard.storage.storage import own_name
from reshard.storage.storages import content_of

_STATES = re.compile(r"opt(-\d+-\d+\.safetensors)$")


class Checkpoint2(Struct, frozen=True):
    name: str = "checkpoint2"
    takes: frozenset[str] = frozenset({"iteration"})

    def recognises(self, there: Listing) -> bool:
        return there.folder and (is_iteration(there) or is_root(there))

    def read(self, there: Listing, source: Source) -> Catalog:
        folder, warnings = iteration_folder(there, source.iteration, chosen=bool(source.family))
        for root in {there.path, folder_above(folder)}:
            refuse_unfinished_target(root)
        told_by, common = {}, None
        if folder.entry(COMMON) is None:
            warnings.append(f"{folder.path} has no {COMMON}: a training that goes on from it begins at global_step 0")
        else:
            content = content_of(folder.at(COMMON))
            told_by[COMMON] = hash_of_file(content)
            common = read_common(content, folder.at(COMMON))
        if folder.entry(METADATA) is None:
            made = _of_one_device(folder)
        else:
            content = content_of(folder.at(METADATA))
            told_by[METADATA] = hash_of_file(content)
            made = described(folder, read_metadata(content, folder.at(METADATA)))
        iteration = number_of(own_name(folder.path))
        return replace(
            made,
            told_by=told_by,
            warnings=(*warnings, *made.warnings),
            family=_family(made, iteration, common),
            iteration=common.global_step if iteration is None and common else iteration,
            progress={k: v for k, v in asdict(common).items() if v is not UNSET} if common else {},
        )


def _of_one_device(folder: Listing) -> Catalog:
    """Of a job of one device, which describes nothing: each tensor is whole."""
    names = sorted(weight_files(folder))
    if not names:
        raise CheckpointError("an iteration without weight files", folder.path, "bring them, or give --iteration")
    if devices_told(folder) > 1:
        raise CheckpointError(
            f"{METADATA} is missing, and {counted(len(names), 'file')} of several devices lie here: "
            "nobody can know how their tensors were cut",
            folder.path,
            "bring it; or lay each rank's files into a rank_x folder, and give --src-strategy",
        )
    absent = sorted({_STATES.sub(r"model\1", name) for name in names} - set(names))
    if absent:
        raise CheckpointError(
            "files of weights are missing, and those of their optimizer's states are here:\n" + listed(absent),
            folder.path,
            "bring them",
        )
    found = Found(folder.path, tuple((0, folder.at(name)) for name in names), distributed=False)
    return catalog_of_full(index_files(found))


def _family(made: Catalog, iteration: int | None, common: Common | None) -> str:
    """In words what wrote it."""
    number = "" if iteration is None else f", iteration {iteration}"
    release = f", MindFormers {common.release}" if common and common.release else ""
    return f"Checkpoint 2.0{number}{release}, {counted(made.ranks.world, 'rank')}{_dropped(made)}"


def _dropped(made: Catalog) -> str:
    """Whether replicas were dropped."""
    shards = [s for tensor in made.tensors.values() if tensor.known for s in tensor.shards]
    thinned = any(len(s.expected) > 1 for s in shards) and all(len(s.held) <= 1 for s in shards)
    return ", replicas dropped" if thinned else ""
