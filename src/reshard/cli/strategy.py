"""reshard strategy show, merge and diff."""

from __future__ import annotations

from typing import Annotated

import typer

from reshard.cli.output import say, say_json
from reshard.cli.params import Json
from reshard.cli.text import counted

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at, merge and compare strategy files.")


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


@app.command()
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


@app.command()
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
