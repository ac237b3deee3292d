"""FSDP's files: which box of a tensor a rank holds, whose moments are whose, and what is told of missing ranks."""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from golden_families.test_recorded import unpacked
from making import array, read_file, same
from reshard import NameRules, Options
from reshard.errors import CheckpointError, FormatError, PlanError, UsageError
from reshard.formats.pickle_objects import Global, Record
from reshard.formats.torch_file import FOLDER, torch_frame
from reshard.formats.torch_values import TensorRef, whole
from reshard.index import TensorSpec

W = array((5, 6), seed=1)
SQUARE = array((4, 4), seed=2)
PLACEMENTS = "torch.distributed.tensor.placement_types"


def placed(kind: str, **fields: Any) -> Record:
    return Record(Global(PLACEMENTS, kind), (), fields)


def shard(dim: int) -> Record:
    return placed("Shard", dim=dim)


def write_torch(path: Path, make: Any) -> None:
    """A torch file of the value that ``make`` gives; it is given what keeps an array and gives its reference."""
    arrays: dict[str, np.ndarray] = {}

    def keep(value: np.ndarray) -> TensorRef:
        key = str(len(arrays))
        arrays[key] = np.ascontiguousarray(value)
        return whole(key, TensorSpec(value.dtype.name, value.shape))

    frame = torch_frame(make(keep), {key: value.nbytes for key, value in arrays.items()} if make(keep) else {})
    content = bytearray(frame.nbytes)
    for at, piece in frame.pieces:
        content[at : at + len(piece)] = piece
    for key, value in list(arrays.items()):
        if f"{FOLDER}/data/{key}" in frame.holes:
            (extent,) = frame.holes[f"{FOLDER}/data/{key}"]
            content[extent.offset : extent.end] = value.tobytes()
    path.write_bytes(content)
