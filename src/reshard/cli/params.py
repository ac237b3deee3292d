"""Options that several commands share, each written down once, and what they say to the rest of the program."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from reshard.cli.completion import one_of
from reshard.cli.sharing import parse_share, read_nodes
from reshard.cli.text import parse_nbytes, parse_ranks, parse_rename
from reshard.digits import number_in
from reshard.errors import UsageError

if TYPE_CHECKING:
    from reshard.families.source import Source
    from reshard.names.wishes import Naming
    from reshard.ops.options import Means, Options
    from reshard.planning.names import NameRules

Src = Annotated[str, typer.Argument(metavar="SRC", help="Checkpoint of any family: its file, folder or URL.")]
Dst = Annotated[str, typer.Argument(metavar="DST", help="New folder; or a file name, for one full checkpoint.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no summary.")]

_Option = tuple[str, tuple[Any, Any]]
"""A parameter's name, its type as typer has it, and its default."""


def _text(name: str, metavar: str, says: str, default: str = "", *, spelt: str = "") -> _Option:
    return name, (Annotated[str, typer.Option(*filter(None, [spelt]), metavar=metavar, help=says)], default)


def _texts(name: str, metavar: str, says: str) -> _Option:
    return name, (Annotated[list[str] | None, typer.Option(metavar=metavar, help=f"{says}; repeatable.")], None)


def _choice(name: str, words: str, says: str, default: str = "", *, metavar: str = "") -> _Option:
    """One of some words; ``metavar`` where these are too many to show."""
    completes = one_of(*words.split("|"))
    return name, (Annotated[str, typer.Option(metavar=metavar or words, help=says, autocompletion=completes)], default)


def _number(name: str, says: str, least: int = 1) -> _Option:
    return name, (Annotated[int | None, typer.Option(metavar="N", min=least, help=says)], None)


def _flag(name: str, says: str) -> _Option:
    return name, (Annotated[bool, typer.Option(f"--{name.replace('_', '-')}", help=says)], False)


_MAY_BE_EMPTY = ("prefix",)


def refuse_empty(context: Any, option: Any, value: Any) -> Any:
    """An option that was given "" would pass for one that was not given. Raises UsageError."""
    said = context.get_parameter_source(option.name).name != "DEFAULT"
    nothing = "" in value if isinstance(value, (list, tuple)) else value == ""
    if said and nothing and option.name not in _MAY_BE_EMPTY:
        raise UsageError(f"{option.opts[0]} is empty", hint="is a variable not set? leave the option out")
    return value


