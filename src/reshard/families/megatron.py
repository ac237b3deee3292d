"""Megatron-Core: rank folders (``torch``), ``torch_dist``, and DTensors (``fsdp_dtensor``), as training saves them.

Facts and names: Megatron-Core 0.11 to 0.16 and Megatron-LM of August 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError
from reshard.families.family import Listing
from reshard.families.megatron_args import count
from reshard.families.megatron_dist import read_dist
from reshard.families.megatron_folders import (
    COMMON,
    DESCRIPTION,
    Chosen,
    chosen,
    has_ranks,
    is_of_rank,
    is_root,
    is_save,
)
from reshard.families.megatron_legacy import read_ranks
from reshard.families.source import Source
from reshard.planning.catalog import Catalog, Tensor

_BACKEND = "torch_dist"
_PADDED = ("embedding.word_embeddings.weight", "output_layer.weight")


class Megatron(Struct, frozen=True):
    name: str = "megatron"
    takes: frozenset[str] = frozenset({"iteration"})

    def recognises(self, there: Listing) -> bool:
        return there.folder and (is_save(there) or is_root(there))

    def read(self, there: Listing, source: Source) -> Catalog:
        if is_of_rank(there):
            raise CheckpointError(
                "the folder of one rank: alone it is a part of the model", there.path, "give the folder above"
            )
        save = chosen(there, source)
        made = _read(save)
        number = "" if save.number is None else f", iteration {save.number}"
        return replace(
            made,
            family=f"{made.family}{number}",
            iteration=save.number,
            told_by={**made.told_by, **save.told_by},
            warnings=(*save.warnings, *made.warnings, *_padding(made.tensors, made.args)),
        )


def _read(save: Chosen) -> Catalog:
    if save.described is not None:
        if "sharded_backend" not in save.described:
            raise CheckpointError(
                "it does not say a sharded_backend",
                save.folder.at(DESCRIPTION),
                f"bring it again; where the tensors were saved as {_BACKEND}, remove it",
            )
        backend = str(save.described["sharded_backend"])
        if backend != _BACKEND:
            raise CheckpointError(
                f"its tensors were saved by the backend {backend!r}, which is not read; read is {_BACKEND}",
                save.folder.path,
                f"load it with the Megatron that wrote it, and save it as {_BACKEND}",
            )
        return read_dist(save.folder, backend=backend)
    if has_ranks(save.folder):
        return read_ranks(save.folder)
    if save.folder.entry(COMMON) is None:
        return read_dist(save.folder, backend="")
    made = read_dist(save.folder, backend=_BACKEND)
    lacking = f"{save.folder.path} has no {DESCRIPTION}: Megatron takes it for no checkpoint of its own"
    return replace(made, lacking=(*made.lacking, lacking), warnings=(lacking, *made.warnings))


def _padding(tensors: Mapping[str, Tensor], args: Mapping[str, Any]) -> Iterator[str]:
    """The rows that a vocabulary is padded with, as the arguments tell."""
    vocabulary = count(args, "vocab_size")
    for name in _PADDED:
        if vocabulary and name in tensors and tensors[name].spec.shape[0] > vocabulary:
            last = tensors[name].spec.shape[0] - 1
            yield f"{name}: rows {vocabulary} to {last} are padding: the vocabulary has {vocabulary} (args.vocab_size)"
