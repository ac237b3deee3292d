"""reshard diff."""

from __future__ import annotations

from typing import Annotated

import typer

from reshard.cli.output import say, say_json, warn
from reshard.cli.params import Exclude, Include, Json, Quiet, Rename, Select, Suffix, name_rules
from reshard.cli.text import shown_nbytes
from reshard.errors import counted

_SHOWN = 20


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint of any layout and format.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    a_strategy: Annotated[str, typer.Option(metavar="P", help="Strategy of A.")] = "",
    b_strategy: Annotated[str, typer.Option(metavar="P", help="Strategy of B.")] = "",
    include: Include = None,
    exclude: Exclude = None,
    rename: Rename = None,
    select: Select = "natural",
    suffix: Suffix = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare two checkpoints tensor by tensor: equal, or where each first differs. Exit code 1 when they differ.

    \b
    reshard diff full.safetensors ckpt --b-strategy strategy/
    """
    from reshard.cli.progress import observer
    from reshard.families.discover import as_select
    from reshard.families.source import Source
    from reshard.ops.diff import diff as compare

    rules = name_rules(include, exclude, rename)
    result = compare(
        Source(a, a_strategy, as_select(select), suffix),
        Source(b, b_strategy, as_select(select), suffix),
        rules,
        observer(quiet=quiet or json),
    )
    warn(result.warnings)
    if json:
        say_json(result)
    elif not quiet:
        lines = result.lines()
        for line in lines[:_SHOWN]:
            say(line)
        if len(lines) > _SHOWN:
            say(f"and {len(lines) - _SHOWN} more; --json shows all")
        compared = f"{counted(result.tensors, 'tensor')} compared, {shown_nbytes(result.nbytes)}"
        say(f"{compared}; {len(lines)} differ" if lines else f"{compared}; all equal")
    if not result.equal:
        raise typer.Exit(1)
