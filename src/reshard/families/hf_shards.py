"""Distributed checkpoints in Hugging Face's form: each rank's slices in safetensors files of its own.

Source: torch 2.13, ``torch/distributed/checkpoint/hf_storage.py``. Nothing says how many ranks there were, nor, before
``global_shape`` is noted, how long a tensor is: its slices are all that tells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from reshard.errors import CheckpointError, listed, some
from reshard.families.family import Listing
from reshard.families.found import Found
from reshard.families.headers import index_files
from reshard.families.saved_slices import SavedSlice, slices_of
from reshard.index import TensorSpec
from reshard.planning.catalog import Catalog, Held, IndexedFile, Ranks, Shard, Tensor, tensor_of_shards

UNTOLD = "nothing says how many shards"
_SHARD = re.compile(r"shard-(\d+)-model-(\d+)-of-(\d+)\.safetensors")


def is_shard(name: str) -> bool:
    """Whether a file's name is that of one rank's slices."""
    return _SHARD.fullmatch(name) is not None


def catalog_of_shards(folder: Listing, names: Sequence[str]) -> Catalog:
    """All that the files of these names hold. Raises CheckpointError where files are missing."""
    ranks = _ranks(folder, names)
    placed = tuple((rank - 1, folder.at(name)) for name, rank in ranks.items())
    files = index_files(Found(folder.path, placed, distributed=False))
    shards: dict[str, list[tuple[SavedSlice, Shard]]] = {}
    specs: dict[str, TensorSpec] = {}
    for number, file in enumerate(files):
        for name, slice_ in slices_of(file.contents).items():
            stored = file.contents.tensors[name]
            if specs.setdefault(name, stored.spec).dtype != stored.spec.dtype:
                raise CheckpointError(f"{name} is {stored.spec.dtype}, and {specs[name].dtype} elsewhere", file.path)
            shards.setdefault(name, []).append(
                (slice_, Shard(slice_.box, (Held(number, stored.extents),), (file.rank,)))
            )
    tensors = {name: _tensor(name, specs[name].dtype, found) for name, found in shards.items()}
    world = max(ranks.values())
    _refuse_holes(tensors, files, sorted(set(range(1, world + 1)) - set(ranks.values())))
    warnings = () if all(slice_.full for found in shards.values() for slice_, _ in found) else (_untold(world, names),)
    told = f"PyTorch DCP in Hugging Face's form, {world} shard{'s' * (world > 1)}"
    return Catalog(tuple(files), tensors, {}, {}, Ranks(1, world, folder.path), warnings=warnings, family=told)


def _ranks(folder: Listing, names: Sequence[str]) -> dict[str, int]:
    """The number of each file's shard, from 1 on. Raises CheckpointError where all shards lack a part."""
    parts: set[int] = set()
    counts: set[int] = set()
    ranks: dict[str, int] = {}
    for name in names:
        match = _SHARD.fullmatch(name)
        if match:
            ranks[name] = int(match[1])
            parts.add(int(match[2]))
            counts.add(int(match[3]))
    if len(counts) > 1:
        raise CheckpointError(f"files of two saves: of {' and of '.join(map(str, sorted(counts)))} parts", folder.path)
    absent = [
        f"shard-*-model-{part:05d}-of-{max(counts):05d}" for part in range(1, max(counts) + 1) if part not in parts
    ]
    if 0 in ranks.values():
        raise CheckpointError("shards are counted from 1, and one is called shard-00000", folder.path, "rename them")
    if absent:
        raise CheckpointError("files that the names of others tell of are missing:\n" + listed(absent), folder.path)
    return ranks


def _tensor(name: str, dtype: str, found: Sequence[tuple[SavedSlice, Shard]]) -> Tensor:
    told = {slice_.full for slice_, _ in found if slice_.full is not None}
    if len(told) > 1:
        raise CheckpointError(f"{name}: its full shape is said to be {' and '.join(map(str, sorted(told)))}")
    full = told.pop() if told else tuple(map(max, zip(*(slice_.box.stop for slice_, _ in found), strict=True)))
    return tensor_of_shards(name, TensorSpec(dtype, full), (shard for _, shard in found))


def _refuse_holes(tensors: dict[str, Tensor], files: Sequence[IndexedFile], absent: Sequence[int]) -> None:
    """A shard without any data has no file, so one that is absent is missing where something lacks."""
    holes = [
        f"{name} from {list(hole.box.start)} on" for name, tensor in tensors.items() for hole in tensor.shards.missing()
    ]
    if holes and absent:
        lacking = ", ".join(f"shard-{number:05d}-…" for number in absent)
        raise CheckpointError(
            f"files of shards are missing ({lacking}), and slices with them:\n" + listed(holes),
            files[0].path.rpartition("/")[0],
            "bring all files of the checkpoint",
        )


def _untold(world: int, names: Sequence[str]) -> str:
    """What may be missing unseen: shards after the last, and parts of shards, for one without data has no file."""
    parts = sorted({name.partition("-model-")[2] for name in names})
    absent = [n for r in range(1, world + 1) for p in parts if (n := f"shard-{r:05d}-model-{p}") not in names]
    more = f", as would {some(absent)}, which may have had nothing to hold"
    return (
        f"{UNTOLD} there were: a last one that is missing, after shard-{world:05d}, would shorten "
        f"tensors unseen{more * bool(absent)}; compare their shapes with the model's"
    )
