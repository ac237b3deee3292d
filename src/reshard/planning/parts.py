"""A full checkpoint in several files of a largest size, with an index, as Hugging Face or MindSpore lays them out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

Names = Literal["hf", "torch", "mindspore"]
_HUGGING_FACE = {"hf": ("model", ".safetensors"), "torch": ("pytorch_model", ".bin")}
EXTRAS_NAME = "hyper_param.safetensors"


class Parts(Struct, frozen=True):
    """Parts of at most ``max_nbytes``, called as ``names`` does.

    ``hf``: ``model-0000i-of-0000n.safetensors`` and ``model.safetensors.index.json``.
    ``torch``: ``pytorch_model-0000i-of-0000n.bin`` and ``pytorch_model.bin.index.json``.
    ``mindspore``: ``part{i}.safetensors`` and ``param_name_map.json``; what no strategy knows is kept beside them, in
    ``hyper_param.safetensors``.
    """

    max_nbytes: int
    names: Names = "hf"

    @property
    def format(self) -> str:
        return "torch" if self.names == "torch" else "safetensors"

    def file_names(self, count: int) -> list[str]:
        """
        >>> Parts(1).file_names(2)
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
        """
        if self.names == "mindspore":
            return [f"part{i}.safetensors" for i in range(count)]
        stem, suffix = _HUGGING_FACE[self.names]
        if count == 1:
            return [stem + suffix]
        return [f"{stem}-{i + 1:05d}-of-{count:05d}{suffix}" for i in range(count)]

    def index(self, parts: Mapping[str, str], total_nbytes: int) -> tuple[str, bytes] | None:
        """Name and content of the file that says which part holds each tensor; None where one part needs none."""
        if self.names != "mindspore" and len(set(parts.values())) < 2:
            return None
        content = {"metadata": {"total_size": total_nbytes}, "weight_map": dict(sorted(parts.items()))}
        name = (
            "param_name_map.json" if self.names == "mindspore" else f"{''.join(_HUGGING_FACE[self.names])}.index.json"
        )
        return name, json.dumps(content, indent=2).encode()


def split_parts(sizes: Mapping[int, int], max_nbytes: int) -> list[list[int]]:
    """Fill parts in order; a tensor larger than ``max_nbytes`` has a part of its own. Sizes in bytes.

    >>> split_parts({0: 4, 1: 4, 2: 9, 3: 1}, 8)
    [[0, 1], [2], [3]]
    """
    groups: list[list[int]] = [[]]
    room = max_nbytes
    for number, nbytes in sizes.items():
        if nbytes > room and groups[-1]:
            groups.append([])
            room = max_nbytes
        groups[-1].append(number)
        room -= nbytes
    return groups
