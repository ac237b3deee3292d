"""What can be done with a checkpoint that was looked at: commands to copy."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count

from reshard.names.wishes import HUB, MEGATRON, MINDFORMERS
from reshard.planning.catalog import Catalog
from reshard.planning.names import is_adapter, is_state
from reshard.storage.storage import join
from reshard.storage.storages import is_inside

_Free = Callable[[str], str]


def next_steps(source: Catalog, path: str, strategy: str, names: str = "") -> list[str]:
    """Lines of commands, each with what it gives; none for a checkpoint without tensors.

    Args:
        names: the convention of its names, "" where they do not tell.
    """
    from reshard.families.rank_listing import lone_rank_of
    from reshard.ops.naming import beside_of  # with all that reads models

    if not source.tensors:
        return []
    folder, alone = lone_rank_of(source)
    path = os.path.dirname(folder) or "." if alone else path
    place, free = _word(path), partial(_unused, _way_out(path))
    given = f"{place} --src-strategy {_word(strategy)}" if strategy else place
    if alone or not source.kind:
        steps = list(_of_slices(place, free))
    elif is_adapter(source.tensors):
        steps = [(f"lora merge BASE {free('merged')} --adapter {place}", "the model BASE with this adapter in it")]
    else:
        along = " --with-files" if names == HUB and beside_of(path) else ""
        missing = _of_incomplete(source, given)
        steps = missing or list(_of_whole(source, given, (names, along), free, told=bool(strategy)))
        rename = _renaming(source, names)
        if rename is not None:
            renamed = f"convert {given} {free('model')}{rename} --dst-names hf --model CONFIG{_weights(source)}"
            steps.append((renamed, "Hugging Face's names"))
        if not missing:
            whole = f"{place} --strategy {_word(strategy)}" if strategy else place
            steps.append((f"fingerprint {whole}", "a number of its content, whatever the layout"))
    width = max(len(command) for command, _ in steps)
    return ["next:", *(f"  reshard {command.ljust(width)}  {gives}" for command, gives in steps)]


def _of_slices(place: str, free: _Free) -> Iterator[tuple[str, str]]:
    """Rank folders of which nobody said how they were cut."""
    yield f"inspect {place} --strategy STRATEGY", "the tensors that the ranks' slices are of"
    yield f"merge {place} {free('full.safetensors')} --src-strategy STRATEGY", "one file"
    yield (
        f"convert {place} {free('ranks')} --src-strategy STRATEGY --dst-strategy OTHER",
        "the ranks of another job",
    )


def _word(path: str) -> str:
    """A path as a shell's word that is no option.

    >>> print(_word("two words"), _word("-v2"))
    'two words' ./-v2
    """
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


def _way_out(path: str) -> str:
    """What leads from here to beside a checkpoint that this folder lies in, where no target may lie; else ""."""
    return join(os.path.relpath(os.path.dirname(os.path.realpath(path))), "") if is_inside(".", path) else ""


def _unused(folder: str, name: str) -> str:
    """A name that nothing has there yet: a target that holds something is refused.

    >>> _unused("../", "full.safetensors")
    '../full.safetensors'
    """
    stem, dot, ending = name.partition(".")
    others = (f"{stem}-{number}{dot}{ending}" for number in count(2))
    return next(free for other in chain((name,), others) if not os.path.lexists(free := folder + other))


def _of_incomplete(source: Catalog, given: str) -> list[tuple[str, str]]:
    name = next((name for name, tensor in source.tensors.items() if tensor.shards.missing()), "")
    return [(f"explain {shlex.quote(name)} {given}", "where it should lie: shards of it are missing")] if name else []


def _weights(source: Catalog) -> str:
    """What leaves out the optimizer's states, where there are any beside weights."""
    states = sum(map(is_state, source.tensors))
    return " --weights-only" if 0 < states < len(source.tensors) else ""


def _renaming(source: Catalog, names: str) -> str | None:
    """What has to be said for Hugging Face's names, besides these; None where it has them, or nobody knows its own."""
    from reshard.names.naming import prefix_of_known  # with all recipes

    if names or source.kind == MEGATRON:
        return None if names == HUB else ""
    before = prefix_of_known(source.tensors)
    return " --rename " + shlex.quote(f"^{re.escape(before)}=>") if before else None


def _names_of_job(source: Catalog, names: str) -> str | None:
    """What gives weights the names of a strategy; None where no convention of MindFormers' has such weights."""
    if names != HUB:
        return ""
    known = _known_to(MINDFORMERS, source)
    return f" --dst-names {known}" if known else None


def _known_to(conventions: tuple[str, ...], source: Catalog) -> str:
    """The first of these conventions that has all of a checkpoint's names of Hugging Face's; "" for none."""
    from reshard.names.naming import knows_all  # with all recipes

    return next((convention for convention in conventions if knows_all(convention, source.tensors)), "")


def _of_whole(
    source: Catalog, given: str, named: tuple[str, str], free: _Free, *, told: bool
) -> Iterator[tuple[str, str]]:
    """``named``: the convention of its names, and what takes its files along; ``free`` gives an unused name."""
    weights, (names, along) = _weights(source), named
    one = source.kind == "full" and len(source.files) == 1
    if not one:
        yield f"convert {given} {free('full.safetensors')}{weights}", "one file"
    yield f"convert {given} {free('parts')} --to parts{weights}{along}", "parts with an index, as on Hugging Face"
    job = _names_of_job(source, names)
    if job is not None:
        yield f"convert {given} {free('ranks')} --dst-strategy STRATEGY{job}", "the ranks of a MindSpore job"
    if source.kind != "dcp":
        yield f"convert {given} {free('step-0')} --to dcp", "a DCP folder, for any mesh"
    if along and _known_to((MEGATRON,), source):
        yield f"convert {given} {free('release')} --to megatron --tp 1 --pp 1", "Megatron-Core's rank folders"
    if source.kind == "deepspeed":
        yield f"convert {given} {free('universal')} --to universal", "DeepSpeed on another number of ranks"
    if source.kind == "ranks" and not told:  # our manifest says how they are cut
        yield f"verify {given}", "proof that it is as it was written"
