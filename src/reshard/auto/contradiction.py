"""Weights that are not those of the YAML's model: seen in the headers, before any rank has started."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from reshard.auto.config import Config
from reshard.auto.job_source import JobSource
from reshard.errors import CheckpointError, InputError, ReshardError, listed
from reshard.names.model import ModelFile, model_of_run
from reshard.ops.make_strategy import StrategyWish, model_shapes
from reshard.planning.catalog import IndexedFile
from reshard.planning.names import layer_pattern
from reshard.storage.storages import storage_of
from reshard.yaml_text import whole_numbers

Shapes = Mapping[str, tuple[int, ...]]


class FullShapes(Struct, frozen=True):
    """Full shapes of the weights that the model of a YAML has, none where it does not say.

    ``file`` is what it says; ``release`` of MindFormers by whose rules.
    """

    shapes: Shapes
    config: str
    file: ModelFile | None = None
    release: str = ""


_RANK = re.compile(r"(?P<before>(?:.*[_-])?rank_?)(?P<rank>\d+)(?P<after>.*)")


def model_of(config: Config, mindformers_version: str) -> FullShapes:
    making = StrategyWish(config=config.where, content=config.parallel, mindformers_version=mindformers_version)
    try:
        shapes = model_shapes(making)
    except InputError:
        shapes = {}  # of no family that is known, or sizes are not given
    file = model_of_run(whole_numbers(config.content), config.where)
    return FullShapes(shapes, config.where, file, mindformers_version)


def refuse_contradiction(model: FullShapes, held: Shapes, path: str) -> None:
    """Raises CheckpointError where full tensors are not those of the YAML's model.

    Names that only one side has are no contradiction, unless the other has them in other layers.
    """
    shapes = model.shapes
    wrong = [
        f"{n}: {list(held[n])} in the file, {list(s)} by the YAML" for n, s in shapes.items() if held.get(n, s) != s
    ]
    of_yaml, of_file = (
        {layer_pattern(name) for name in names if layer_pattern(name) != name} for names in (shapes, held)
    )
    wrong += [f"{n}: {list(s)} in the file, absent by the YAML" for n, s in held.items()
              if n not in shapes and layer_pattern(n) in of_yaml]  # fmt: skip
    wrong += [f"{n}: absent in the file, {list(s)} by the YAML" for n, s in shapes.items()
              if n not in held and layer_pattern(n) in of_file]  # fmt: skip
    if wrong:
        raise CheckpointError(
            f"the weights are not those of the model in {model.config}:\n" + listed(wrong),
            path,
            "check vocab_size, hidden_size, num_layers and the like in model_config; if it is one rank's slice, set "
            "load_checkpoint to the folder of rank_x and src_strategy_path_or_dir to its strategy",
        )


def held_shapes(files: Iterable[IndexedFile]) -> Shapes:
    """What full files hold."""
    return {name: stored.spec.shape for file in files for name, stored in file.contents.tensors.items()}


def refuse_slice(source: JobSource, model: FullShapes) -> None:
    """Raises CheckpointError for one rank's file that is given as a full checkpoint, where its neighbours tell and the
    YAML cannot.
    """
    path = source.source.path
    if model.shapes or source.found.distributed or storage_of(path).remote:
        return
    for place in (Path(path), Path(path).absolute().parent):
        found = _RANK.fullmatch(place.name)
        if found and (others := _others(place, found)):
            raise CheckpointError(
                f"one rank's file, given as a full checkpoint: {', '.join(others[:4])} lie beside {place.name}",
                path,
                "set load_checkpoint to the folder that holds them as rank_x, and src_strategy_path_or_dir to the "
                "strategy that they were saved with; a full file that lies there belongs in a folder of its own",
            )


def _others(place: Path, found: re.Match[str]) -> list[str]:
    """What is called as a file or folder is, for other ranks."""
    try:
        names = [entry.name for entry in storage_of(str(place.parent)).entries(str(place.parent))]
    except ReshardError:
        return []
    alike = (m for name in names if (m := _RANK.fullmatch(name)) and m["before"] == found["before"])
    return sorted(
        {m[0] for m in alike if m["rank"] != found["rank"] and _ending(m["after"]) == _ending(found["after"])}
    )


def _ending(after: str) -> str:
    return after.rpartition(".")[2]
