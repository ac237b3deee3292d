"""Options that several commands share, each written down once."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from reshard.cli.completion import one_of
from reshard.cli.sharing import parse_share, read_nodes
from reshard.cli.text import parse_nbytes, parse_ranks, parse_rename

if TYPE_CHECKING:
    from reshard.families.source import Source
    from reshard.names.wishes import Naming
    from reshard.ops.options import Options
    from reshard.planning.names import NameRules

Src = Annotated[str, typer.Argument(metavar="SRC", help="Weight file, folder of files, or folder of rank_x/.")]
Dst = Annotated[str, typer.Argument(metavar="DST", help="New folder; or a file name, for one full checkpoint.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no summary.")]
SrcStrategy = Annotated[
    str,
    typer.Option("--src-strategy", metavar="P", help="Strategy of SRC: file or folder. None: one full checkpoint."),
]
DstStrategy = Annotated[
    str,
    typer.Option("--dst-strategy", metavar="P", help="Strategy of DST: file or folder. None: one full checkpoint."),
]
Select = Annotated[
    str,
    typer.Option(
        metavar="RULE",
        help="Which file of a rank_x with several: natural, name, mtime or step.",
        autocompletion=one_of("natural", "name", "mtime", "step"),
    ),
]
Suffix = Annotated[str, typer.Option(metavar="E_S", help="Only files whose name ends so, as 1_10.")]
Include = Annotated[list[str] | None, typer.Option(metavar="RE", help="Only tensors whose name matches; repeatable.")]
Exclude = Annotated[
    list[str] | None, typer.Option(metavar="RE", help="Without tensors whose name matches; repeatable.")
]
Rename = Annotated[
    list[str] | None,
    typer.Option(metavar="'RE=>NAME'", help="Rename tensors, as re.sub does; repeatable."),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="D",
        help="Cast floating weights (bfloat16, float16, float32 …).",
        autocompletion=one_of("bfloat16", "float16", "float32", "float64"),
    ),
]

WeightsOnly = Annotated[bool, typer.Option("--weights-only", help="Without optimizer states.")]
From = Annotated[str, typer.Option("--from", metavar="FAMILY", help="What SRC is, where that is ambiguous.")]
Iteration = Annotated[int, typer.Option(metavar="N", min=-1, show_default=False, help="Which iteration of several.")]


def _names_option(name: str, says: str) -> Any:
    known = ("hf", "mindformers", "mcore", "megatron", "torchtitan")
    return Annotated[str, typer.Option(name, metavar="|".join(known), help=says, autocompletion=one_of(*known))]


def _model_option(name: str, says: str) -> Any:
    return Annotated[str, typer.Option(name, metavar="FILE", help=says)]


def _style_option(name: str, values: str, says: str) -> Any:
    return Annotated[str, typer.Option(name, metavar=values, help=says, autocompletion=one_of(*values.split("|")))]


_CONVERSION: dict[str, tuple[Any, Any]] = {
    "src_strategy": (SrcStrategy, ""),
    "dst_strategy": (DstStrategy, ""),
    "to": (
        Annotated[
            str,
            typer.Option(
                metavar="KIND",
                help="What DST shall be: ranks, full, parts, checkpoint2, dcp, torch_dist, megatron, universal. "
                "Default: as strategy, name and SRC say.",
                autocompletion=one_of(
                    "ranks", "full", "parts", "checkpoint2", "dcp", "torch_dist", "megatron", "universal"
                ),
            ),
        ],
        "",
    ),
    "format": (
        Annotated[
            str,
            typer.Option(
                metavar="F",
                help="ckpt, safetensors or torch. Default: as SRC.",
                autocompletion=one_of("ckpt", "safetensors", "torch"),
            ),
        ],
        "",
    ),
    "prefix": (Annotated[str, typer.Option(help="Files are rank_r/{prefix}{r}.")], "checkpoint_"),
    "dtype": (Dtype, ""),
    "rename": (Rename, None),
    "include": (Include, None),
    "exclude": (Exclude, None),
    "weights_only": (WeightsOnly, False),
    "family": (From, ""),
    "iteration": (Iteration, -1),
    "frozen": (Annotated[str, typer.Option(metavar="RE", help="FSDP's weights that were not trained.")], ""),
    "ranks": (Annotated[str, typer.Option(metavar="0-7,12", help="Make only these target ranks.")], ""),
    "share": (
        Annotated[str, typer.Option(metavar="i/n|auto", help="Make only this share; others make theirs, anywhere.")],
        "",
    ),
    "select": (Select, "natural"),
    "suffix": (Suffix, ""),
    "missing": (
        Annotated[
            str,
            typer.Option(
                metavar="error|drop",
                help="drop: leave out what nobody can know.",
                autocompletion=one_of("error", "drop"),
            ),
        ],
        "error",
    ),
    "max_shard_size": (
        Annotated[str, typer.Option(metavar="5GiB", help="One full checkpoint in parts, with an index.")],
        "",
    ),
    "files": (Annotated[int, typer.Option(metavar="N", min=0, show_default=False, help="Files of a DCP folder.")], 0),
    **{
        name: (Annotated[int, typer.Option(metavar="N", min=0, show_default=False, help=told)], 0)
        for name, told in (
            ("tp", "Tensor-parallel ranks of Megatron's."),
            ("pp", "Pipeline stages of Megatron's."),
            ("ep", "Expert-parallel ranks of Megatron's."),
        )
    },
    "drop_redundancy": (
        Annotated[bool, typer.Option("--drop-redundancy", help="Of equal shards one rank alone keeps its own.")],
        False,
    ),
    "dst_iteration": (
        Annotated[
            int, typer.Option(metavar="N", min=-1, show_default=False, help="The iteration to write. Default: as SRC.")
        ],
        -1,
    ),
    "check_replicas": (Annotated[bool, typer.Option("--check-replicas", help="Read all replicas and compare.")], False),
    "crc": (
        Annotated[bool, typer.Option("--crc", help="Check the CRC-32 that sources state, write it to .ckpt.")],
        False,
    ),
    "checksum": (
        Annotated[
            str, typer.Option(metavar="xxh3|off", help="Hash what is written.", autocompletion=one_of("xxh3", "off"))
        ],
        "xxh3",
    ),
    "no_fsync": (Annotated[bool, typer.Option("--no-fsync", help="Faster; a power cut may lose files.")], False),
    "replicas": (
        Annotated[
            str,
            typer.Option(
                metavar="copy|link",
                help="link: write equal files once, link the others.",
                autocompletion=one_of("copy", "link"),
            ),
        ],
        "copy",
    ),
    "reflink": (
        Annotated[
            str,
            typer.Option(
                metavar="auto|always|never",
                help="Share blocks with SRC where the file system can.",
                autocompletion=one_of("auto", "always", "never"),
            ),
        ],
        "auto",
    ),
    "max_rate": (Annotated[str, typer.Option(metavar="500MiB/s", help="Write no faster.")], ""),
    "workers": (Annotated[str, typer.Option(metavar="N|auto", help="Threads.")], "auto"),
    "max_memory": (Annotated[str, typer.Option(metavar="2GiB", help="Stay below.")], ""),
    "engine": (
        Annotated[
            str,
            typer.Option(
                metavar="local|ray", help="ray: let a Ray cluster work.", autocompletion=one_of("local", "ray")
            ),
        ],
        "local",
    ),
    "address": (
        Annotated[str, typer.Option(metavar="A", help="The Ray cluster: auto, local, host:port or ray://host:port.")],
        "auto",
    ),
    "nodes_local": (
        Annotated[str, typer.Option(metavar="MAP", help="File: which node writes which ranks, to its own disk.")],
        "",
    ),
    "resume": (Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")], False),
    "overwrite": (Annotated[bool, typer.Option("--overwrite", help="Replace DST, once the new one is whole.")], False),
    "verify": (Annotated[bool, typer.Option("--verify", help="Read DST again and check it.")], False),
}


_NAMES: dict[str, tuple[Any, Any]] = {
    "src_names": (_names_option("--src-names", "Whose names SRC has, where they do not tell."), ""),
    "dst_names": (_names_option("--dst-names", "Whose names DST gets."), ""),
    "model": (_model_option("--model", "The model: config.json, or the YAML of a MindFormers run."), ""),
    "src_model": (_model_option("--src-model", "The model as SRC has it, where both sides have a YAML."), ""),
    "dst_model": (_model_option("--dst-model", "The model as DST has it."), ""),
    "qkv": (_style_option("--qkv", "grouped|concat", "How the side that is not Hugging Face's fuses q, k, v."), ""),
    "gate_up": (_style_option("--gate-up", "interleaved|concat", "How it fuses gate and up."), ""),
    "src_qkv": (_style_option("--src-qkv", "grouped|concat", "How SRC fuses q, k, v, where both sides do."), ""),
    "src_gate_up": (_style_option("--src-gate-up", "interleaved|concat", "How SRC fuses gate and up."), ""),
    "release": (Annotated[str, typer.Option(metavar="r1.5", help="Of MindFormers, for what changed.")], ""),
    "vocab_rows": (
        Annotated[int, typer.Option(metavar="N", min=0, show_default=False, help="Rows of DST's vocabulary.")],
        0,
    ),
    "tied": (
        Annotated[
            str,
            typer.Option(
                metavar="keep|copy|drop",
                help="An output layer that is the embedding's.",
                autocompletion=one_of("keep", "copy", "drop"),
            ),
        ],
        "",
    ),
    "dequantize": (Annotated[bool, typer.Option("--dequantize", help="Multiply codes by their scales.")], False),
    "with_files": (
        Annotated[bool, typer.Option("--with-files", help="Copy configuration and tokenizer along.")],
        False,
    ),
}
_CONVERSION |= _NAMES


def takes_conversion_options(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's ``**options`` by the options of a conversion, but those of ``without``."""
    return _taking({name: option for name, option in _CONVERSION.items() if name not in without})


