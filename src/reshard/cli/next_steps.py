"""What can be done with a checkpoint that was looked at: commands to copy."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from reshard.names.wishes import HUB
from reshard.planning.catalog import Catalog
from reshard.planning.names import is_lora, is_state


def next_steps(source: Catalog, path: str, strategy: str, names: str = "") -> list[str]:
    """Lines of commands, each with what it gives; none for a checkpoint without tensors.

    Args:
        names: the convention of its names, "" where they do not tell.
    """
    if not source.tensors:
        return []
    place = shlex.quote(path)
    given = f"{place} --src-strategy {shlex.quote(strategy)}" if strategy else place
    if not source.kind:
        steps = list(_of_slices(place))
    elif all(map(is_lora, source.tensors)):
        steps = [(f"lora merge BASE merged --adapter {place}", "the model BASE with this adapter in it")]
    else:
        steps = _of_incomplete(source, given) or list(_of_whole(source, given, told=bool(strategy)))
        if names not in ("", HUB):
            weights = " --weights-only" if any(map(is_state, source.tensors)) else ""
            steps.append((f"convert {given} model --dst-names hf --model CONFIG{weights}", "Hugging Face's names"))
    width = max(len(command) for command, _ in steps)
    return ["next:", *(f"  reshard {command.ljust(width)}  {gives}" for command, gives in steps)]


def _of_slices(place: str) -> Iterator[tuple[str, str]]:
    """Rank folders of which nobody said how they were cut."""
    yield f"inspect {place} --strategy STRATEGY", "the tensors that the ranks' slices are of"
    yield f"merge {place} full.safetensors --src-strategy STRATEGY", "one file"
    yield f"convert {place} ranks --src-strategy STRATEGY --dst-strategy OTHER", "the ranks of another job"


def _of_incomplete(source: Catalog, given: str) -> list[tuple[str, str]]:
    name = next((name for name, tensor in source.tensors.items() if tensor.shards.missing()), "")
    return [(f"explain {shlex.quote(name)} {given}", "where it should lie: shards of it are missing")] if name else []


def _of_whole(source: Catalog, given: str, *, told: bool) -> Iterator[tuple[str, str]]:
    weights = " --weights-only" if any(map(is_state, source.tensors)) else ""
    one = source.kind == "full" and len(source.files) == 1
    if not one:
        yield f"convert {given} full.safetensors{weights}", "one file"
    yield f"convert {given} parts --to parts{weights}", "parts with an index, as on Hugging Face"
    yield f"convert {given} ranks --dst-strategy STRATEGY", "the ranks of a MindSpore job"
    if source.kind != "dcp":
        yield f"convert {given} step-0 --to dcp", "a DCP folder, for any mesh"
    if source.kind == "deepspeed":
        yield f"convert {given} universal --to universal", "DeepSpeed on another number of ranks"
    if source.kind == "ranks" and not told:  # our manifest says how they are cut
        yield f"verify {given}", "proof that it is as it was written"
    yield f"fingerprint {given}", "a number of its content, whatever the layout"
