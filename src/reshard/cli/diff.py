"""reshard diff."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from reshard.cli.output import say, say_json, warn
from reshard.cli.params import CHOOSING, Json, Quiet, name_rules, source_given, takes
from reshard.cli.text import shown_nbytes
from reshard.errors import counted

_SHOWN = 20


@takes(*CHOOSING, "select", "suffix")
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint of any layout and format.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    a_strategy: Annotated[str, typer.Option(metavar="P", help="Strategy of A.")] = "",
    b_strategy: Annotated[str, typer.Option(metavar="P", help="Strategy of B.")] = "",
    a_from: Annotated[str, typer.Option(metavar="FAMILY", help="What A is, where that is ambiguous.")] = "",
    b_from: Annotated[str, typer.Option(metavar="FAMILY", help="What B is.")] = "",
    a_iteration: Annotated[int | None, typer.Option(metavar="N", min=0, help="Which of several of A.")] = None,
    b_iteration: Annotated[int | None, typer.Option(metavar="N", min=0, help="Which of several of B.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Compare two checkpoints tensor by tensor: equal, or where each first differs. Exit code 1 when they differ.

    \b
    reshard diff full.safetensors ckpt --b-strategy strategy/
    """
    from reshard.cli.progress import observer
    from reshard.ops.diff import diff as compare

    result = compare(
        source_given(a, a_strategy, {**options, "family": a_from, "iteration": a_iteration}),
        source_given(b, b_strategy, {**options, "family": b_from, "iteration": b_iteration}),
        name_rules(options),
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
        if result.hint:
            say(f"  hint: {result.hint}")
    if not result.equal:
        raise typer.Exit(1)
