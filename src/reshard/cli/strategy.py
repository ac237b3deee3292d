"""reshard strategy show, merge, diff and make."""

from __future__ import annotations

from typing import Annotated

import typer

from reshard.cli.output import say, say_json
from reshard.cli.params import Json
from reshard.errors import counted

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at, merge, compare and make strategy files.")


@app.command()
def show(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Strategy file or folder.")],
    tensor: Annotated[str, typer.Option(metavar="RE", help="Only tensors whose name matches.")] = "",
    json: Json = False,
) -> None:
    """Print how each tensor is cut, stage by stage.

    \b
    reshard strategy show strategy/ --tensor wq
    """
    from reshard.ops.strategies import show as table
    from reshard.planning.names import folded

    shown = table(path, tensor)
    if json:
        say_json(shown)
        return
    made = ", made without a compiler" if shown.made else ""
    say(f"{path}: {counted(shown.stages, 'stage')} of {counted(shown.devices, 'rank')}{made}")
    for line in folded(map(str, shown.rows)):
        say(f"  {line}")


@app.command(short_help="Merge the strategies of all stages into one file.")
def merge(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of per-rank strategy files.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The merged file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Merge the strategies of all pipeline stages into one file, as MindSpore does.

    \b
    reshard strategy merge strategy/ merged_ckpt_strategy.ckpt
    """
    from reshard.ops.strategies import merge as write

    say(write(folder, out, overwrite=overwrite))


@app.command(short_help="Compare two strategies by meaning.")
def diff(
    a: Annotated[str, typer.Argument(metavar="A")],
    b: Annotated[str, typer.Argument(metavar="B")],
    json: Json = False,
) -> None:
    """Compare two strategies by meaning: which rank holds what of each tensor. Exit code 1 when they differ.

    \b
    reshard strategy diff old/ new/
    """
    from reshard.ops.strategies import diff as compare
    from reshard.planning.names import folded

    differences = compare(a, b)
    if json:
        say_json(differences)
    else:
        for line in folded(differences):
            say(line)
        say("they differ" if differences else "they mean the same")
    if differences:
        raise typer.Exit(1)


@app.command(short_help="Make the strategy files of a job from its configuration.")
def make(
    out: Annotated[str, typer.Option("-o", "--out", metavar="DIR", help="New folder for the files.")],
    config: Annotated[str, typer.Option(metavar="YAML", help="The job's MindFormers configuration.")] = "",
    rules: Annotated[str, typer.Option(metavar="YAML", help="Rules file, instead of the families known.")] = "",
    checkpoint: Annotated[
        str, typer.Option(metavar="SRC", help="One full checkpoint: its headers say names and shapes.")
    ] = "",
    mindformers_version: Annotated[
        str, typer.Option(metavar="1.6.0", help="Release whose rules hold. Default: the newest.")
    ] = "",
    optimizer: Annotated[
        str, typer.Option(metavar="NAME", help="Instead of the YAML's; none for the weights alone.")
    ] = "",
    dp: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Data parallel; this and the next without --config.")
    ] = None,
    mp: Annotated[int | None, typer.Option(min=1, metavar="N", help="Model (tensor) parallel.")] = None,
    pp: Annotated[int | None, typer.Option(min=1, metavar="N", help="Pipeline stages.")] = None,
    cp: Annotated[int | None, typer.Option(min=1, metavar="N", help="Context parallel.")] = None,
    ep: Annotated[int | None, typer.Option(min=1, metavar="N", help="Expert parallel.")] = None,
    optimizer_parallel: Annotated[
        bool, typer.Option("--optimizer-parallel", help="Share weights among replicas; without --config.")
    ] = False,
    merged: Annotated[bool, typer.Option("--merged", help="One file of all stages.")] = False,
    json_format: Annotated[bool, typer.Option("--json-format", help="Write .json instead of .ckpt.")] = False,
) -> None:
    """Make the strategy files of a job from its configuration: no accelerator, no compiling.

    \b
    reshard strategy make --config run.yaml -o strategy/
    reshard strategy make --rules rules.yaml --dp 2 --mp 4 --checkpoint full/ -o strategy/
    """
    from reshard.ops.make_strategy import StrategyWish, make_strategy
    from reshard.strategy.job import Sizes

    given = {"dp": dp, "mp": mp, "pp": pp, "cp": cp, "ep": ep}
    sizes = Sizes(**{axis: size or 1 for axis, size in given.items()}) if any(given.values()) else None
    making = StrategyWish(config, rules, sizes, checkpoint, mindformers_version, optimizer, optimizer_parallel)
    made = make_strategy(making, out, merged=merged, json_format=json_format)
    stages = len(made.tensors)
    say(
        f"{out}: {counted(made.files, 'file')} by the rules of {made.family}: {counted(stages, 'stage')} of "
        f"{counted(made.devices, 'rank')}, {counted(sum(made.tensors), 'tensor')}"
    )
