"""Folders as DeepSpeed saves them, ZeRO-2 and 3 with Adam, to time conversions on; no DeepSpeed is needed."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from checkpoints import Model, random_values
from reshard.formats.pickle_objects import Global, Record
from reshard.formats.torch_file import torch_frame
from reshard.formats.torch_values import TensorRef, whole
from reshard.index import TensorSpec

Numbers = npt.NDArray[Any]
_ALIGNED = 2
"""DeepSpeed pads a group to a multiple of so many elements a rank."""


def write_zero(model: Model, folder: Path, stage: int, ranks: int) -> Path:
    """Masters are random, and what bfloat16 can hold; moments are holes in the files, for who reads weights alone never
    reads them.
    """
    shapes = {name: shape for name, (shape, _, _) in model.tensors().items()}
    tag = folder / "global_step1"
    tag.mkdir(parents=True)
    (folder / "latest").write_text(tag.name)
    length = _length(shapes, stage, ranks)
    for rank in range(ranks):
        _write_optimizer(tag / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", stage, ranks, length, rank)
        if stage == 3 or rank == 0:
            name = f"zero_pp_rank_{rank}_mp_rank_00" if stage == 3 else "mp_rank_00"
            _write_model(tag / f"{name}_model_states.pt", shapes, stage, ranks)
    return folder


def _length(shapes: Mapping[str, tuple[int, ...]], stage: int, ranks: int) -> int:
    """Elements of a rank's partition."""
    if stage == 3:
        return sum(-(-prod(shape) // ranks) for shape in shapes.values())
    total = sum(map(prod, shapes.values()))
    return -(-total // (_ALIGNED * ranks)) * _ALIGNED


def _write_optimizer(path: Path, stage: int, ranks: int, length: int, rank: int) -> None:
    flats = [whole(str(key), TensorSpec("float32", (length,))) for key in range(3)]
    inner = {"state": {0: {"step": 1, "exp_avg": flats[1], "exp_avg_sq": flats[2]}}, "param_groups": [{"params": [0]}]}
    stages = Global("deepspeed.runtime.zero.config", "ZeroStageEnum")
    states: dict[str, Any] = {"zero_stage": Record(stages, (stage,))}
    if stage == 3:
        states |= {"partition_count": ranks, "fp32_flat_groups": [flats[0]], "optimizer_state_dict": inner}
    else:
        states |= {"partition_count": [ranks], "single_partition_of_fp32_groups": [flats[0]]}
        states["base_optimizer_state"] = inner
    numbers = _numbers(rank, length).astype(np.uint32) << 16
    _write(path, {"optimizer_state_dict": states}, {"0": 4 * length, "1": 4 * length, "2": 4 * length}, numbers)


def _write_model(path: Path, shapes: Mapping[str, tuple[int, ...]], stage: int, ranks: int) -> None:
    """At stage 3 weights are of no elements here; below it they are views of one storage: the masters, rounded."""
    module: dict[str, TensorRef] = {}
    count, at = 0 if stage == 3 else sum(map(prod, shapes.values())), 0
    flat = whole("0", TensorSpec("bfloat16", (count,)))
    for name, shape in shapes.items():
        size = (0,) if stage == 3 else shape
        own = whole("0", TensorSpec("bfloat16", size))
        module[name] = TensorRef(flat.storage, "bfloat16", size, own.strides, at)
        at += prod(size)
    value = {"module": module, "param_shapes": [dict(shapes)], "buffer_names": [], "frozen_param_shapes": {},
             "shared_params": {}, "ds_version": "0.19.8", "mp_world_size": 1}  # fmt: skip
    length = _length(shapes, stage, ranks)
    _write(path, value, {"0": 2 * count}, np.concatenate([_numbers(rank, length) for rank in range(ranks)])[:count])


def _numbers(rank: int, count: int) -> Numbers:
    """The bits of a rank's masters in bfloat16."""
    return np.frombuffer(random_values(np.random.default_rng(rank), "bfloat16", 2 * count), np.uint16)


def _write(path: Path, value: Any, storages: Mapping[str, int], numbers: Numbers) -> None:
    """Only the first storage has numbers."""
    frame = torch_frame(value, storages)
    with path.open("wb") as file:
        file.truncate(frame.nbytes)
        for offset, piece in frame.pieces:
            file.seek(offset)
            file.write(piece)
        (hole,) = frame.holes["0"]
        file.seek(hole.offset)
        file.write(numbers.tobytes())
