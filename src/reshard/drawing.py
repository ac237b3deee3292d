"""Pictures of how a tensor is cut, as text and as SVG, from plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import product
from math import prod

COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999")
"""Okabe and Ito's, which people with any kind of colour vision can tell apart."""

_TEXT_ROWS, _TEXT_COLUMNS, _LABEL = 16, 8, 18
_WIDTH, _HEIGHT, _ROOM_FOR_LABEL, _ROOM_FOR_DASHES = 320, 200, 26, 5  # pixels
_MAX_PANELS, _MAX_CELLS = 8, 1024

Holders = Sequence[tuple[int, ...]]
"""The ranks that hold each part of a tensor, parts in row-major order; none where the part is missing."""


def spans(numbers: Iterable[int]) -> str:
    """Ascending numbers, runs of them shortened.

    >>> spans([0, 1, 2, 5])
    '0-2,5'
    """
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def plane(parts: Sequence[int]) -> tuple[int, int]:
    """The dims that a picture shows downwards and across; -1 where the tensor has fewer. Dims that are cut go first.

    >>> plane((1, 4, 2)), plane((8, 1, 1)), plane((4,)), plane(())
    ((1, 2), (0, 2), (-1, 0), (-1, -1))
    """
    if len(parts) < 2:
        return -1, len(parts) - 1
    cut = [d for d, n in enumerate(parts) if n > 1]
    if len(cut) >= 2:
        return cut[0], cut[1]
    if not cut:
        return 0, len(parts) - 1
    return (0, cut[0]) if cut[0] == len(parts) - 1 else (cut[0], len(parts) - 1)


def panels(parts: Sequence[int]) -> Iterator[tuple[str, list[list[int]]]]:
    """Parts in rows and columns, by number, for each place in the dims that one plane cannot show.

    >>> list(panels((2, 2)))
    [('', [[0, 1], [2, 3]])]
    """
    down, across = plane(parts)
    others = [d for d in range(len(parts)) if d not in (down, across)]
    for place in product(*(range(parts[d]) for d in others)):
        at = dict(zip(others, place, strict=True))
        shown = [f"dim {d}: part {p + 1} of {parts[d]}" for d, p in at.items() if parts[d] > 1]
        rows = [
            [_number(parts, at | {down: i, across: j}) for j in range(_count(parts, across))]
            for i in range(_count(parts, down))
        ]
        yield ", ".join(shown), rows


def _count(parts: Sequence[int], dim: int) -> int:
    return parts[dim] if dim >= 0 else 1


def _number(parts: Sequence[int], at: dict[int, int]) -> int:
    number = 0
    for dim, n in enumerate(parts):
        number = number * n + at[dim]
    return number


# --- text


def text(shape: Sequence[int], parts: Sequence[int], holders: Holders) -> list[str]:
    """A picture of plain characters: each part with the ranks that hold it. Long ones are cut short.

    >>> print("\\n".join(text((4, 6), (2, 1), [(0, 1), (2, 3)])))
    dim 0 downwards: 4 in 2 parts of 2; dim 1 across: 6
    +-----+
    | 0-1 |
    +-----+
    | 2-3 |
    +-----+
    """
    lines = [_axes(shape, parts)]
    found = list(panels(parts))
    for title, rows in found[:_MAX_PANELS]:
        lines += [title] if title else []
        lines += _boxes([[_label(holders[n]) for n in row] for row in rows])
    if len(found) > _MAX_PANELS:
        lines.append(f"and {len(found) - _MAX_PANELS} more such pictures")
    return lines


def _axes(shape: Sequence[int], parts: Sequence[int]) -> str:
    said = []
    for dim, where in zip(plane(parts), ("downwards", "across"), strict=True):
        if dim >= 0:
            n = parts[dim]
            cut = f" in {n} parts of {shape[dim] // n}" if n > 1 else ""
            said.append(f"dim {dim} {where}: {shape[dim]}{cut}")
    return "; ".join(said) or "one value"


