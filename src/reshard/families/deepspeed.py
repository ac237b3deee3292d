"""DeepSpeed: ZeRO of all stages, pipelines, tensor and expert parallelism, as training saves them.

Facts and names: DeepSpeed 0.19.8. Weights are all weights: masters in fp32 by ``param_shapes``, frozen ones and buffers
in their own dtype, second names of tied ones; moments are ``exp_avg.NAME`` and the like.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError, UsageError, counted, listed
from reshard.families.family import Listing
from reshard.families.rank_listing import natural
from reshard.families.registry import listing_below
from reshard.families.source import Source
from reshard.families.torch_names import full_names
from reshard.families.torch_parts import TorchPart, open_parts, refuse_renamed
from reshard.families.zero_files import ModelStates, OptimizerStates, model_states, optimizer_states
from reshard.families.zero_layers import absent_layers
from reshard.families.zero_states import absent_models, tensors_of
from reshard.families.zero_told import SaveFiles
from reshard.planning.catalog import Catalog, Ranks, Tensor
from reshard.planning.names import is_state
from reshard.storage.storages import text_of

_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_LAYER = re.compile(r"layer_(\d+)(?:-model_(\d+))?-model_states\.pt")
_EXPERT = re.compile(r"layer_(\d+)_expert_(\d+)_mp_rank_(\d+)_model_states\.pt")
_EXPERTS_OPTIMIZER = re.compile(r"expp_rank_\d+_mp_rank_\d+_optim_states\.pt")
_KINDS = {"model": _MODEL, "optimizer": _OPTIMIZER, "layer": _LAYER, "expert": _EXPERT}
_LATEST = "latest"
_STEP = "global_step"
_MOST_RANKS = 1 << 20


class DeepSpeed(Struct, frozen=True):
    name: str = "deepspeed"
    takes: frozenset[str] = frozenset({"iteration"})

    def recognises(self, there: Listing) -> bool:
        return there.folder and (_is_tag(there) or next(_tags(there), None) is not None)

    def read(self, there: Listing, source: Source) -> Catalog:
        return opened(there, source).catalog()


class Saved(Struct, frozen=True):
    """A save, its files opened.

    Attributes:
        path: of its folder, the one of a tag.
        warnings: of what lies there and is not taken, or was not saved.
    """

    path: str
    told: SaveFiles
    parts: Sequence[TorchPart]
    warnings: tuple[str, ...]

    def catalog(self) -> Catalog:
        """All that it holds. Raises CheckpointError with what is missing or contradictory."""
        told, named = self.told, self.told.named
        warned = [f"{name} is missing; nothing of it is needed" for name in absent_models(self.told)]
        tensors = tensors_of(told, warned)
        lacking = tuple(f"{name} is missing: its weights are the fp32 masters" for name in absent_layers(told).values())
        unknown = (warning for part in self.parts for warning in part.warnings())
        stage = f"ZeRO-{told.stage}" if told.stage else "without ZeRO"
        version = next((str(v) for p in told.models.values() if (v := p.value.get("ds_version"))), "")
        return Catalog(
            tuple(part.file for part in self.parts),
            {name: replace(tensor, weight=name in named) for name, tensor in tensors.items()},
            {},
            {},
            Ranks(1, told.world, self.path),
            warnings=tuple(dict.fromkeys((*self.warnings, *lacking, *warned, *unknown))),
            family=f"DeepSpeed{f' {version}' if version else ''}, {stage}, {told.world} ranks",
            lacking=lacking,
        )

    def __str__(self) -> str:
        return self.path

    def weights(self, catalog: Catalog) -> dict[str, Tensor]:
        """What is no state of the optimizer."""
        return {name: tensor for name, tensor in catalog.tensors.items() if tensor.weight or not is_state(name)}

    def frozen(self, catalog: Catalog) -> list[str]:
        """Of its weights those that were not trained. Raises UsageError without ZeRO, where nothing says which."""
        files = self._holders(catalog)
        return [name for name, held in files.items() if not held & self.told.numbers_of_optimizers]

    def trained(self, catalog: Catalog) -> set[str]:
        """Of its weights those that were trained, without second names. Raises UsageError without ZeRO."""
        files, seconds = self._holders(catalog), {name for s in self.told.models.values() for name in s.shared}
        return {n for n, held in files.items() if held & self.told.numbers_of_optimizers and n not in seconds}

    def _holders(self, catalog: Catalog) -> dict[str, set[int]]:
        """The files that hold each parameter."""
        if not self.told.stage:
            raise UsageError("without ZeRO nothing says which parameters were trained and which were frozen", self.path)
        return {
            name: {held.file for shard in tensor.shards for held in shard.held}
            for name, tensor in self.weights(catalog).items()
            if name not in self.told.buffers
        }


def opened(there: Listing, source: Source) -> Saved:
    """The save that is meant. Raises InputError with what is missing or contradictory, UsageError."""
    folder, warnings = _tag_folder(there, source)
    if _is_universal(folder):
        raise CheckpointError(
            "a universal checkpoint of DeepSpeed: its states of the model alone are no checkpoint",
            folder.path,
            "give the folder that it was made of",
        )
    names = sorted((entry.name for entry in folder.entries if not entry.folder), key=natural)
    told, parts, warned = _told(folder, names)
    experts = [name for name in names if _EXPERTS_OPTIMIZER.fullmatch(name)]
    if experts:
        warned.append(f"{counted(len(experts), 'file')} of experts' optimizer states left out: {experts[0]} …")
    return Saved(folder.path, told, parts, (*warnings, *warned, *told.left_out()))


def _is_tag(there: Listing) -> bool:
    return any(pattern.fullmatch(entry.name) for entry in there.entries for pattern in _KINDS.values())


def _is_universal(there: Listing) -> bool:
    entry = there.entry("zero")
    return entry is not None and entry.folder


def _tags(there: Listing) -> Iterator[Listing]:
    """The folders below that hold a checkpoint, each listed when it is asked for; those of DeepSpeed's names first.
    Universal ones are made of others.
    """
    folders = (entry.name for entry in there.entries if entry.folder)
    for name in sorted(folders, key=lambda name: (not name.startswith(_STEP), natural(name))):
        listing = _below(there, name)
        if _is_tag(listing) and not _is_universal(listing):
            yield listing


def _below(there: Listing, name: str) -> Listing:
    entry = there.entry(name)
    return listing_below(there, entry) if entry and entry.folder else Listing(there.at(name), there.there)


def _tag_folder(there: Listing, source: Source) -> tuple[Listing, tuple[str, ...]]:
    """The folder of the checkpoint that is meant, and what to warn of."""
    if _is_tag(there):
        return there, ()
    full = full_names(entry.name for entry in there.entries)
    if full and not source.family:
        raise UsageError(
            f"DeepSpeed's folders and full weights ({', '.join(full[:3])}) lie here",
            there.path,
            "say which are meant: --from deepspeed or --from full",
        )
    if source.iteration is not None:
        return _named(there, f"{_STEP}{source.iteration}", "asked for"), ()
    if there.entry(_LATEST) is not None:
        tag = text_of(there.at(_LATEST))
        return _named(there, tag, "what 'latest' says"), ()
    tags = list(_tags(there))
    if len(tags) == 1:
        return tags[0], (f"{there.path} has no file 'latest': {tags[0].there.name} is the only checkpoint in it",)
    if source.family and not tags:
        said = "nothing of DeepSpeed's: no file 'latest', and no folder with mp_rank_00_model_states.pt"
        raise UsageError(said, there.path, "leave --from out")
    raise CheckpointError(
        f"{len(tags)} checkpoints and no file 'latest': {_shown(tags)}",
        there.path,
        "name the folder, or give --iteration",
    )


def _named(there: Listing, tag: str, wanted: str) -> Listing:
    """The folder of a tag. Raises CheckpointError, with the tags that are there, where no checkpoint is in it."""
    found = _below(there, tag)
    if not _is_tag(found):
        raise CheckpointError(
            f"{tag} is {wanted}, and no such checkpoint is there; there are: {_shown(_tags(there)) or 'none'}",
            there.path,
            "name the folder that is meant, or give --iteration",
        )
    return found


def _shown(tags: Iterable[Listing]) -> str:
    return ", ".join(tag.there.name for tag in tags)


def _told(folder: Listing, names: Sequence[str]) -> tuple[SaveFiles, list[TorchPart], list[str]]:
    """All files of a checkpoint, opened, and what to warn of."""
    found: dict[str, list[tuple[re.Match[str], str]]] = {}
    for kind, pattern in _KINDS.items():
        found[kind] = [(match, folder.at(name)) for name in names if (match := pattern.fullmatch(name))]
    if not found["model"]:
        raise CheckpointError(
            "no model states (mp_rank_*_model_states.pt) lie here", folder.path, "bring all its files"
        )
    _refuse_twins(found)
    data = 1 + max(_int(match[1]) for kind in ("model", "optimizer") for match, _ in found[kind])
    ranked = [(_int(m[1]) + data * int(m[2]), path) for kind in ("model", "optimizer") for m, path in found[kind]]
    ranked += [(0, path) for kind in ("layer", "expert") for _, path in found[kind]]
    opened = open_parts(folder.path, ranked)
    parts = iter(opened)
    models = {(_int(m[1]), int(m[2])): model_states(next(parts)) for m, _ in found["model"]}
    optimizers = {(int(m[1]), int(m[2])): optimizer_states(next(parts)) for m, _ in found["optimizer"]}
    layers = {(int(m[1]), _int(m[2])): next(parts) for m, _ in found["layer"]}
    experts = [next(parts) for _ in found["expert"]]
    if any(int(m[3]) for m, _ in found["expert"]):
        raise CheckpointError("experts of several tensor-parallel ranks are not put together", folder.path)
    _refuse_missing_ranks(models, optimizers, layers, folder.path)
    optimizers, warned = _of_this_save(optimizers, folder.path)
    told = SaveFiles(models, optimizers, layers, experts)
    refuse_renamed(told.parts)
    return told, opened, warned + _warned_of_no_optimizer(told, folder.path)


def _refuse_twins(found: Mapping[str, Sequence[tuple[re.Match[str], str]]]) -> None:
    """Raises CheckpointError for two files of one rank: those of another save that lay there before."""
    for matches in found.values():
        seen: dict[tuple[int, ...], str] = {}
        for match, path in matches:
            other = seen.setdefault(tuple(map(_int, match.groups())), path)
            if other != path:
                raise CheckpointError(f"two files of one rank: {other} and {path}", hint="keep those of one save")


def _refuse_missing_ranks(
    models: Mapping[tuple[int, int], ModelStates],
    optimizers: Mapping[tuple[int, int], OptimizerStates],
    layers: Mapping[tuple[int, int], TorchPart],
    folder: str,
) -> None:
    """Raises CheckpointError where files of a model-parallel rank are missing. Its first data-parallel rank's model
    states are needed at stage 3, too: they alone tell which weights are tied.
    """
    there = {mp for _, mp in models}
    said = [n for s in models.values() if type(n := s.value.get("mp_world_size")) is int and n < _MOST_RANKS]
    world = max(*said, max(there) + 1, *(mp + 1 for _, mp in optimizers), 1)
    absent = [f"mp_rank_{mp:02d}_model_states.pt" for mp in range(world) if mp not in there]
    tensor = {tp for _, tp in layers}
    cut = {mp for _, mp in optimizers}
    absent += [f"zero_pp_rank_0_mp_rank_{mp:02d}_model_states.pt" for mp in sorted(there) if (0, mp) not in models]
    absent += [f"zero_pp_rank_*_mp_rank_{mp:02d}_optim_states.pt" for mp in sorted(there) if cut and mp not in cut]
    absent += [
        f"layer_{layer:02d}-model_{tp:02d}-model_states.pt"
        for layer in sorted({layer for layer, _ in layers})
        for tp in range(max(tensor) + 1)
        if (layer, tp) not in layers
    ]
    if absent:
        raise CheckpointError("files of ranks are missing:\n" + listed(absent), folder, "bring them: each holds a part")


def _warned_of_no_optimizer(told: SaveFiles, folder: str) -> list[str]:
    """A warning where the optimizer was cut and no file of it is there. Raises CheckpointError where the weights lie in
    these.
    """
    first = told.model(told.model_parallel[0])
    shapes = {name: shape for group in first.shapes for name, shape in group.items()}
    if told.optimizers or not shapes:
        return []
    module = first.module or {}
    empty = [name for name, shape in shapes.items() if name in module and module[name].shape != shape]
    if empty:
        raise CheckpointError(
            f"no optimizer states (*_optim_states.pt) lie here, and at stage 3 these hold the weights: {empty[0]} …",
            folder,
            "bring the files of all ranks",
        )
    return [f"{folder}: no optimizer states lie here: weights are the model's own, not the fp32 masters"]


def _int(text: str | None) -> int:
    return int(text or 0)


def _of_this_save(
    optimizers: Mapping[tuple[int, int], OptimizerStates], folder: str
) -> tuple[dict[tuple[int, int], OptimizerStates], list[str]]:
    """The optimizer files without those of an older save of more ranks. Raises CheckpointError for missing ones."""
    absent, left = [], []
    kept: dict[tuple[int, int], OptimizerStates] = {}
    for mp in sorted({mp for _, mp in optimizers}):
        mine = {dp: states for (dp, of), states in optimizers.items() if of == mp}
        first = mine[min(mine)]
        world = max(first.counts)
        wrong = [s.part.path for dp, s in mine.items() if dp < world and max(s.counts) != world]
        if wrong:
            raise CheckpointError(
                f"{first.part.file.name} is of {world} data-parallel ranks, this one of another save",
                wrong[0],
                "bring the files of one save",
            )
        if world > _MOST_RANKS:
            raise CheckpointError(f"it is of {world:,} data-parallel ranks", first.part.path)
        name = first.part.file.name
        absent += [re.sub(r"rank_\d+", f"rank_{dp}", name, count=1) for dp in range(world) if dp not in mine]
        left += [states.part.path for dp, states in mine.items() if dp >= world]
        kept |= {(dp, mp): states for dp, states in mine.items() if dp < world}
    if absent:
        raise CheckpointError(
            "files of ranks are missing:\n" + listed(absent),
            folder,
            "bring them: each rank holds a part",
        )
    return kept, [f"{path} is of more ranks than this save has: left out" for path in left]
