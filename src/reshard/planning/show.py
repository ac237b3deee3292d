"""Checkpoints and plans as a notebook shows them: a table of tensors, layers folded, each with a picture of its cut."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from msgspec import Struct

from reshard.drawing import Holders
from reshard.index import ZEROS
from reshard.layout.tensor import Layout, Sharding
from reshard.planning.catalog import Catalog, Grid, Held, Tensor
from reshard.planning.names import layer_pattern

_MOST_ROWS = 60


class Row(Struct, frozen=True):
    """Tensors that look alike; ``holders``: the ranks that hold each part, in row-major order."""

    pattern: str
    dtype: str
    layout: Layout
    holders: Holders


def tensor_html(source: Catalog, tensor: Tensor) -> str:
    """How one tensor of a checkpoint is cut, with the global ranks whose files hold each part."""
    title = f"{tensor.name}: {tensor.spec}"
    layout, held = _drawn(source, tensor)
    return f"<div><b>{escape(title)}</b>{layout.drawn(held)}</div>"


def catalog_html(title: str, source: Catalog) -> str:
    rows = (Row(layer_pattern(t.name), t.spec.dtype, *_drawn(source, t)) for t in source.tensors.values())
    return table(title, rows)


def _drawn(source: Catalog, tensor: Tensor) -> tuple[Layout, Holders]:
    """A layout to draw, and who holds each part of it: where none describes the shards, the whole, and all ranks."""
    if isinstance(tensor.shards, Grid):
        cells = tensor.shards.cells
        layout = tensor.shards.layout
        return layout, tuple(_ranks(source, cells.get(cell, ())) for cell in layout.boxes())
    ranks = {rank for shard in tensor.shards for rank in _ranks(source, shard.held)}
    shape = tensor.spec.shape
    return Layout(shape, Sharding.whole(1, len(shape))), (tuple(sorted(ranks)),)


def _ranks(source: Catalog, held: Iterable[Held]) -> tuple[int, ...]:
    return tuple(source.files[h.file].rank for h in held if h.file > ZEROS)


def table(title: str, rows: Iterable[Row]) -> str:
    """A page's part: the title and a line for each kind of tensor, up to sixty."""
    counts: dict[Row, int] = {}
    for row in rows:
        counts[row] = counts.get(row, 0) + 1
    lines = [_line(row, count) for row, count in list(counts.items())[:_MOST_ROWS]]
    if len(counts) > _MOST_ROWS:
        lines.append(f'<tr><td colspan="4">and {len(counts) - _MOST_ROWS:,} more kinds of tensors</td></tr>')
    heads = "".join(f"<th>{head}</th>" for head in ("tensor", "dtype", "shape", "cut"))
    return f"<div><b>{escape(title)}</b><table><tr>{heads}</tr>{''.join(lines)}</table></div>"


def _line(row: Row, count: int) -> str:
    layout = row.layout
    name = escape(row.pattern) + (f" × {count:,}" if count > 1 else "")
    cut = "×".join(map(str, layout.sharding.parts)) if len(row.holders) > 1 else "whole"
    shape = "×".join(map(str, layout.shape)) or "scalar"
    picture = f"<details><summary>{cut}</summary>{layout.drawn(row.holders)}</details>"
    return f"<tr><td>{name}</td><td>{row.dtype}</td><td>{shape}</td><td>{picture}</td></tr>"