def _label(ranks: tuple[int, ...]) -> str:
    shown = spans(ranks) or "MISSING"
    return shown if len(shown) <= _LABEL else shown[: _LABEL - 3] + "..."


def _boxes(labels: list[list[str]]) -> list[str]:
    rows = [_elided(row, _TEXT_COLUMNS) for row in labels]
    if len(rows) > _TEXT_ROWS:
        rows = [*rows[: _TEXT_ROWS - 2], ["..."] * len(rows[0]), rows[-1]]
    width = max(len(label) for row in rows for label in row)
    rule = "+" + "+".join(["-" * (width + 2)] * len(rows[0])) + "+"
    lines = [rule]
    for row in rows:
        lines += ["|" + "|".join(f" {label.ljust(width)} " for label in row) + "|", rule]
    return lines


def _elided(row: list[str], most: int) -> list[str]:
    return row if len(row) <= most else [*row[: most - 2], "...", row[-1]]


# --- SVG


def svg(shape: Sequence[int], parts: Sequence[int], opt_parts: int, holders: Holders) -> str:
    """A picture for a page: a part is coloured by the first rank that holds it and names all; where the optimizer
    shard cuts on, lines are dashed. Above a thousand parts only the axes are told.
    """
    if prod(parts) > _MAX_CELLS:
        return f"<p>{escape(_axes(shape, parts))}; too many parts to draw</p>"
    drawn = [_panel(shape, parts, opt_parts, holders, *panel) for panel in list(panels(parts))[:_MAX_PANELS]]
    return f"<div><div>{escape(_axes(shape, parts))}</div>{''.join(drawn)}</div>"


def _panel(
    shape: Sequence[int], parts: Sequence[int], opt_parts: int, holders: Holders, title: str, rows: list[list[int]]
) -> str:
    down, across = plane(parts)
    height = _HEIGHT if down >= 0 else 36
    if down >= 0 and shape[down] * 4 < shape[across]:
        height //= 2
    tall, wide = height / len(rows), _WIDTH / len(rows[0])
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + 2}" height="{height + 2}" role="img" '
        f'font-family="sans-serif" font-size="11" style="display:block">'
    ]
    for i, row in enumerate(rows):
        for j, number in enumerate(row):
            out.append(_cell(j * wide + 1, i * tall + 1, wide, tall, holders[number]))
    thin = tall if down == 0 else wide
    if opt_parts > 1 and 0 in (down, across) and thin > _ROOM_FOR_DASHES:
        out += _dashes(len(rows) if down == 0 else len(rows[0]), opt_parts, height, lying=down == 0)
    caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
    return f'<figure style="display:inline-block;margin:4px">{"".join(out)}</svg>{caption}</figure>'


def _cell(x: float, y: float, wide: float, tall: float, ranks: tuple[int, ...]) -> str:
    colour = COLOURS[ranks[0] % len(COLOURS)] if ranks else "none"
    label = spans(ranks) if ranks else "missing"
    shown = f"rank {label}" if ranks else "missing"
    box = (
        f'<g><title>{shown}</title><rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" '
        f'fill="{colour}" fill-opacity=".55" stroke="#444"/>'
    )
    if tall >= 12 and wide >= max(len(label) * 6.5, _ROOM_FOR_LABEL):
        middle = f'x="{x + wide / 2:.1f}" y="{y + tall / 2 + 4:.1f}"'
        box += f'<text {middle} text-anchor="middle" fill="currentColor">{label}</text>'
    return box + "</g>"


def _dashes(count: int, opt_parts: int, height: int, *, lying: bool) -> Iterator[str]:
    """White dashes over the lines between the parts of one optimizer shard."""
    for i in range(1, count):
        if i % opt_parts:
            at = i * (height if lying else _WIDTH) / count + 1
            ends = (1, at, _WIDTH + 1, at) if lying else (at, 1, at, height + 1)
            x1, y1, x2, y2 = (f"{v:.1f}" for v in ends)
            line = f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"'
            yield f'{line} stroke="#fff" stroke-width="1.5" stroke-dasharray="5"/>'