_NAMES = "hf|mindformers|mcore|megatron|torchtitan"
_OF_NAMES = dict(
    [
        _choice("src_names", _NAMES, "Whose names SRC has, where they do not tell."),
        _choice("dst_names", _NAMES, "Whose names DST gets."),
        _text("model", "FILE", "The model: config.json, or the YAML of a MindFormers run."),
        _text("src_model", "FILE", "The model as SRC has it, where both sides have a YAML."),
        _text("dst_model", "FILE", "The model as DST has it."),
        _choice("qkv", "grouped|concat", "How the side that is not Hugging Face's fuses q, k, v."),
        _choice("gate_up", "interleaved|concat", "How it fuses gate and up."),
        _choice("src_qkv", "grouped|concat", "How SRC fuses q, k, v, where both sides do."),
        _choice("src_gate_up", "interleaved|concat", "How SRC fuses gate and up."),
        _text("release", "r1.5", "Of MindFormers, for what changed."),
        _number("vocab_rows", "Rows of DST's vocabulary."),
        _choice("tied", "keep|copy|drop", "An output layer that is the embedding's."),
        _flag("dequantize", "Multiply codes by their scales."),
    ]
)
_KINDS = "ranks|full|parts|checkpoint2|dcp|torch_dist|megatron|universal"
_FLOATING = "bfloat16|float16|float32|float64"
_CONVERSION = dict(
    [
        _text("src_strategy", "P", "Strategy of SRC: file or folder. None: one full checkpoint."),
        _text("dst_strategy", "P", "Strategy of DST: file or folder. None: one full checkpoint."),
        _choice(
            "to",
            _KINDS,
            f"What DST shall be: {_KINDS.replace('|', ', ')}. Default: as strategy, name and SRC say.",
            metavar="KIND",
        ),
        _choice("format", "ckpt|safetensors|torch", "ckpt, safetensors or torch. Default: as SRC.", metavar="F"),
        _text("prefix", "TEXT", "Files are rank_r/{prefix}{r}.", "checkpoint_"),
        _choice("dtype", _FLOATING, "Cast floating weights (bfloat16, float16, float32 …).", metavar="D"),
        _texts("rename", "'RE=>NAME'", "Rename tensors, as re.sub does"),
        _texts("include", "RE", "Only tensors whose name matches"),
        _texts("exclude", "RE", "Without tensors whose name matches"),
        _flag("weights_only", "Without optimizer states."),
        _text("family", "FAMILY", "What SRC is, where that is ambiguous.", spelt="--from"),
        _number("iteration", "Which iteration of several.", 0),
        _text("frozen", "RE", "FSDP's weights that were not trained."),
        _text("ranks", "0-7,12", "Make only these target ranks."),
        _text("share", "i/n|auto", "Make only this share; others make theirs, anywhere."),
        _choice(
            "select",
            "natural|name|mtime|step",
            "Which file of a rank_x with several: natural, name, mtime or step.",
            "natural",
            metavar="RULE",
        ),
        _text("suffix", "E_S", "Only files whose name ends so, as 1_10."),
        _choice("missing", "error|drop", "drop: leave out what nobody can know.", "error"),
        _text("max_shard_size", "5GiB", "One full checkpoint in parts, with an index."),
        _number("files", "Files of a DCP folder."),
        _number("tp", "Tensor-parallel ranks of Megatron's."),
        _number("pp", "Pipeline stages of Megatron's."),
        _number("ep", "Expert-parallel ranks of Megatron's."),
        _flag("drop_redundancy", "Of equal shards one rank alone keeps its own."),
        _choice(
            "transformer_impl", "local|transformer_engine", "Whose layers Megatron builds, where SRC does not tell."
        ),
        _number("dst_iteration", "The iteration to write. Default: as SRC.", 0),
        _flag("check_replicas", "Read all replicas and compare."),
        _flag("crc", "Check the CRC-32 that sources state, write it to .ckpt."),
        _choice("checksum", "xxh3|off", "Hash what is written.", "xxh3"),
        _flag("no_fsync", "Faster; a power cut may lose files."),
        _choice("replicas", "copy|link", "link: write equal files once, link the others.", "copy"),
        _choice("reflink", "auto|always|never", "Share blocks with SRC where the file system can.", "auto"),
        _text("max_rate", "500MiB/s", "Write no faster."),
        _text("workers", "N|auto", "Threads.", "auto"),
        _text("max_memory", "2GiB", "Stay below."),
        _choice("engine", "local|ray", "ray: let a Ray cluster work.", "local"),
        _text("address", "A", "The Ray cluster: auto, local, host:port or ray://host:port.", "auto"),
        _text("nodes_local", "MAP", "File: which node writes which ranks, to its own disk."),
        _flag("resume", "Go on where an interrupted run stopped."),
        _flag("overwrite", "Replace DST, once the new one is whole."),
        _flag("verify", "Read DST again and check it."),
        *_OF_NAMES.items(),
        _flag("with_files", "Copy configuration and tokenizer along."),
    ]
)

_RUNNING = dict(
    [
        _flag("dry_run", "Show the bill and stop."),
        ("json", (Json, False)),
        ("quiet", (Quiet, False)),
        _text("report", "out.html", "Write a report: one page to look at, mail and print."),
    ]
)
_SHARED = {**_CONVERSION, **_RUNNING}

NAMES = tuple(_OF_NAMES)
READING = ("family", "iteration", "frozen", "select", "suffix")
CHOOSING = ("include", "exclude", "rename", "weights_only")


def takes_conversion_options(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's ``**options`` by those of a conversion that is carried out, but those of ``without``."""
    return takes(*(name for name in _SHARED if name not in without))


def takes(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's ``**options`` by those of these names."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [
            p.replace(
                annotation=hints[p.name],
                kind=p.POSITIONAL_OR_KEYWORD if p.default is p.empty else p.KEYWORD_ONLY,
            )
            for p in inspect.signature(command).parameters.values()
            if p.kind is not p.VAR_KEYWORD
        ]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in ((name, _SHARED[name]) for name in names)
        ]
        arguments = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
        last = [p for p in own if p.kind is p.KEYWORD_ONLY]
        signature = inspect.Signature([*arguments, *added, *last])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return command

    return decorate


