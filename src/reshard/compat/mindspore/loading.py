"""``load_distributed_checkpoint``: what ranks of a target strategy hold, to disk, to the caller or into a network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from reshard.checkpoint import Checkpoint
from reshard.compat.mindspore.calls import as_rank, check_strategy_path, reference_errors, warn
from reshard.compat.mindspore.catalogs import chosen, of_files
from reshard.compat.placing import on_disk, place_files, staged
from reshard.digits import number_in
from reshard.errors import StrategyError
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.frameworks import given_as
from reshard.layout.stages import Strategy
from reshard.layout.tensor import Sharding
from reshard.ops.convert import execute, plan_from
from reshard.ops.observer import Observer
from reshard.ops.options import Options
from reshard.planning.catalog import Catalog, Tensor
from reshard.strategy.file import LayoutItem, StrategyFile
from reshard.strategy.folder import of_file
from reshard.strategy.protobuf import encode_layout, sharding_of

_FORMATS = ("safetensors", "ckpt")
_PREDICTED = "predict_strategy"


def load_distributed_checkpoint(
    network: Any,
    checkpoint_filenames: Sequence[str] | None = None,
    predict_strategy: str | Mapping[str, Any] | None = None,
    train_strategy_filename: str | None = None,
    strict_load: bool = False,
    dec_key: bytes | None = None,
    dec_mode: str = "AES-GCM",
    format: str = "ckpt",
    unified_safetensors_dir: str | None = None,
    dst_safetensors_dir: str | None = None,
    rank_id: int | None = None,
    output_format: str = "safetensors",
    name_map: Mapping[str, str] | None = None,
    max_process_num: int = 64,
    return_param_dict: bool = False,
) -> Any:
    """Cut a checkpoint for the strategy of prediction.

    The source is ``unified_safetensors_dir``, or with ``format="ckpt"`` ``checkpoint_filenames`` in order of rank,
    cut as ``train_strategy_filename`` says. ``predict_strategy`` is a path, or a dict as ``build_searched_strategy`` or
    ``infer_predict_layout`` give it. Without a network the slices of ``rank_id``, or of all ranks, are written:
    ``<dst>/rank_r/net.{output_format}``. Else this rank's parameters are returned or loaded into the network.
    ``name_map`` goes from names in the target to names in the source; ``max_process_num`` is not used.

    Returns:
        The parameters by name; of safetensors and a network what MindSpore's ``load_param_into_net`` gives; else True.

    Raises:
        TypeError: a strategy that is neither a path nor such a dict.
        ValueError: arguments that contradict each other, files or strategies that are not right.
        RuntimeError: a network is given and MindSpore is not installed.
    """
    _check_arguments(dec_key, format, output_format)
    target = _predicted(predict_strategy)
    if format == "ckpt":
        source = _of_ranks(checkpoint_filenames, train_strategy_filename)
        made = _given_back(source, target, network, rank_id, strict=strict_load, parameters=return_param_dict)
        return made if return_param_dict else True
    if strict_load or dec_mode != "AES-GCM" or checkpoint_filenames or train_strategy_filename:
        raise ValueError("strict_load, dec_mode and the names of .ckpt files are for format 'ckpt'.")
    if network is None and dst_safetensors_dir is None and not return_param_dict:
        raise ValueError("'dst_safetensors_dir' can not be None when network is None.")
    source = _of_folder(unified_safetensors_dir, name_map or {})
    if network is not None or dst_safetensors_dir is None:
        return _given_back(source, target, network, rank_id, strict=False, parameters=return_param_dict)
    rank = None if rank_id is None else as_rank(rank_id, "rank_id")
    _write(source, target, str(dst_safetensors_dir), rank, output_format)
    return True


def _check_arguments(dec_key: object, *formats: str) -> None:
    if not set(formats) <= set(_FORMATS):
        raise ValueError(f"'format' and 'output_format' must be 'ckpt' or 'safetensors', but got {formats}.")
    if dec_key is not None:
        raise ValueError("dec_key: encrypted checkpoints are not read")


def _of_ranks(files: Sequence[str] | None, strategy: str | None) -> Catalog:
    if not files:
        raise ValueError("'checkpoint_filenames' must name the files of all ranks when format is 'ckpt'.")
    check_strategy_path(strategy, "train_strategy_filename")
    with reference_errors():
        return of_files(dict(enumerate(map(str, files))), str(strategy or ""))


def _of_folder(folder: str | None, name_map: Mapping[str, str]) -> Catalog:
    if folder is None:
        raise ValueError("'unified_safetensors_dir' can not be None when format is 'safetensors'.")
    called = {old: new for new, old in name_map.items()}

    def choose(tensor: Tensor) -> str | None:
        """What it is for; None for one whose name is for the values of another."""
        return called.get(tensor.name, None if tensor.name in name_map else tensor.name)

    with reference_errors():
        return chosen(open_source(Source(str(folder))), choose)


def _write(source: Catalog, strategy: str | Strategy, dst: str, rank: int | None, form: str) -> None:
    """``rank_r/net.{form}`` of one rank or of all; without a strategy any rank gets everything."""
    options = Options(
        dst_strategy=strategy,
        format=form,
        ranks=frozenset({rank}) if rank is not None and strategy else None,
        missing="drop",
    )
    with reference_errors():
        target = on_disk(dst)
        ready = plan_from(source, dst, options)
    warn(ready.warnings)
    warn(f"{left.fate}: {len(left.names)}: {left.reason}" for left in ready.left_out)

    def place(made: Path) -> Path:
        folder = f"rank_{rank}" if rank is not None else made.parts[0]
        return Path(folder, f"net.{form}")

    with reference_errors(), staged(target) as folder:
        execute(ready, folder, options, Observer())
        place_files(folder, target, place, (s.path for s in ready.sources))


def _given_back(
    source: Catalog, strategy: str | Strategy, network: Any, rank: int | None, *, strict: bool, parameters: bool
) -> Any:
    """This rank's parameters, or what loading them into the network gives."""
    with reference_errors():
        arrays = Checkpoint(source, "").load(this_rank(rank) if strategy else 0, strategy or None, missing="drop")
        made = as_parameters(arrays)
    return made if parameters else load_into(network, made, strict=strict)


