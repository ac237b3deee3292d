"""Strategy files: merged, read, and asked which ranks a conversion needs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from reshard.compat.mindspore.calls import as_rank, check_strategy_path, reference_errors
from reshard.compat.mindspore.needed_ranks import needed_ranks
from reshard.compat.placing import on_disk
from reshard.errors import counted
from reshard.layout.stages import AnySharding
from reshard.layout.tensor import Sharding
from reshard.ops.strategies import merge
from reshard.strategy.folder import read_strategy
from reshard.strategy.json_file import read_json
from reshard.strategy.protobuf import opt_shard_step, read_protobuf


class DimList(Struct, frozen=True):
    """A list of numbers, as the messages of a strategy file have it."""

    dim: tuple[int, ...]


class ParallelLayouts(Struct, frozen=True):
    """How one parameter is cut, in the fields of MindSpore's message of this name."""

    dev_matrix: tuple[DimList, ...]
    tensor_map: tuple[DimList, ...]
    param_split_shape: tuple[DimList, ...]
    indices_offset: tuple[DimList, ...]
    field: int
    opt_weight_shard_step: int
    opt_weight_shard_size: int


def merge_pipeline_strategys(src_strategy_dirs: str, dst_strategy_file: str) -> None:
    """Merge the strategy files of all pipeline stages in a folder into one file.

    Raises:
        NotADirectoryError: ``src_strategy_dirs`` is not a folder.
        ValueError: a stage is missing, the files are of two jobs or of two kinds, or there are none.
    """
    if not os.path.isdir(src_strategy_dirs):
        raise NotADirectoryError(f"src_strategy_dirs {src_strategy_dirs} is not a directory.")
    with reference_errors():
        merge(str(src_strategy_dirs), os.path.abspath(on_disk(dst_strategy_file)), overwrite=True)


def rank_list_for_transform(
    rank_id: int, src_strategy_file: str | None = None, dst_strategy_file: str | None = None
) -> list[int]:
    """Source ranks, descending, whose files the conversion of target rank ``rank_id`` needs.

    Raises:
        TypeError: an argument of another type.
        ValueError: a strategy that is not right.
    """
    rank_id = as_rank(rank_id, "rank_id")
    check_strategy_path(src_strategy_file, "src_strategy_file")
    check_strategy_path(dst_strategy_file, "dst_strategy_file")
    if src_strategy_file is None:
        return [0]
    with reference_errors():
        source = read_strategy(src_strategy_file)
        target = read_strategy(dst_strategy_file) if dst_strategy_file is not None else None
    world = target.world if target else 1
    if not 0 <= rank_id < world:
        raise ValueError(f"rank_id {rank_id} is not among the target's {counted(world, 'rank')}")
    return list(reversed(needed_ranks(source, target, rank_id)))


rank_list_for_convert = rank_list_for_transform


def build_searched_strategy(strategy_filename: str | None) -> dict[str, ParallelLayouts] | None:
    """How each parameter is cut, by name; in a merged file the stage stands before the name (``0-name``).

    Raises:
        TypeError: ``strategy_filename`` is not a string.
        ValueError: the file is not there or not a strategy.
    """
    check_strategy_path(strategy_filename, "strategy_filename")
    if strategy_filename is None:
        return None
    path = Path(strategy_filename)
    if not path.is_file():
        raise ValueError(f"strategy_filename: not a file: {path}")
    read = read_json if path.suffix == ".json" else read_protobuf
    with reference_errors():
        entries = read(path.read_bytes(), str(path)).entries()
    return {name: _layouts(entry) for name, entry in entries.items()}


def _layouts(entry: AnySharding) -> ParallelLayouts:
    cut = entry if isinstance(entry, Sharding) else entry.sharding
    maps = [tuple(axes) or (-1,) for axes in cut.tensor_map]
    if all(len(m) == 1 for m in maps):
        maps = [tuple(m[0] for m in maps)]
    elif len(maps) == 1:
        maps.append(())
    step = opt_shard_step(cut)
    return ParallelLayouts(
        _dims([cut.device_matrix]), _dims(maps), _dims([()]), _dims([()]), 0, step, cut.opt_shard if step else 0
    )


def _dims(lists: Iterable[tuple[int, ...]]) -> tuple[DimList, ...]:
    return tuple(map(DimList, lists))