def are_said(given: dict[str, Any]) -> bool:
    """Whether any of a command's shared options is not as it is by itself."""
    return any(value not in (_CONVERSION[name][1], []) for name, value in given.items())


def name_rules(given: dict[str, Any]) -> NameRules:
    """Which tensors, under which names. Raises UsageError."""
    from reshard.planning.names import NameRules

    include, exclude, rename = (given.get(what) or () for what in ("include", "exclude", "rename"))
    return NameRules(tuple(include), tuple(exclude), tuple(map(parse_rename, rename)), given.get("weights_only", False))


def source_given(path: str, strategy: str, given: dict[str, Any]) -> Source:
    """A source as a command line names it. Raises UsageError."""
    from reshard.families.found import as_select
    from reshard.families.source import Source

    select, suffix = as_select(given["select"]), given["suffix"]
    told = given.get("family", ""), given.get("iteration"), given.get("frozen", "")
    return Source(path, strategy, select, suffix, *told)


def conversion_options(given: dict[str, Any]) -> Options:
    """The options of a conversion from those of a command. Raises UsageError."""
    from reshard.ops.options import Options

    read: dict[str, Callable[[str], Any]] = {
        "ranks": parse_ranks,
        "share": lambda text: parse_share(text, os.environ),
        "nodes_local": read_nodes,
    }
    plain = given.keys() & {*Options.__struct_fields__} - read.keys()
    made = {name: given[name] for name in plain if given[name] is not None}
    made |= {name: parse(given[name]) for name, parse in read.items() if given.get(name)}
    if given.get("max_shard_size"):
        made["max_shard_nbytes"] = parse_nbytes(given["max_shard_size"], "--max-shard-size")
    if given.get("dst_names") and given.get("to") != "checkpoint2":  # then it is of the names
        made["release"] = ""
    return Options(**{**made, **_means(given), "names": name_rules(given), "naming": naming_of(given)})


def naming_of(given: dict[str, Any]) -> Naming:
    """What was said of names. Raises UsageError."""
    from reshard.names.wishes import MEGATRON, Asked, Naming

    sided = ("src_model", "dst_model", "qkv", "gate_up", "src_qkv", "src_gate_up")
    implied = MEGATRON if given.get("to") in (MEGATRON, "torch_dist") and any(map(given.get, sided)) else ""
    return Naming(
        src=given.get("src_names", ""),
        dst=given.get("dst_names", "") or implied,
        model=given.get("model", ""),
        src_model=given.get("src_model", ""),
        dst_model=given.get("dst_model", ""),
        asked=Asked({style: given[style] for style in ("qkv", "gate_up") if given.get(style)}),
        src_asked=Asked({style: given[f"src_{style}"] for style in ("qkv", "gate_up") if given.get(f"src_{style}")}),
        release=given.get("release", "") if given.get("dst_names") else "",
        vocab_rows=given.get("vocab_rows"),
        tied=given.get("tied", ""),
        dequantize=given.get("dequantize", False),
        files=given.get("with_files", False),
        transformer_impl=given.get("transformer_impl", ""),
    )


def means_of(given: dict[str, Any]) -> Means:
    """By what means alone. Raises UsageError."""
    from reshard.ops.options import Means

    return Means(**_means(given))


def _means(given: dict[str, Any]) -> dict[str, Any]:
    """What is called or counted otherwise on a command line. Raises UsageError."""
    from reshard.ops.options import MOST_WORKERS

    made: dict[str, Any] = {}
    for name, field, yes, no in (
        ("checksum", "checksum", "xxh3", "off"),
        ("replicas", "link_replicas", "link", "copy"),
    ):
        if given.get(name, yes) not in (yes, no):
            raise UsageError(f"--{name} {given[name]!r}", hint=f"{yes} or {no}")
        if name in given:
            made[field] = given[name] == yes
    workers = given.get("workers", "auto")
    made["workers"] = 0 if workers == "auto" else number_in(workers)
    if workers != "auto" and not made["workers"]:  # Means knows how many are too many
        raise UsageError(f"--workers {workers!r}", hint=f"a number from 1 to {MOST_WORKERS}, or auto")
    for name in ("max_rate", "max_memory"):
        if given.get(name):
            made[f"{name}_nbytes"] = parse_nbytes(given[name].removesuffix("/s"), f"--{name.replace('_', '-')}")
    if "no_fsync" in given:
        made["fsync"] = not given["no_fsync"]
    return made