def _mindspore() -> Any:
    """The framework, or None."""
    return import_module("mindspore") if find_spec("mindspore") else None


def as_parameters(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """MindSpore Parameters, or without MindSpore NumPy arrays of the caller's own. bf16 keeps its bits."""
    if _mindspore() is None:
        return {name: np.array(array) for name, array in arrays.items()}
    return dict(given_as(arrays, "mindspore"))


def this_rank(given: int | None) -> int:
    """The rank of this process as MindSpore's communication or RANK_ID knows it, else the one given, else 0."""
    ms = _mindspore()
    if ms is not None:
        try:
            return int(ms.communication.get_rank())
        except RuntimeError:
            pass  # communication was not started
    if given is not None:
        return given
    rank = number_in(os.environ.get("RANK_ID", ""))
    if rank is None:
        warn(["Get rank failed, default loading weight for rank 0."])
    return rank or 0


def load_into(network: Any, parameters: Mapping[str, Any], *, strict: bool) -> Any:
    """What MindSpore's ``load_param_into_net`` gives. Raises RuntimeError without MindSpore."""
    ms = _mindspore()
    if ms is None:
        raise RuntimeError("a network is loaded by MindSpore, which is not installed: give return_param_dict=True")
    return ms.load_param_into_net(network, dict(parameters), strict_load=strict)


def _predicted(given: object) -> str | Strategy:
    """The path of a strategy, or what a dict says; "" for None.

    Its values are those of ``build_searched_strategy``, or lists as ``infer_predict_layout`` gives them: device matrix,
    tensor map, shape of a slice, field, and what tells of an optimizer shard.

    Raises:
        TypeError: neither a path nor a dict of parameters.
        ValueError: a path that is not there, a value of another kind.
    """
    if not isinstance(given, Mapping):
        check_strategy_path(given, _PREDICTED)
        return str(given or "")
    if not given or not all(isinstance(name, str) for name in given):
        raise TypeError(f"{_PREDICTED} should be a dict of parameters by name")
    with reference_errors():
        return of_file(StrategyFile(_PREDICTED, "ckpt", (), {name: _item(name, v) for name, v in given.items()}))


def _item(name: str, value: Any) -> LayoutItem:
    cut = _of_message(name, value) if hasattr(value, "dev_matrix") else _of_list(name, value)
    return encode_layout(cut)


def _of_message(name: str, value: Any) -> Sharding:
    fields = (value.dev_matrix, value.tensor_map, value.param_split_shape, value.indices_offset)
    lists = {number: [tuple(dims.dim) for dims in field] for number, field in enumerate(fields, start=1)}
    return sharding_of(name, lists, {5: value.field, 7: value.opt_weight_shard_size})


def _of_list(name: str, value: Any) -> Sharding:
    if not isinstance(value, Sequence) or len(value) < 4 or not all(isinstance(v, Sequence) for v in value[:2]):
        raise StrategyError(f"{name}: expected a list of device matrix, tensor map, shape of a slice and field")
    matrix, tensor_map, _, field, *rest = value
    if rest[1:] and rest[1]:
        raise StrategyError(
            f"{name}: its optimizer shard is known as the group {rest[1]!r} only",
            hint="give the strategy file of the job instead",
        )
    maps = [tuple(axes) if isinstance(axes, Sequence) else (axes,) for axes in tensor_map]
    lists = {1: [tuple(matrix)], 2: [*maps, ()], 3: [], 4: []}
    return sharding_of(name, lists, {5: field, 7: 0})
