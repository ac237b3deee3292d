"""MindSpore's checkpoint functions: the same names, arguments, defaults, results on disk and types of exceptions.

NumPy arrays go in and out; where MindSpore is installed, Parameters do.
"""

from __future__ import annotations

from reshard.compat.mindspore.file_formats import ckpt_to_safetensors, safetensors_to_ckpt
from reshard.compat.mindspore.loading import load_distributed_checkpoint
from reshard.compat.mindspore.strategies import (
    build_searched_strategy,
    merge_pipeline_strategys,
    rank_list_for_convert,
    rank_list_for_transform,
)
from reshard.compat.mindspore.transforming import (
    convert_checkpoint_by_rank,
    convert_checkpoints,
    transform_checkpoint_by_rank,
    transform_checkpoints,
)
from reshard.compat.mindspore.unifying import unified_safetensors

__all__ = [
    "build_searched_strategy",
    "ckpt_to_safetensors",
    "convert_checkpoint_by_rank",
    "convert_checkpoints",
    "load_distributed_checkpoint",
    "merge_pipeline_strategys",
    "rank_list_for_convert",
    "rank_list_for_transform",
    "safetensors_to_ckpt",
    "transform_checkpoint_by_rank",
    "transform_checkpoints",
    "unified_safetensors",
]
