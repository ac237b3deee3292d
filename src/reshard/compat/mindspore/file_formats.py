"""``ckpt_to_safetensors`` and ``safetensors_to_ckpt``: file by file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from reshard.compat.mindspore.calls import reference_errors, warn
from reshard.compat.mindspore.catalogs import chosen, of_files
from reshard.compat.placing import on_disk, place_files, staged
from reshard.ops.convert import execute, plan_from
from reshard.ops.observer import Observer
from reshard.ops.options import Options


def ckpt_to_safetensors(
    file_path: str,
    save_path: str | None = None,
    name_map: Mapping[str, str] | None = None,
    file_name_regex: str | None = None,
    processes_num: int = 1,
) -> None:
    """Convert a .ckpt file, or those of the folders ``rank*`` in a folder, to safetensors of the same name.

    Args:
        save_path: a folder; None for beside the source.
        name_map: old parameter name → new.
        file_name_regex: only files in whose name it is found.
        processes_num: not used: threads that suit the disks.

    Raises:
        ValueError: a path, map or file that is not right.
    """
    _convert_all("ckpt_to_safetensors", file_path, save_path, name_map, file_name_regex, (".ckpt", ".safetensors"))


def safetensors_to_ckpt(
    file_path: str,
    save_path: str | None = None,
    name_map: Mapping[str, str] | None = None,
    file_name_regex: str | None = None,
    processes_num: int = 1,
) -> None:
    """As ``ckpt_to_safetensors``, the other way."""
    _convert_all("safetensors_to_ckpt", file_path, save_path, name_map, file_name_regex, (".safetensors", ".ckpt"))


def _convert_all(
    called: str,
    file_path: str,
    save_path: str | None,
    name_map: Mapping[str, str] | None,
    pattern: str | None,
    suffixes: tuple[str, str],
) -> None:
    source = Path(file_path)
    if not source.is_dir() and not source.is_file():
        raise ValueError(f"For {called}, the input path must be a valid path or file, but got {file_path}")
    if save_path and os.path.splitext(save_path)[1]:
        raise ValueError(f"For {called}, the save_path must be a directory, but got '{save_path}'")
    if name_map is not None and not isinstance(name_map, Mapping):
        raise ValueError(f"For {called}, the type of 'name_map' must be a dict, but got '{type(name_map)}'")
    if source.is_file():
        if source.suffix != suffixes[0]:
            raise ValueError(f"For {called}, the input file must be a {suffixes[0]} file, but got {file_path}")
        if pattern is not None and not re.search(pattern, str(file_path)):
            raise ValueError(f"For {called}, the input file does not match the regular expression.")
        pairs = [(source, Path(save_path or source.parent))]
    else:
        pairs = _files_of_ranks(called, source, save_path, pattern, suffixes[0])
    with reference_errors():
        on_disk(str(save_path or ""))
        for file, folder in pairs:
            _convert(file, folder / (file.stem + suffixes[1]), name_map or {})


def _files_of_ranks(
    called: str, source: Path, save_path: str | None, pattern: str | None, suffix: str
) -> list[tuple[Path, Path]]:
    """Files with the folder that each goes to."""
    folders = sorted(p for p in source.iterdir() if p.is_dir() and p.name.startswith("rank"))
    if not folders:
        raise ValueError(f"For '{called}', no directories starting with 'rank' found in {source}.")
    return [
        (file, Path(save_path, folder.name) if save_path else folder)
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix == suffix and (pattern is None or re.search(pattern, file.name))
    ]


def _convert(file: Path, target: Path, name_map: Mapping[str, str]) -> None:
    source = chosen(of_files({0: str(file)}), lambda tensor: name_map.get(tensor.name, tensor.name))
    options = Options(format=target.suffix[1:])
    with staged(target.parent) as folder:
        made = folder / target.name
        ready = plan_from(source, str(made), options)
        warn(ready.warnings)
        execute(ready, made, options, Observer())
        place_files(folder, target.parent)