def takes_names_options() -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's ``**options`` by those that concern names."""
    return _taking({name: option for name, option in _NAMES.items() if name != "with_files"})


def _taking(options: Mapping[str, tuple[Any, Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
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
            for name, (kind, default) in options.items()
        ]
        arguments = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
        last = [p for p in own if p.kind is p.KEYWORD_ONLY]
        signature = inspect.Signature([*arguments, *added, *last])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return command

    return decorate


def name_rules(
    include: list[str] | None, exclude: list[str] | None, rename: list[str] | None, *, weights_only: bool = False
) -> NameRules:
    from reshard.planning.names import NameRules

    return NameRules(tuple(include or ()), tuple(exclude or ()), tuple(map(parse_rename, rename or ())), weights_only)


def source_given(
    path: str, strategy: str, family: str, iteration: int, files: tuple[str, str] = ("natural", "")
) -> Source:
    """A source as a command line names it; ``files``: what ``--select`` and ``--suffix`` say. Raises UsageError."""
    from reshard.families.rank_listing import as_select
    from reshard.families.source import Source

    select, suffix = files
    return Source(path, strategy, as_select(select), suffix, family, numbered(iteration))


def numbered(iteration: int) -> int | None:
    """The iteration that was asked for."""
    return None if iteration < 0 else iteration


def conversion_options(given: dict[str, Any]) -> Options:
    """The options of a conversion from those of a command. Raises UsageError."""
    from reshard.families.discover import as_select
    from reshard.ops.options import Options

    max_shard, ranks = given.get("max_shard_size", ""), given.get("ranks", "")
    weights_only = given.get("weights_only", False)
    return Options(
        src_strategy=given.get("src_strategy", ""),
        dst_strategy=given.get("dst_strategy", ""),
        to=given.get("to", ""),
        format=given.get("format", ""),
        prefix=given.get("prefix", "checkpoint_"),
        select=as_select(given["select"]),
        suffix=given["suffix"],
        family=given.get("family", ""),
        iteration=numbered(given.get("iteration", -1)),
        frozen=given.get("frozen", ""),
        dst_iteration=numbered(given.get("dst_iteration", -1)),
        release="" if given.get("dst_names") and given.get("to", "") != "checkpoint2" else given.get("release", ""),
        ranks=parse_ranks(ranks) if ranks else None,
        share=parse_share(given["share"], os.environ) if given.get("share") else None,
        missing=given["missing"],
        names=name_rules(given["include"], given["exclude"], given["rename"], weights_only=weights_only),
        dtype=given["dtype"],
        max_shard_nbytes=parse_nbytes(max_shard) if max_shard else None,
        files=given.get("files", 0),
        **{size: given.get(size, 0) for size in ("tp", "pp", "ep")},
        drop_redundancy=given.get("drop_redundancy", False),
        check_replicas=given["check_replicas"],
        crc=given["crc"],
        naming=naming_of(given),
        reflink=given.get("reflink", "auto"),
        **_means(given),
    )


def naming_of(given: dict[str, Any]) -> Naming:
    """What was said of names. Raises UsageError."""
    from reshard.names.wishes import Asked, Naming

    return Naming(
        src=given.get("src_names", ""),
        dst=given.get("dst_names", ""),
        model=given.get("model", ""),
        src_model=given.get("src_model", ""),
        dst_model=given.get("dst_model", ""),
        asked=Asked({style: given[style] for style in ("qkv", "gate_up") if given.get(style)}),
        src_asked=Asked({style: given[f"src_{style}"] for style in ("qkv", "gate_up") if given.get(f"src_{style}")}),
        release=given.get("release", "") if given.get("dst_names") else "",
        vocab_rows=given.get("vocab_rows") or None,
        tied=given.get("tied", ""),
        dequantize=given.get("dequantize", False),
        files=given.get("with_files", False),
    )


def _means(given: dict[str, Any]) -> dict[str, Any]:
    """By what means the conversion is carried out. Raises UsageError."""
    from reshard.errors import UsageError

    if given["checksum"] not in ("xxh3", "off"):
        raise UsageError(f"--checksum {given['checksum']!r}", hint="xxh3 or off")
    if given["workers"] != "auto" and not (given["workers"].isdigit() and 0 < int(given["workers"]) <= 1024):
        raise UsageError(f"--workers {given['workers']!r}", hint="a number from 1 to 1024, or auto")
    if given["replicas"] not in ("copy", "link"):
        raise UsageError(f"--replicas {given['replicas']!r}", hint="copy or link")
    max_rate, max_memory = given["max_rate"].removesuffix("/s"), given["max_memory"]
    return {
        "checksum": given["checksum"] == "xxh3",
        "fsync": not given["no_fsync"],
        "workers": 0 if given["workers"] == "auto" else int(given["workers"]),
        "max_rate_nbytes": parse_nbytes(max_rate) if max_rate else None,
        "link_replicas": given["replicas"] == "link",
        "max_memory_nbytes": parse_nbytes(max_memory) if max_memory else None,
        "engine": given.get("engine", "local"),
        "address": given.get("address", "auto"),
        "nodes_local": read_nodes(given["nodes_local"]) if given.get("nodes_local") else (),
        "resume": given["resume"],
        "overwrite": given["overwrite"],
        "verify": given["verify"],
    }
