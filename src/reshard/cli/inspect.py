"""reshard inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reshard.cli.fingerprint import grouped
from reshard.cli.next_steps import next_steps
from reshard.cli.output import say, say_json, warn
from reshard.cli.params import READING, Json, source_given, takes
from reshard.cli.reporting import page_path, write_page
from reshard.cli.text import shown_nbytes
from reshard.errors import UsageError, counted

if TYPE_CHECKING:
    from reshard.families.source import Source
    from reshard.ops.inspect import Inspection
    from reshard.planning.catalog import Catalog


@takes(*READING)
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Checkpoint of any family: its file, folder or URL.")],
    strategy: Annotated[str, typer.Option(metavar="P", help="The strategy that it was saved with.")] = "",
    on_rank: Annotated[int | None, typer.Option(metavar="R", min=0, help="Only what this rank holds.")] = None,
    tensor: Annotated[str, typer.Option(metavar="RE", help="Only tensors whose name matches.")] = "",
    html: Annotated[
        str, typer.Option("--html", metavar="out.html", help="Write a report: one page to look at, mail and print.")
    ] = "",
    fingerprint: Annotated[
        bool, typer.Option("--fingerprint", help="Also compute its fingerprint; reads every value.")
    ] = False,
    json: Json = False,
    **options: Any,
) -> None:
    """Say what a checkpoint holds: tensors, shapes, dtypes, how each is cut, what is missing. Reads headers only.

    \b
    reshard inspect ckpt --strategy strategy/ --tensor lm_head
    reshard inspect ckpt --strategy strategy/ --html ckpt.html
    """
    from msgspec.structs import replace

    from reshard.ops.inspect import inspection, only, opened
    from reshard.planning.names import compiled

    if fingerprint and on_rank is not None:
        raise UsageError("--fingerprint is of a whole checkpoint, --on-rank of one rank", hint="give one of them")
    page = page_path(html) if html else None
    given = source_given(path, strategy, options)
    source = opened(given, rank=on_rank)
    if tensor:
        source = only(source, compiled(tensor))
    found = inspection(source)
    if fingerprint:
        found = replace(found, **_numbers(given, tensor, quiet=json))
    if page:
        _write(page, source, path, found)
    warn(found.warnings)
    if json:
        say_json(found)
    else:
        narrowed = tensor or on_rank is not None or html or fingerprint
        steps = [] if narrowed else next_steps(source, path, strategy, found.names)
        say("\n".join((*_lines(path, found, html), *steps)))


def _numbers(given: Source, tensor: str, *, quiet: bool) -> dict[str, str]:
    """The fingerprints of an inspection. They take NumPy, which headers do without."""
    from reshard.cli.progress import observer
    from reshard.ops.fingerprint import fingerprint
    from reshard.planning.names import NameRules

    rules = NameRules(include=(tensor,) if tensor else ())
    numbers = fingerprint(given, rules=rules, observer=observer(quiet=quiet))
    return {"fingerprint": numbers.number, "weights_fingerprint": numbers.weights}


def _write(page: Path, source: Catalog, path: str, found: Inspection) -> None:
    from reshard.report.make import checkpoint_report
    from reshard.report.values import Print

    prints = (Print(found.fingerprint, found.weights_fingerprint),) if found.fingerprint else ()
    write_page(page, checkpoint_report(source, path, prints))


def _lines(path: str, found: Inspection, html: str) -> list[str]:
    """One line and the tensors; these are in the report where there is one."""
    from reshard.ops.inspect import shown_args, tensor_lines

    ranks = counted(found.ranks, "rank") + (f", {found.stages} stages" if found.stages > 1 else "")
    named = f", names of {found.names}" if found.names else ""
    lines = [
        f"{path}: {found.family}{named}; {counted(found.files, 'file')}, {shown_nbytes(found.nbytes)}, "
        f"{ranks}; {counted(len(found.tensors), 'tensor')}, {found.parameters:,} elements",
        *([f"args: {', '.join(shown_args(found))}"] if found.args else []),
        *([f"report: {html}"] if html else tensor_lines(found)),
    ]
    if found.fingerprint:
        numbers = grouped(found.fingerprint), grouped(found.weights_fingerprint)
        lines.append("fingerprint {}, of the weights alone {}".format(*numbers))
    return lines
