"""``unified_safetensors``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from reshard.compat.mindspore.calls import check_folder, check_strategy_path, reference_errors, warn
from reshard.compat.mindspore.catalogs import chosen
from reshard.compat.placing import placed
from reshard.families.open_checkpoint import open_source
from reshard.families.parts import Parts
from reshard.ops.convert import execute, plan_from
from reshard.ops.observer import Observer
from reshard.ops.options import Options
from reshard.ops.unify import plan_unify_of
from reshard.planning.catalog import Catalog, Tensor
from reshard.planning.plan import Plan

_PART_NBYTES = 3 << 30
ChoiceFunction = Callable[[str], "bool | str"]


def unified_safetensors(
    src_dir: str,
    src_strategy_file: str,
    dst_dir: str,
    merge_with_redundancy: bool = True,
    file_suffix: str | None = None,
    max_process_num: int = 64,
    choice_func: ChoiceFunction | None = None,
    split_dst_file: Sequence[int] = (),
) -> None:
    """Merge a folder of ``rank_x`` into ``part{i}.safetensors``, ``param_name_map.json`` and, for what no strategy
    knows, ``hyper_param.safetensors``.

    Args:
        merge_with_redundancy: not used: whether redundancy was removed is seen in the files.
        max_process_num: not used: threads that suit the disks.
        choice_func: parameter name → False to leave it out, True to keep it, or its new name.
        split_dst_file: ``(i, n)``: only share i of n of the parts, from 1; the first also makes the other files.

    Raises:
        NotADirectoryError: ``dst_dir`` is a file.
        ValueError: a slice is held by no file, strategy and files do not fit, ``choice_func`` gives something else.
    """
    check_strategy_path(src_strategy_file, "src_strategy_file")
    if not src_strategy_file:
        raise ValueError("src_strategy_file must be given: nobody can know how the tensors were cut")
    if os.path.exists(dst_dir):
        check_folder(dst_dir, "dst_dir")
    if os.path.isfile(src_dir):
        raise ValueError("For 'unified_safetensors', the 'src_dir' can not be a file.")
    if split_dst_file and not 1 <= split_dst_file[0] <= split_dst_file[1]:
        raise ValueError(f"split_dst_file {tuple(split_dst_file)} is not (i, n) with 1 <= i <= n")
    with reference_errors():
        options = Options(str(src_strategy_file), format="safetensors", suffix=file_suffix or "")
        source = open_source(options.source(src_dir))
        if choice_func is not None:
            source = _without_absent(source, choice_func)
        ready = plan_unify_of(source, dst_dir, options)
        warn(ready.warnings)
        if choice_func is not None:
            ready = _chosen_plan(source, dst_dir, options, choice_func)
        if split_dst_file:
            ready = _share(ready, split_dst_file[0], split_dst_file[1])
        if not ready.files:
            return
        with placed(dst_dir, (s.path for s in ready.sources), alone=not split_dst_file) as folder:
            execute(ready, folder, options, Observer())


def _without_absent(source: Catalog, choice_func: ChoiceFunction) -> Catalog:
    """The same, without expecting what no file holds and ``choice_func`` leaves out."""
    expected = (n for n in source.expected if n in source.tensors or choice_func(n) is not False)
    return replace(source, expected=tuple(expected))


def _chosen_plan(source: Catalog, dst: str, options: Options, choice_func: ChoiceFunction) -> Plan:
    """The plan of what is chosen. That the source is whole was seen before."""

    def choose(tensor: Tensor) -> str | None:
        if tensor.name.startswith("accu_grads"):
            return None
        if not tensor.known:
            return tensor.name
        choice = choice_func(tensor.name)
        if not isinstance(choice, (bool, str)):
            raise ValueError(f"choice_func must return a bool or a str, but gave {type(choice).__name__}")
        if isinstance(choice, str):
            return choice
        return tensor.name if choice else None

    return plan_from(
        chosen(source, choose), dst, replace(options, missing="drop"), kind=Parts(_PART_NBYTES, "mindspore")
    )


def _share(ready: Plan, number: int, count: int) -> Plan:
    """The parts of one share of several, as even as they come; what is not a part goes with the first."""
    parts = [f for f in ready.files if Path(f.path).name.startswith("part")]
    each, rest = divmod(len(parts), count)
    first = (number - 1) * each + min(number - 1, rest)
    mine = parts[first : first + each + (number <= rest)]
    others = [f for f in ready.files if f not in parts] if number == 1 else []
    files = (*mine, *others)
    return replace(ready, files=files, total=len(files), closing=ready.closing if number == 1 else ())
