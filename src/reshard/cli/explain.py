"""reshard explain."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reshard.cli.output import say, say_json, warn
from reshard.cli.params import NAMES, READING, Json, Src, conversion_options, takes
from reshard.cli.text import shown_nbytes
from reshard.errors import counted

if TYPE_CHECKING:
    from reshard.index import Extent
    from reshard.ops.explain import Cut, ExplainedPart, Explanation, Taken, ToldPart, ToldTarget

_MOST_ROWS = 32
TableRows = list[tuple[str, ...]]


@takes("src_strategy", "dtype", "rename", *READING, *NAMES)
def explain(
    tensor: Annotated[str, typer.Argument(metavar="TENSOR", help="Its name, as in SRC or after --rename.")],
    src: Src,
    dst_strategy: Annotated[
        str, typer.Option("--dst-strategy", metavar="P", help="Strategy of a target: how are its slices made?")
    ] = "",
    on_rank: Annotated[int | None, typer.Option(metavar="R", min=0, help="Only the slice of this target rank.")] = None,
    json: Json = False,
    **options: Any,
) -> None:
    """Say where one tensor lies, and from which bytes of which files each target rank's slice is made.

    \b
    reshard explain lm_head.weight ckpt --src-strategy old/
    reshard explain lm_head.weight ckpt --src-strategy old/ --dst-strategy new/ --on-rank 3
    reshard explain decoder.layers.0.self_attention.linear_qkv.weight qwen3/ --dst-names mcore
    """
    from reshard.errors import UsageError
    from reshard.ops.explain import explain as told

    if on_rank is not None and not dst_strategy:
        raise UsageError("--on-rank names a target rank and there is no --dst-strategy")
    if Path(tensor).exists() and not ("://" in src or Path(src).exists()):
        raise UsageError(
            f"{tensor} is no tensor", hint=f"the tensor goes first: reshard explain {src} {shlex.quote(tensor)}"
        )
    given = conversion_options({**options, "dst_strategy": dst_strategy})
    found = told(tensor, src, given, rank=on_rank)
    warn(found.warnings)
    if json:
        say_json(found)
    else:
        say("\n".join(lines(found)))


def lines(found: Explanation) -> list[str]:
    """What a terminal shows: the source as a picture and a table, then the target."""
    seen = f", put together as {list(found.view)}" if found.view else ""
    asked = [found.asked] if found.asked else []
    out = [*asked, f"{found.name}: {found.dtype}{list(found.shape)}, {shown_nbytes(found.nbytes)}{seen}", ""]
    drawn = [] if found.view else _drawn(found.shape, found.cut, found.parts)
    out += [f"source: {_said(found.cut, found.parts)}", *drawn, ""]
    rows: TableRows = [("elements", "rank", "bytes in file", "file")]
    for part in found.parts:
        rows += [(_box(part), str(p.rank), _extents(p.extents), p.path) for p in part.held]
        if not part.held:
            rows.append((_box(part), "", "MISSING", f"rank {_ranks(part.expected)} should hold it"))
    out += _table(rows)
    if found.scales:
        out += ["", f"multiplied by scales, one for {_shape(found.block)} elements", ""]
        rows = [("scales", "rank", "bytes in file", "file")]
        rows += [(_box(part), str(p.rank), _extents(p.extents), p.path) for part in found.scales for p in part.held]
        out += _table(rows)
    for target in found.targets:
        out += ["", *_target_lines(found, target)]
    if found.fate:
        out += ["", f"target: does not get it; {found.fate}"]
    return out


def _target_lines(found: Explanation, target: ToldTarget) -> list[str]:
    parts = [made.part for made in target.made]
    name = f", called {target.name}" if target.name != found.name else ""
    how = "multiplied by its scales, as" if found.scales else "cast to"
    cast = f", {how} {target.dtype}" if target.dtype != found.dtype else ""
    out = [f"target: {_said(target.cut, parts)}{name}{cast}", *_drawn(found.shape, target.cut, parts), ""]
    rows: TableRows = [("rank", "elements", "taken from", "rank", "bytes in file", "file")]
    for made in target.made:
        rows += _made_rows(made)
    return out + _table(rows)


def _made_rows(made: ExplainedPart) -> TableRows:
    """A row for each source file; rank and box stand in the first."""
    who = (_ranks([p.rank for p in made.part.held]), _box(made.part))
    rows = [("scales " * t.scales + _range(t.start, t.shape), str(t.rank), _runs(t), t.path) for t in made.taken]
    return [(*(who if i == 0 else ("", "")), *row) for i, row in enumerate(rows)]


def _said(cut: Cut, parts: Sequence[ToldPart]) -> str:
    shown = "×".join(map(str, cut.parts)) if any(n > 1 for n in cut.parts) else ""
    counts = sorted({len(p.held) for p in parts if p.held})
    copies = counted(counts[-1], "rank") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} ranks" if counts else ""
    said = [f"cut in {shown} parts" if shown else "whole"]
    if cut.of_stages > 1:
        said.append(f"stage {_ranks(cut.stages)} of {cut.of_stages}")
    said += [f"each part on {copies}" if shown else f"on {copies}"] if copies else []
    if cut.opt_parts > 1:
        said.append(f"the optimizer shard cuts dim 0 in {cut.opt_parts} more")
    missing = sum(not p.held for p in parts)
    return ", ".join(said) + (f"; {missing} of {len(parts)} parts MISSING" if missing else "")


def _drawn(shape: tuple[int, ...], cut: Cut, parts: Sequence[ToldPart]) -> list[str]:
    """The picture, where all parts are at hand."""
    from reshard.drawing import text

    by_start = {p.start: tuple(h.rank for h in p.held) for p in parts}
    if len(by_start) != prod(cut.parts) or not prod(shape):
        return []
    return text(shape, cut.parts, [by_start[start] for start in sorted(by_start)])


def _table(rows: TableRows) -> list[str]:
    left = len(rows) - 1 - _MOST_ROWS
    shown = rows[: _MOST_ROWS + 1] if left > 0 else rows
    widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]))]
    out = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in shown]
    return [*out, f"and {left} more rows (--json has all)"] if left > 0 else out


def _box(part: ToldPart) -> str:
    return _range(part.start, part.shape)


def _shape(block: tuple[int, ...]) -> str:
    return "×".join(map(str, block)) or "all"


def _range(start: tuple[int, ...], shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(f"{a}:{a + n}" for a, n in zip(start, shape, strict=True)) + "]"


def _extents(extents: Sequence[Extent]) -> str:
    return " + ".join(f"{e.offset}-{e.end}" for e in extents)


def _runs(taken: Taken) -> str:
    if taken.runs == 1:
        return f"{taken.offset}-{taken.end}"
    return f"{taken.runs} × {taken.run_nbytes} in {taken.offset}-{taken.end}"


def _ranks(ranks: Sequence[int]) -> str:
    from reshard.drawing import spans

    return spans(sorted(set(ranks)))
