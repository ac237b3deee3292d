"""``transform_checkpoints`` and ``transform_checkpoint_by_rank``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from reshard.compat.mindspore.calls import (
    as_rank,
    check_folder,
    check_strategy_path,
    check_type,
    reference_errors,
    warn,
)
from reshard.compat.mindspore.catalogs import of_files
from reshard.compat.placing import on_disk, place_files, placed, staged
from reshard.errors import PlanError, listed
from reshard.families.discover import Select
from reshard.families.strategies import read_strategy
from reshard.layout.stages import Strategy
from reshard.ops.convert import execute, plan, plan_from
from reshard.ops.observer import Observer
from reshard.ops.options import Options
from reshard.planning.names import is_lora, is_state
from reshard.planning.plan import Plan

_FORMATS = ("ckpt", "safetensors")


def transform_checkpoints(
    src_checkpoints_dir: str,
    dst_checkpoints_dir: str,
    ckpt_prefix: str,
    src_strategy_file: str | None = None,
    dst_strategy_file: str | None = None,
    process_num: int = 1,
    output_format: str = "ckpt",
) -> None:
    """Convert a folder of ``rank_x``, or one full safetensors file, to another strategy:
    ``<dst>/rank_r/{prefix}{r}.{format}``.

    Of several files in a ``rank_x`` the last by name is taken, of safetensors that of the last (epoch, step). Where
    the source's strategy knows only some of the parameters that the target's knows, without pipelines, files are
    called ``{prefix}{r}_part0``, as the reference calls them. Files that are there already stay or are replaced.

    Args:
        process_num: not used: threads that suit the disks.

    Raises:
        NotADirectoryError: ``src_checkpoints_dir`` is neither, or ``dst_checkpoints_dir`` is a file.
        TypeError, ValueError: arguments, strategies or files that are not right.
    """
    check_type(ckpt_prefix, str, "ckpt_prefix")
    check_strategy_path(src_strategy_file, "src_strategy_file")
    check_strategy_path(dst_strategy_file, "dst_strategy_file")
    if output_format not in _FORMATS:
        raise ValueError(f"output_format must be 'safetensors' or 'ckpt', but got {output_format}.")
    if not (str(src_checkpoints_dir).endswith(".safetensors") and os.path.isfile(src_checkpoints_dir)):
        check_folder(src_checkpoints_dir, "src_checkpoints_dir")
    if os.path.exists(dst_checkpoints_dir):
        check_folder(dst_checkpoints_dir, "dst_checkpoints_dir")
    named = any(Path(src_checkpoints_dir).glob("rank_*/*.ckpt"))
    select: Select = "name" if named else "natural"
    with reference_errors():
        options = Options(
            read_strategy(src_strategy_file) if src_strategy_file else "",
            read_strategy(dst_strategy_file) if dst_strategy_file else "",
            format=output_format,
            prefix=ckpt_prefix,
            select=select,
        )
        ready = plan(src_checkpoints_dir, dst_checkpoints_dir, options)
        warn(ready.warnings)
        if named and _is_partial(options):
            ready = _called_parts(ready)
        with placed(dst_checkpoints_dir, (s.path for s in ready.sources)) as folder:
            execute(ready, folder, options, Observer())


convert_checkpoints = transform_checkpoints


def transform_checkpoint_by_rank(
    rank_id: int,
    checkpoint_files_map: Mapping[int, str],
    save_checkpoint_file_name: str,
    src_strategy_file: str | None = None,
    dst_strategy_file: str | None = None,
) -> None:
    """Convert the files of ``rank_list_for_transform`` to what target rank ``rank_id`` holds, in one .ckpt file.

    Raises:
        TypeError: an argument of another type.
        ValueError: a name that does not end in .ckpt, a file that is not there, strategies or files that do not fit.
    """
    if not isinstance(checkpoint_files_map, Mapping):
        raise TypeError("The checkpoint_files_map should be a dict.")
    rank_id = as_rank(rank_id, "rank_id")
    check_type(save_checkpoint_file_name, str, "save_checkpoint_file_name")
    if not save_checkpoint_file_name.endswith(".ckpt"):
        raise ValueError(f"The save_checkpoint_file_name {save_checkpoint_file_name} should end with .ckpt")
    check_strategy_path(src_strategy_file, "src_strategy_file")
    check_strategy_path(dst_strategy_file, "dst_strategy_file")
    files = _files_of_ranks(checkpoint_files_map)
    with reference_errors():
        target = on_disk(save_checkpoint_file_name)
        options = Options(
            dst_strategy=read_strategy(dst_strategy_file) if dst_strategy_file else "",
            format="ckpt",
            ranks=frozenset({rank_id}),
            missing="drop",  # files of one stage alone may be given; what this rank lacks is refused below
        )
        source = replace(of_files(files, str(src_strategy_file or "")), warnings=())
        ready = plan_from(source, str(target.parent), options)
        _refuse_gaps(ready, options, rank_id)
        with staged(target.parent) as folder:
            execute(ready, folder, options, Observer())
            place_files(folder, target.parent, lambda _: Path(target.name), files.values())


convert_checkpoint_by_rank = transform_checkpoint_by_rank


def _files_of_ranks(given: Mapping[Any, Any]) -> dict[int, str]:
    """Files by rank; a rank may be written as text, as JSON has it. Raises ValueError for an item that is not right."""
    files: dict[int, str] = {}
    if not given:
        raise ValueError("checkpoint_files_map: it names no file")
    for key, file in given.items():
        try:
            rank = int(key) if isinstance(key, str) else as_rank(key, "rank")
        except (TypeError, ValueError):
            raise ValueError(f"checkpoint_files_map: {key!r} is not a rank") from None
        if not isinstance(file, (str, os.PathLike)) or not os.path.exists(file):
            raise ValueError(f"Checkpoint file {file} in rank {rank} not exits: ")
        if rank in files:
            raise ValueError(f"checkpoint_files_map: rank {rank} has two files")
        files[rank] = str(file)
    return files


def _refuse_gaps(ready: Plan, options: Options, rank: int) -> None:
    """Raises PlanError where the rank would lack a weight that its stage has, or a weight would be left out."""
    mine = frozenset[str]()
    strategy = options.dst_strategy
    if isinstance(strategy, Strategy):
        mine = frozenset(strategy.stages[rank // strategy.devices])
    faults = [
        f"{name}: {left.reason}"
        for left in ready.left_out
        for name in left.names
        if not is_state(name) and (left.fate == "dropped" or (name in mine and not is_lora(name)))
    ]
    if faults:
        raise PlanError("nobody can know what these should be:\n" + listed(faults))


def _is_partial(options: Options) -> bool:
    """Whether the reference would call the files parts: one stage each, the source's weights a part of the target's."""
    source, target = options.src_strategy, options.dst_strategy
    if not isinstance(source, Strategy) or not isinstance(target, Strategy):
        return False
    ours, theirs = (frozenset(n for n in s.names() if not is_state(n)) for s in (source, target))
    return len(source.stages) == len(target.stages) == 1 and ours < theirs


def _called_parts(ready: Plan) -> Plan:
    paths = (Path(f.path) for f in ready.files)
    names = (str(p.with_stem(f"{p.stem}_part0")) for p in paths)
    return replace(ready, files=tuple(replace(f, path=name) for f, name in zip(ready.files, names, strict=True)))
