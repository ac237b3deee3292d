"""A full checkpoint in several files of a largest size, with an index, as Hugging Face lays them out."""

from __future__ import annotations

import json
from collections.abc import Mapping

INDEX_NAME = "model.safetensors.index.json"


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


def part_names(count: int) -> list[str]:
    """
    >>> part_names(2)
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def index_file(parts: Mapping[str, str], total_nbytes: int) -> tuple[str, bytes]:
    """Name and content of the index: which part holds each tensor."""
    content = {"metadata": {"total_size": total_nbytes}, "weight_map": dict(sorted(parts.items()))}
    return INDEX_NAME, json.dumps(content, indent=2).encode()
