"""Kinds of targets by name: what a user asks for becomes one of them, imported when it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import UsageError
from reshard.formats.base import Format
from reshard.formats.mindspore_ckpt import MindSporeCkpt
from reshard.formats.registry import format_named, format_of
from reshard.layout.stages import Strategy
from reshard.planning.catalog import Catalog
from reshard.planning.plan import SmallFile
from reshard.planning.target import Kind

PREFIX = "checkpoint_"
_PLAIN = ("", "ranks", "full")
"""Families of sources whose default target is one full checkpoint in a rank's folder, as MindSpore lays it out."""


class AskedTarget(Struct, frozen=True, kw_only=True):
    """What a user says of the files of a target.

    Attributes:
        single: the name of the one file that the target shall be; "" for a folder.
        to: the kind, as ``--to`` names it; "" for what the rest says.
        files: how many there shall be; 0 for the kind's own number.
        tp, pp, ep: ranks of Megatron's that cut tensors, layers and experts; 0 where nothing is said of them.
        iteration, release: what a training calls this state of it, and the program that shall read it.
    """

    single: str = ""
    to: str = ""
    strategy: Strategy | None = None
    format: str = ""
    crc: bool = False
    prefix: str = PREFIX
    max_shard_nbytes: int | None = None
    drop_redundancy: bool = False
    along: tuple[SmallFile, ...] = ()
    files: int = 0
    tp: int = 0
    pp: int = 0
    ep: int = 0
    iteration: int | None = None
    release: str = ""


class _NamedKind(Struct, frozen=True):
    """``told``: what it makes, in words. ``takes``: the fields of ``AskedTarget`` that it understands."""

    told: str
    place: str
    takes: frozenset[str]


_BYTES = {"format", "crc"}
_KINDS = {
    "ranks": _NamedKind(
        "rank folders",
        "reshard.families.rank_targets:ranks_asked",
        frozenset({*_BYTES, "strategy", "prefix", "drop_redundancy"}),
    ),
    "full": _NamedKind(
        "one full checkpoint", "reshard.families.rank_targets:full_asked", frozenset({*_BYTES, "single", "prefix"})
    ),
    "parts": _NamedKind(
        "one full checkpoint in parts",
        "reshard.families.parts:parts_asked",
        frozenset({*_BYTES, "max_shard_nbytes", "along"}),
    ),
    "checkpoint2": _NamedKind(
        "a Checkpoint 2.0",
        "reshard.families.checkpoint2_target:checkpoint2_asked",
        frozenset({"strategy", "prefix", "drop_redundancy", "iteration", "release"}),
    ),
    "dcp": _NamedKind(
        "a distributed checkpoint of PyTorch", "reshard.families.dcp_target:dcp_asked", frozenset({"crc", "files"})
    ),
    "torch_dist": _NamedKind(
        "Megatron's distributed form",
        "reshard.families.megatron_dist_target:torch_dist_asked",
        frozenset({"crc", "files", "iteration"}),
    ),
    "megatron": _NamedKind(
        "Megatron's rank folders",
        "reshard.families.megatron_target:megatron_asked",
        frozenset({"crc", "tp", "pp", "ep", "iteration"}),
    ),
    "universal": _NamedKind(
        "a universal checkpoint of DeepSpeed", "reshard.families.universal:universal_asked", frozenset({"crc"})
    ),
}
_OPTIONS = {
    "along": "--with-files",
    "strategy": "--dst-strategy",
    "max_shard_nbytes": "--max-shard-size",
    "iteration": "--dst-iteration",
}
"""Options that are called otherwise than their fields."""


def kinds() -> tuple[str, ...]:
    """What ``--to`` may say."""
    return tuple(_KINDS)


def kind_asked(asked: AskedTarget, source: Catalog) -> Kind:
    """The kind of target that is asked for, or that suits the source. Raises UsageError for options that it does not
    take.
    """
    name = asked.to or _default(asked, source)
    entry = _KINDS.get(name)
    if entry is None:
        raise UsageError(f"--to {name!r}", hint=f"one of: {', '.join(_KINDS)}")
    _check_taken(asked, name, entry)
    module, _, attribute = entry.place.partition(":")
    made: Callable[[AskedTarget, Catalog], Kind] = getattr(import_module(module), attribute)
    return made(asked, source)


def _default(asked: AskedTarget, source: Catalog) -> str:
    if asked.strategy:
        return "ranks"
    if asked.max_shard_nbytes:
        return "parts"
    in_parts = not asked.single and source.kind not in _PLAIN and asked.format != "ckpt"
    return "parts" if in_parts else "full"


def _check_taken(asked: AskedTarget, name: str, entry: _NamedKind) -> None:
    unused = AskedTarget(to=asked.to)
    for field in asked.__struct_fields__:
        if field in ("to", *entry.takes) or getattr(asked, field) == getattr(unused, field):
            continue
        if field == "single":
            raise UsageError(
                f"{asked.single!r} names a file, the target is a folder of several ({entry.told})", hint="name a folder"
            )
        option = _OPTIONS.get(field, f"--{field.replace('_', '-')}")
        takers = ", ".join(other for other, known in _KINDS.items() if field in known.takes)
        raise UsageError(
            f"the target is {entry.told} (--to {name}), which has no use for {option}",
            hint=f"leave {option} out; it is for --to {takers}",
        )


def format_asked(asked: AskedTarget, source: Catalog) -> Format:
    """What is asked for, what the file's name says, or the format of the source; ranks load no torch files."""
    by_name = format_of(asked.single) if asked.single else None
    by_source = source.files[0].format
    if (by_source == "torch" and asked.strategy) or source.kind not in _PLAIN:
        by_source = "safetensors"
    made = format_named(asked.format) if asked.format else by_name or format_named(by_source)
    if by_name and by_name.name != made.name:
        raise UsageError(f"the target is named {asked.single!r} and --format is {made.name}", hint="drop one of them")
    return replace(made, crc=True) if asked.crc and isinstance(made, MindSporeCkpt) else made
