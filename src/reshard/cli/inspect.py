"""reshard inspect."""

from __future__ import annotations

from typing import Annotated

import typer

from reshard.cli.output import say, say_json, warn
from reshard.cli.params import Json, Select, Suffix
from reshard.cli.text import counted, shown_nbytes


def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Weight file, folder of files, or folder of rank_x/.")],
    strategy: Annotated[str, typer.Option(metavar="P", help="The strategy that it was saved with.")] = "",
    on_rank: Annotated[int, typer.Option(metavar="R", help="Only what this rank holds.")] = -1,
    tensor: Annotated[str, typer.Option(metavar="RE", help="Only tensors whose name matches.")] = "",
    select: Select = "natural",
    suffix: Suffix = "",
    json: Json = False,
) -> None:
    """Say what a checkpoint holds: tensors, shapes, dtypes, how each is cut, what is missing. Reads headers only.

    \b
    reshard inspect ckpt --strategy strategy/ --tensor lm_head
    """
    from reshard.ops.inspect import inspect as look
    from reshard.ops.inspect import tensor_lines
    from reshard.planning.names import compiled
    from reshard.run.discover import as_select

    found = look(path, strategy, as_select(select), suffix, rank=on_rank if on_rank >= 0 else None)
    if tensor:
        found = found.only(compiled(tensor))
    warn(found.warnings)
    if json:
        say_json(found)
        return
    say(
        f"{path}: {counted(found.files, 'file')}, {shown_nbytes(found.nbytes)}, {counted(found.ranks, 'rank')}"
        f"{f', {found.stages} stages' if found.stages > 1 else ''}; {counted(len(found.tensors), 'tensor')}, "
        f"{found.parameters:,} elements"
    )
    for line in tensor_lines(found):
        say(line)
